"""Films as users get them: made by the engine itself, in the number format it chooses for this processor.

`request` goes the whole way, from an input to an MP4 read back; `film` stops at decoded frames, of
which only those asked for are decoded.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stillmotion.endpoints.catalogue import ENDPOINTS
from stillmotion.engine import Engine
from stillmotion.engine.film import condition_on, sample_euler, sample_lcm
from stillmotion.engine.writing import decoded_chunks
from stillmotion.profiles import load_profile
from stillmotion.types import Assignment, Level, Sampler
from stillmotion.video import read_frames
from training.world import FRAMES

TEXT_TO_VIDEO = "fal-ai/fast-svd-lcm/text-to-video"
WHOLE = tuple(range(FRAMES))


@dataclass
class Told:
    """What the engine says of a request."""

    lines: list[str] = field(default_factory=list)

    def log(self, message: str, level: Level = Level.INFO) -> None:
        self.lines.append(message)

    def progress(self, stage: str, step: int, steps: int) -> None: ...

    def check_cancelled(self) -> None: ...


@dataclass(frozen=True)
class Delivered:
    #: T x 3 x H x W in [0, 1], read back from the MP4.
    frames: torch.Tensor
    #: Of the MP4's bytes.
    digest: str
    lines: list[str]


class Product:
    def __init__(self, weights: Path, scratch: Path) -> None:
        self.engine = Engine(load_profile("pocket"), weights, "cpu")
        self.path = scratch / "film.mp4"

    def request(self, given: Mapping[str, Any]) -> Delivered:
        """Answer an input of the endpoint that takes prompts."""
        endpoint, told = ENDPOINTS[TEXT_TO_VIDEO], Told()
        values = endpoint.settle(given).values
        size = values["video_size"]
        assignment = Assignment(
            request_id="gate",
            attempt=1,
            sampler=endpoint.sampler,
            prompt=values["prompt"],
            picture=None,
            width=size["width"],
            height=size["height"],
            steps=values["steps"],
            fps=values["fps"],
            motion_bucket_id=values["motion_bucket_id"],
            cond_aug=values["cond_aug"],
            seed=values["seed"],
            output=str(self.path),
        )
        self.engine.make(assignment, told)
        frames = torch.from_numpy(read_frames(self.path)).permute(0, 3, 1, 2).float() / 255
        return Delivered(frames, hashlib.sha256(self.path.read_bytes()).hexdigest()[:16], told.lines)

    def film(
        self,
        given: torch.Tensor,
        *,
        bucket: int = 127,
        cond_aug: float = 0.02,
        steps: int = 4,
        seed: int = 0,
        sampler: Sampler = Sampler.LCM,
        frames: Sequence[int] = WHOLE,
    ) -> torch.Tensor:
        """Decode some frames, T x 3 x h x w in [0, 1], of the film of a picture of native size.

        The Euler sampler takes the profile's own number of steps.
        """
        profile, weights = self.engine.profile, self.engine.weights
        turbo = sampler is Sampler.LCM
        generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            condition = condition_on(
                given[None] * 2 - 1,
                clip=weights.clip,
                codec=weights.codec,
                frames=FRAMES,
                fps=profile.condition_fps.turbo if turbo else profile.condition_fps.hq,
                motion_bucket_id=bucket,
                cond_aug=cond_aug,
                generator=generator,
            )
            unet, numbers = weights.unets[sampler], profile.samplers
            if turbo:
                *_, latents = sample_lcm(unet, condition, numbers.lcm, steps, generator)
            else:
                *_, latents = sample_euler(unet, condition, numbers.euler, numbers.euler.steps, generator)
            chunk = self.engine.memory.preset.decode_chunk_size
            decoded = torch.cat(list(decoded_chunks(weights.codec, latents[:, list(frames)], chunk)))
        return decoded.float() / 255
