"""The three endpoints: what each is called, takes and asks of a runner. No torch, no HTTP."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from stillmotion import ids
from stillmotion.endpoints.inputs import (
    FastSvdLcmInput,
    FastSvdLcmTextToVideoInput,
    StableVideoInput,
    VideoOutput,
    given_fields,
)
from stillmotion.types import Assignment, Request, Sampler


@dataclass(frozen=True, slots=True)
class Settled:
    """A validated input: defaults filled in, the seed drawn, the picture's address apart."""

    values: Mapping[str, Any]
    image_url: str | None


def app_of(endpoint_id: str) -> str:
    """Return the first two segments; requests are asked for under these alone."""
    return "/".join(endpoint_id.split("/")[:2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    #: `fal-ai/fast-svd-lcm/text-to-video`: owner, alias and, for some, a sub-path.
    id: str
    title: str
    description: str
    category: str
    sampler: Sampler
    Input: type[BaseModel]
    Output: type[BaseModel] = VideoOutput

    @property
    def app(self) -> str:
        return app_of(self.id)

    @property
    def example(self) -> dict[str, Any]:
        """An input to try, from the examples of the required fields."""
        return {
            name: field.examples[0]
            for name, field in self.Input.model_fields.items()
            if field.is_required() and field.examples
        }

    def settle(self, given: object) -> Settled:
        """Validate a caller's input; raises pydantic's ValidationError."""
        parsed = self.Input.model_validate(given)
        values = given_fields(parsed)
        if values["seed"] is None:
            values["seed"] = ids.draw_seed()
        image_url = parsed.image_url if isinstance(parsed, FastSvdLcmInput | StableVideoInput) else None
        return Settled(values, image_url)

    def assignment(self, request: Request, picture: Path | None, output: Path) -> Assignment:
        """Say to a runner what to make of one attempt at `request`."""
        values = request.input
        size: Mapping[str, int] = values.get("video_size") or {}
        return Assignment(
            request_id=request.id,
            attempt=request.attempt,
            sampler=self.sampler,
            prompt=values.get("prompt"),
            picture=str(picture) if picture is not None else None,
            width=size.get("width"),
            height=size.get("height"),
            steps=values.get("steps"),
            fps=values["fps"],
            motion_bucket_id=values["motion_bucket_id"],
            cond_aug=values["cond_aug"],
            seed=values["seed"],
            output=str(output),
        )


_OFFERED = (
    Endpoint(
        id="fal-ai/fast-svd-lcm/text-to-video",
        title="Stable Video Diffusion Turbo, text to video",
        description="A film from a sentence in a few denoising steps.",
        category="text-to-video",
        sampler=Sampler.LCM,
        Input=FastSvdLcmTextToVideoInput,
    ),
    Endpoint(
        id="fal-ai/fast-svd-lcm",
        title="Stable Video Diffusion Turbo, image to video",
        description="Sets a picture in motion in a few denoising steps.",
        category="image-to-video",
        sampler=Sampler.LCM,
        Input=FastSvdLcmInput,
    ),
    Endpoint(
        id="fal-ai/stable-video",
        title="Stable Video Diffusion, image to video",
        description="Sets a picture in motion at full quality.",
        category="image-to-video",
        sampler=Sampler.EULER,
        Input=StableVideoInput,
    ),
)

#: Every endpoint by its id.
ENDPOINTS: dict[str, Endpoint] = {endpoint.id: endpoint for endpoint in _OFFERED}
