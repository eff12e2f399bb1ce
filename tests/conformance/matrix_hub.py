"""A third party's app: huggingface_hub's InferenceClient with its fal provider; argv: the picture, actions.

It knows fal's names and nothing of this server. Which of fal's endpoints a model is, it would ask the Hub;
its own table for models that are not registered yet answers that here.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import InferenceProviderMapping
from huggingface_hub.inference._providers._common import HARDCODED_MODEL_INFERENCE_MAPPING

MODELS = {
    "text-to-video": "fal-ai/fast-svd-lcm/text-to-video",
    "image-to-video": "fal-ai/stable-video",
}
KNOWN = HARDCODED_MODEL_INFERENCE_MAPPING["fal-ai"]
for task, endpoint in MODELS.items():
    KNOWN[task] = InferenceProviderMapping(
        provider="fal-ai", hf_model_id=task, providerId=endpoint, task=task, status="live"
    )
SMALL = {"video_size": {"width": 320, "height": 256}, "steps": 1}


def client(key: str | None = None) -> InferenceClient:
    return InferenceClient(provider="fal-ai", api_key=key or os.environ["FAL_KEY"])


def film(data: bytes) -> dict[str, Any]:
    # It hands over the bytes alone, downloaded from the address in the output.
    return {"seed": 7, "whole": len(data) > 1000, "box": data[4:8].decode()}


def text_to_video(of: InferenceClient, **more: Any) -> dict[str, Any]:
    body = {**SMALL, **more}
    return film(of.text_to_video("steps=1 pause=0", model="text-to-video", seed=7, extra_body=body))


def subscribe() -> object:
    return {**text_to_video(client()), "last": "COMPLETED", "lines": 1}


def blob() -> object:
    picture = Path(sys.argv[1]).read_bytes()
    return film(client().image_to_video(picture, model="image-to-video", seed=7))


def invalid() -> object:
    return text_to_video(client(), fps=0)


def wrong_key() -> object:
    return text_to_video(client("0000:not-the-secret"))


for action in sys.argv[2:]:
    try:
        outcome: dict[str, Any] = {"value": globals()[action]()}
    except HfHubHTTPError as error:
        assert error.response is not None
        outcome = {"error": {"status": error.response.status_code, "body": error.response.json()}}
    print(json.dumps({"action": action, **outcome}), flush=True)
