"""What is offered: ids, inputs, outputs, defaults and ranges of the endpoints."""

from stillmotion.endpoints.catalogue import ENDPOINTS, Endpoint, Settled, app_of
from stillmotion.endpoints.inputs import File, VideoOutput

__all__ = ["ENDPOINTS", "Endpoint", "File", "Settled", "VideoOutput", "app_of"]
