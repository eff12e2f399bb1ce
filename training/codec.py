"""The codec: a linear encoder set by hierarchical principal components, and a decoder that learns to draw.

Each cell of 32 x 32 pixels becomes 16 numbers. The encoder's convolutions only have weights on taps that do
not overlap, so encoding a cell is one matrix product: training never needs the network for it.
"""

import random
from copy import copy
from pathlib import Path
from typing import Self

import torch
from diffusers import AutoencoderTiny
from torch.nn.functional import interpolate, pixel_shuffle, pixel_unshuffle

from training.world import CELL

CHANNELS = 16
UNSHUFFLE = 8
WIDTH = 64
SCALING = 2.0


def build() -> AutoencoderTiny:
    return AutoencoderTiny(
        in_channels=3 * UNSHUFFLE**2,
        out_channels=3 * UNSHUFFLE**2,
        encoder_block_out_channels=(WIDTH,) * 3,
        decoder_block_out_channels=(WIDTH,) * 3,
        num_encoder_blocks=(0, 0, 0),
        num_decoder_blocks=(4, 3, 1),
        latent_channels=CHANNELS,
        scaling_factor=SCALING,
        force_upcast=False,
    )


def encode(vae: AutoencoderTiny, pictures: torch.Tensor) -> torch.Tensor:
    """Encode pictures in [-1, 1], the way the engine does: not scaled."""
    return vae.encode(pixel_unshuffle(pictures, UNSHUFFLE)).latents


def decode(vae: AutoencoderTiny, latents: torch.Tensor) -> torch.Tensor:
    """Decode unscaled latents to pictures in [-1, 1]."""
    return pixel_shuffle(vae.decode(latents).sample, UNSHUFFLE)


def cells_of(pictures: torch.Tensor) -> torch.Tensor:
    """Cut B x 3 x H x W into B x h x w x 3072 cells."""
    b, c, h, w = pictures.shape
    cut = pictures.view(b, c, h // CELL, CELL, w // CELL, CELL)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(b, h // CELL, w // CELL, c * CELL * CELL)


def _components(data: torch.Tensor, keep: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean, keep x n basis and standard deviations of the rows of `data`."""
    mean = data.mean(0)
    spread = data - mean
    values, vectors = torch.linalg.eigh(spread.T @ spread / len(spread))
    return mean, vectors.T.flip(0)[:keep].contiguous(), values.flip(0)[:keep].clamp_min(0).sqrt()


def fit_encoder(vae: AutoencoderTiny, cells: torch.Tensor) -> float:
    """Set the encoder from N x 3 x 32 x 32 cells in [0, 1]; return the share of energy it keeps."""
    layers = vae.encoder.layers
    for layer in layers:
        layer.weight.data.zero_()
        if layer.bias is not None:
            layer.bias.data.zero_()
    x = pixel_unshuffle(cells, UNSHUFFLE)  # N x 192 x 4 x 4
    flat = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    mean, basis, _ = _components(flat[torch.randperm(len(flat))[:200_000]], WIDTH)
    layers[0].weight.data[:, :, 1, 1] = basis
    layers[0].bias.data.copy_(-basis @ mean)
    x = torch.einsum("nchw,kc->nkhw", x - mean[:, None, None], basis)
    for layer in (layers[1], layers[2]):
        blocks = torch.stack([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)  # N x 4 x C x h x w
        n, _, c, h, w = blocks.shape
        flat = blocks.permute(0, 3, 4, 1, 2).reshape(n * h * w, 4 * c)
        _, basis, deviation = _components(flat, WIDTH)
        for tap, (i, j) in enumerate(((1, 1), (1, 2), (2, 1), (2, 2))):
            layer.weight.data[:, :, i, j] = basis.view(WIDTH, 4, c)[:, tap]
        x = (flat @ basis.T).view(n, h, w, WIDTH).permute(0, 3, 1, 2)
    codes = x.flatten(1)
    centre, deviation = codes.mean(0), deviation[:CHANNELS]
    # Loud components stay louder, by the square root: they survive the most noise.
    wanted = deviation.sqrt() / deviation.sqrt().square().mean().sqrt() / SCALING
    gain = wanted / deviation
    for k in range(CHANNELS):
        layers[3].weight.data[k, k, 1, 1] = gain[k]
    layers[3].bias.data.copy_(-gain * centre[:CHANNELS])
    whole = (cells - cells.mean(0)).square().sum(dim=(1, 2, 3)).mean()
    return float(deviation.square().sum() / whole)


class Cells:
    """The encoder as one matrix."""

    def __init__(self, vae: AutoencoderTiny) -> None:
        with torch.no_grad():
            unit = torch.eye(3 * CELL * CELL, device=vae.device).view(-1, 3, CELL, CELL)
            self.offset = encode(vae, torch.zeros_like(unit[:1])).flatten()
            self.matrix = encode(vae, unit).flatten(1) - self.offset  # 3072 x C
        covariance = self.matrix.T @ self.matrix
        self.noise = torch.linalg.cholesky(covariance + 1e-8 * torch.eye(CHANNELS, device=vae.device))

    def to(self, device: torch.device) -> Self:
        """The same on a device; these stay where they are, because scenes are drawn on the CPU."""
        moved = copy(self)
        vars(moved).update({name: tensor.to(device) for name, tensor in vars(self).items()})
        return moved

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Encode pictures in [0, 1]; equals `encode` of the network."""
        return (cells_of(pictures * 2 - 1) @ self.matrix + self.offset).permute(0, 3, 1, 2).contiguous()

    def augmentation(self, like: torch.Tensor) -> torch.Tensor:
        """What unit pixel noise becomes in the latents."""
        drawn = torch.randn(like.shape[0], *like.shape[2:], CHANNELS, device=like.device) @ self.noise.T
        return drawn.permute(0, 3, 1, 2)


def start_decoder(vae: AutoencoderTiny, cells: Cells, pictures: torch.Tensor) -> None:
    """Let the decoder begin as a passage for +z and -z that ends in the cell's mean colour."""
    layers = vae.decoder.layers
    eye = torch.eye(CHANNELS)
    first = layers[0].weight.data
    first[: 2 * CHANNELS] *= 0.1
    first[:CHANNELS, :, 1, 1] += eye
    first[CHANNELS : 2 * CHANNELS, :, 1, 1] -= eye
    layers[0].bias.data.zero_()
    for layer in layers[2:-1]:
        if hasattr(layer, "conv"):
            layer.conv[-1].weight.data *= 0.2
        elif isinstance(layer, torch.nn.Conv2d):
            layer.weight.data *= 0.2
            layer.weight.data[range(WIDTH), range(WIDTH), 1, 1] += 1
    z = cells.encode(pictures).permute(0, 2, 3, 1).reshape(-1, CHANNELS)
    z = torch.tanh(z / 3) * 3
    colours = cells_of(pictures).reshape(len(z), 3, -1).mean(2)
    solved = torch.linalg.lstsq(torch.cat((z, torch.ones(len(z), 1)), 1), colours).solution  # (C+1) x 3
    last = layers[-1]
    last.weight.data *= 0.1
    per_pixel = solved[:CHANNELS].T.repeat_interleave(UNSHUFFLE**2, 0)
    last.weight.data[:, :CHANNELS, 1, 1] += per_pixel
    last.weight.data[:, CHANNELS : 2 * CHANNELS, 1, 1] -= per_pixel
    last.bias.data.copy_(solved[CHANNELS].repeat_interleave(UNSHUFFLE**2))


def strange_picture(rng: random.Random, size: tuple[int, int]) -> torch.Tensor:
    """Polygons, gradients and clouds of all sizes, so that pictures from elsewhere are not quite unknown."""
    from PIL import Image, ImageDraw

    w, h = size
    picture = Image.new("RGB", size, tuple(rng.randrange(256) for _ in range(3)))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randrange(2, 9)):
        spot = [(rng.uniform(-0.2, 1.2) * w, rng.uniform(-0.2, 1.2) * h) for _ in range(rng.randrange(3, 6))]
        draw.polygon(spot, fill=tuple(rng.randrange(256) for _ in range(3)))
    data = (
        torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(h, w, 3).permute(2, 0, 1) / 255
    )
    data = data + (torch.linspace(-rng.random(), rng.random(), w) * 0.25)[None, None]
    if rng.random() < 0.5:
        clouds = sum(
            interpolate(torch.randn(1, 3, 2**k, 2 ** (k + 1)), (h, w), mode="bilinear")[0] / 1.7**k
            for k in range(1, 7)
        )
        data = torch.lerp(data, 0.5 + 0.25 * clouds, rng.random())
    return data.clamp(0, 1)


def load(folder: Path) -> AutoencoderTiny:
    return AutoencoderTiny.from_pretrained(folder).eval().requires_grad_(False)
