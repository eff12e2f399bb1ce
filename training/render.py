"""Render scenes to films: a place, a ground mark, and one sprite that is moved and grown.

Sheets and places are drawn once and kept; a frame costs about a millisecond.
"""

from functools import cache

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import grid_sample

from training.pen import SPAN, UNIT
from training.places import place_picture
from training.things import ground_sprite, sprite
from training.world import COLOURS, COOL, FRAMES, WARM, Scene, anchor, pose

HALF = SPAN * UNIT


def _texture(picture: Image.Image) -> torch.Tensor:
    """RGBA as premultiplied bytes, 4 x side x side."""
    pixels = np.asarray(picture, dtype=np.float32) / 255
    pixels[..., :3] *= pixels[..., 3:]
    return torch.from_numpy((pixels * 255).round().astype(np.uint8)).permute(2, 0, 1).contiguous()


@cache
def texture(thing: str, colour: str, motion: str) -> torch.Tensor:
    return _texture(sprite(thing, COLOURS[colour], motion))


@cache
def ground_texture(motion: str) -> torch.Tensor | None:
    drawn = ground_sprite(motion)
    return None if drawn is None else _texture(drawn)


@cache
def backdrop(place: str, size: tuple[int, int], mirrored: bool) -> torch.Tensor:
    """The empty place, 3 x H x W in [0, 1]."""
    pixels = np.asarray(place_picture(place, size), dtype=np.float32) / 255
    picture = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    return picture.flip(-1).contiguous() if mirrored else picture


def light_of(scene: Scene) -> torch.Tensor:
    return torch.lerp(torch.tensor(WARM), torch.tensor(COOL), scene.light)


Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


def lay(picture: torch.Tensor, sheet: torch.Tensor, poses: torch.Tensor, box: Box) -> torch.Tensor:
    """Lay a sheet over a (1 or T) x 3 x h x w picture that covers `box`; poses are T x (x, y, scale)."""
    left, top, right, bottom = box
    xs = torch.arange(left, right) + 0.5
    ys = torch.arange(top, bottom) + 0.5
    reach = HALF * poses[:, 2, None]
    gx = (xs[None] - poses[:, 0, None]) / reach
    gy = (ys[None] - poses[:, 1, None]) / reach
    shape = (len(poses), len(ys), len(xs))
    grid = torch.stack((gx[:, None, :].expand(shape), gy[:, :, None].expand(shape)), -1)
    laid = grid_sample(
        (sheet.float() / 255).expand(len(poses), -1, -1, -1), grid, mode="bilinear", align_corners=False
    )
    return picture * (1 - laid[:, 3:]) + laid[:, :3]


def poses_of(scene: Scene, frames: list[int]) -> torch.Tensor:
    x, y = anchor(scene)
    steps = [pose(scene.motion, frame, scene.bucket) for frame in frames]
    return torch.tensor([(x + dx, y + dy, scale) for dx, dy, scale in steps], dtype=torch.float32)


def stage(scene: Scene, box: Box) -> torch.Tensor:
    """What stands still: the place and the ground mark, 1 x 3 x h x w."""
    left, top, right, bottom = box
    picture = backdrop(scene.place, scene.size, scene.mirrored)[None, :, top:bottom, left:right]
    picture = picture * light_of(scene).view(3, 1, 1)
    ground = ground_texture(scene.motion)
    return picture if ground is None else lay(picture, ground, poses_of(scene, [0]), box)


def render_box(scene: Scene, frames: list[int], box: Box) -> torch.Tensor:
    """The part of some frames inside a box, T x 3 x h x w in [0, 1]."""
    picture = stage(scene, box)
    return lay(picture, texture(scene.thing, scene.colour, scene.motion), poses_of(scene, frames), box)


def film(scene: Scene, frames: list[int] | None = None) -> torch.Tensor:
    """The frames of a scene, T x 3 x H x W in [0, 1]."""
    return render_box(scene, list(range(FRAMES)) if frames is None else frames, (0, 0, *scene.size))


def still(scene: Scene) -> torch.Tensor:
    """The first frame, 3 x H x W in [0, 1]."""
    return film(scene, [0])[0]


def to_image(picture: torch.Tensor) -> Image.Image:
    pixels = (picture.detach().float().clamp(0, 1) * 255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
