"""Clips for the film model: latents of some frames, the conditioning latents and the image embedding."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from training import codec, vision
from training.render import HALF, backdrop, light_of, render_box, still
from training.world import BUCKET, CELL, FRAMES, Scene, anchor, draw_scene, pose

STRANGE_SHARE = 0.1


class Studio:
    """Films scenes straight into latents: only the cells an object touches are encoded anew."""

    def __init__(self, vae: codec.AutoencoderTiny, eye: torch.nn.Module) -> None:
        self.cells = codec.Cells(vae)
        self.eye = eye
        self.embedding = lru_cache(maxsize=100_000)(self._embedding)
        self.planes = lru_cache(maxsize=None)(self._planes)

    def _planes(self, place: str, size: tuple[int, int], mirrored: bool) -> torch.Tensor:
        """Latents of black and of the place's red, green and blue alone, 4 x C x h x w."""
        picture = backdrop(place, size, mirrored)
        colours = torch.eye(3)[:, :, None, None] * picture
        coded = self.cells.encode(torch.cat((torch.zeros_like(picture)[None], colours)))
        return torch.cat((coded[:1], coded[1:] - coded[:1]))

    def empty(self, scene: Scene) -> torch.Tensor:
        """Latents of the place without object or ground mark."""
        black, *colours = self.planes(scene.place, scene.size, scene.mirrored)
        return black + sum(g * c for g, c in zip(light_of(scene), colours, strict=True))

    def _embedding(self, scene: Scene) -> torch.Tensor:
        with torch.no_grad():
            return vision.embed(self.eye, vision.squash(still(scene))[None])[0]

    def embed(self, scene: Scene) -> torch.Tensor:
        return self.embedding(replace(scene, bucket=BUCKET))

    def latents(self, scene: Scene, frames: list[int]) -> torch.Tensor:
        """Unscaled latents, T x C x h x w."""
        x, y = anchor(scene)
        reach = [pose(scene.motion, f, scene.bucket) for f in (0, *frames)]
        half = HALF * max(s for _, _, s in reach)
        spans = []
        for middle, axis in ((x, 0), (y, 1)):
            shifts, limit = [r[axis] for r in reach], scene.size[axis]
            low = max(0, int((middle + min(shifts) - half) // CELL))
            high = min(limit // CELL, int(-((middle + max(shifts) + half) // -CELL)))
            spans.append((low, high))
        (left, right), (top, bottom) = spans
        box = (left * CELL, top * CELL, right * CELL, bottom * CELL)
        whole = self.empty(scene).repeat(len(frames), 1, 1, 1)
        whole[:, :, top:bottom, left:right] = self.cells.encode(render_box(scene, frames, box))
        return whole


@dataclass
class Clips:
    clean: torch.Tensor  #: B x T x C x h x w, scaled
    picture: torch.Tensor  #: B x C x h x w, unscaled, without augmentation
    embedding: torch.Tensor  #: B x 1 x D
    frames: torch.Tensor  #: B x T
    buckets: torch.Tensor  #: B
    scenes: list[Scene | None]  #: B; a picture from elsewhere has none

    def to(self, device: torch.device) -> "Clips":
        tensors = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return replace(self, **tensors)


def some_frames(rng: random.Random, count: int) -> list[int]:
    """Sorted frames: from all over the film, or neighbours, so that temporal layers see true spacing."""
    if count >= FRAMES:
        return list(range(FRAMES))
    if rng.random() < 0.35:
        step = rng.choice((1, 1, 2))
        first = rng.randrange(FRAMES - (count - 1) * step)
        return list(range(first, first + count * step, step))
    return sorted(rng.sample(range(FRAMES), count))


def draw_clips(
    studio: Studio,
    rng: random.Random,
    size: tuple[int, int],
    count: int,
    length: int,
    draw: Callable[[random.Random, tuple[int, int]], Scene] = draw_scene,
) -> Clips:
    scenes = [draw(rng, size) for _ in range(count)]
    clips = clips_of(studio, scenes, [some_frames(rng, length) for _ in scenes])
    for i in range(count):
        if rng.random() < STRANGE_SHARE:
            hold(studio, clips, i, codec.strange_picture(rng, size))
    return clips


def hold(studio: Studio, clips: Clips, i: int, picture: torch.Tensor) -> None:
    """Let a clip be of a picture from elsewhere, which stands still: nothing in it is known to move."""
    clips.scenes[i] = None
    clips.picture[i] = studio.cells.encode(picture[None])[0]
    clips.clean[i] = clips.picture[i] * codec.SCALING
    with torch.no_grad():
        clips.embedding[i, 0] = vision.embed(studio.eye, vision.squash(picture)[None])[0]


def clips_of(studio: Studio, scenes: list[Scene], frames: list[list[int]]) -> Clips:
    drawn = [studio.latents(s, [0, *f]) for s, f in zip(scenes, frames, strict=True)]
    return Clips(
        clean=torch.stack([d[1:] for d in drawn]) * codec.SCALING,
        picture=torch.stack([d[0] for d in drawn]),
        embedding=torch.stack([studio.embed(s) for s in scenes])[:, None],
        frames=torch.tensor(frames),
        buckets=torch.tensor([s.bucket for s in scenes], dtype=torch.float32),
        scenes=list(scenes),
    )
