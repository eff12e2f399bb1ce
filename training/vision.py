"""The image encoder: a small CLIP vision model; the whole picture is squashed to a square, as for SVD."""

from pathlib import Path

import torch
from torch.nn.functional import interpolate
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

SIDE = 224
WIDTH = 128
#: Mean and deviation of red, green and blue, CLIP's own.
COLOURS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def build() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=32,
        )
    )


def squash(picture: torch.Tensor) -> torch.Tensor:
    """3 x H x W in [0, 1] to 3 x 224 x 224 in [0, 1]."""
    return interpolate(picture[None], (SIDE, SIDE), mode="bicubic", antialias=True)[0].clamp(0, 1)


def embed(model: CLIPVisionModelWithProjection, squashed: torch.Tensor) -> torch.Tensor:
    mean, deviation = torch.tensor(COLOURS, device=squashed.device)[..., None, None]
    return model((squashed - mean) / deviation).image_embeds


def load(folder: Path) -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection.from_pretrained(folder).eval().requires_grad_(False)
