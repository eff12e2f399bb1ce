"""Sizes and pixels: which size a film is made at, cutting pictures to it, and what CLIP is shown.

Pictures travel as float32 tensors (1, 3, H, W) in [-1, 1].
"""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from stillmotion.profiles import Size, nearest_size

#: Film sizes for pictures that come without one; all near SVD's 1024x576 in area, and its `native_sizes`.
BUCKETS: tuple[Size, ...] = ((1024, 576), (896, 640), (768, 768), (640, 896), (576, 1024))
CLIP_SIDE = 224
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def film_size(width: int | None, height: int | None, picture: Image.Image | None) -> Size:
    """The asked size, else the bucket nearest to the picture's aspect."""
    if width is not None and height is not None:
        return width, height
    assert picture is not None, "a film without a picture must be given a size"
    return nearest_size(*picture.size, BUCKETS)


def native_size(film: Size, sizes: tuple[Size, ...], multiple: int) -> Size:
    """The size the networks work at: the nearest of `sizes` in aspect, else `film` in whole multiples."""
    if sizes:
        return nearest_size(*film, sizes)
    width, height = (max(multiple, round(side / multiple) * multiple) for side in film)
    return width, height


def open_picture(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def cover(picture: Image.Image, size: Size) -> Tensor:
    """Centre-crop to a size's aspect, resize to the size."""
    width, height = picture.size
    scale = min(width / size[0], height / size[1])
    across, down = size[0] * scale, size[1] * scale
    # Rounding can put an edge a hair outside of the picture, which Pillow refuses.
    left, top = max(0.0, (width - across) / 2), max(0.0, (height - down) / 2)
    if (width, height) != size or (across, down) != (width, height):
        box = (left, top, left + across, top + down)
        picture = picture.resize(size, Image.Resampling.LANCZOS, box=box)
    pixels = torch.tensor(np.array(picture, dtype=np.float32))
    return pixels.permute(2, 0, 1)[None].div(255).mul(2).sub(1).contiguous()


def clip_pixels(picture: Tensor) -> Tensor:
    """Squash to CLIP's square as SVD was trained: Gaussian blur, bicubic, aligned corners, normalised."""
    height, width = picture.shape[-2:]
    blurred = _blur(_blur(picture, width / CLIP_SIDE, -1), height / CLIP_SIDE, -2)
    square = interpolate(blurred, (CLIP_SIDE, CLIP_SIDE), mode="bicubic", align_corners=True)
    mean, deviation = (
        torch.tensor(values, device=picture.device).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_DEVIATION)
    )
    return ((square + 1) / 2 - mean) / deviation


def _blur(picture: Tensor, factor: float, dim: int) -> Tensor:
    """Blur one axis against aliasing when it shrinks by `factor`; kernel of two sigmas, as skimage's."""
    sigma = max((factor - 1) / 2, 0.001)
    length = int(max(4 * sigma, 3)) | 1
    offsets = torch.arange(length, device=picture.device, dtype=picture.dtype) - length // 2
    weights = torch.exp(-offsets.square() / (2 * sigma**2))
    weights = (
        (weights / weights.sum())
        .view((1, -1) if dim == -1 else (-1, 1))
        .expand(3, 1, *((1, length) if dim == -1 else (length, 1)))
    )
    margin = length // 2
    edges = (margin, margin, 0, 0) if dim == -1 else (0, 0, margin, margin)
    return conv2d(pad(picture, edges, mode="reflect"), weights, groups=3)


def to_bytes(frames: Tensor) -> Tensor:
    """Frames in [-1, 1] to uint8 on the CPU, still (n, 3, H, W)."""
    pixels = frames.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    if pixels.is_cuda:
        # The GPU waits for this copy, a chunk's 14 MB at 1024x576; into page-locked memory it takes a tenth.
        with suppress(RuntimeError):
            return torch.empty_like(pixels, device="cpu", pin_memory=True).copy_(pixels)
    return pixels.cpu()


def cut_bytes(frames: Tensor, size: Size) -> np.ndarray:
    """Cut uint8 frames (n, 3, H, W) to a film's aspect as `cover` does, in whole pixels, as (n, h, w, 3)."""
    width, height = size
    scale = min(frames.shape[-1] / width, frames.shape[-2] / height)
    across, down = round(width * scale), round(height * scale)
    left, top = (frames.shape[-1] - across) // 2, (frames.shape[-2] - down) // 2
    frames = frames[..., top : top + down, left : left + across]
    return frames.permute(0, 2, 3, 1).contiguous().numpy()
