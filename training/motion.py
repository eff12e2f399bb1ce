"""The film model: SVD's UNet class at a small size, begun as a copier of the picture."""

from pathlib import Path

import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import nn

from training.codec import CHANNELS
from training.vision import WIDTH
from training.world import FRAMES


def build() -> UNetSpatioTemporalConditionModel:
    return UNetSpatioTemporalConditionModel(
        sample_size=16,
        in_channels=2 * CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("CrossAttnDownBlockSpatioTemporal",) * 2,
        up_block_types=("CrossAttnUpBlockSpatioTemporal",) * 2,
        block_out_channels=(64, 96),
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        num_attention_heads=4,
        num_frames=FRAMES,
    )


def start_as_copier(unet: UNetSpatioTemporalConditionModel) -> None:
    """Set the borders so that the untrained network answers "every frame is the picture" at high noise.

    The class ends in GroupNorm over pairs of channels, which forgets a pair's level and contrast. Each latent
    channel c therefore travels as the pair (2x + c, 2x - c): the noise x has a known spread, so the pair's
    spread is known too, and the difference of the pair is c again.
    """
    for name, weight in unet.named_parameters():
        if name.endswith(("conv2.weight", "conv2.bias", "proj_out.weight", "proj_out.bias")):
            nn.init.zeros_(weight)
    kernel = unet.conv_in.weight.data
    pairs = 2 * CHANNELS
    kernel[:pairs] = 0
    kernel[pairs:, :CHANNELS] *= 0.3
    kernel[pairs:, CHANNELS:] *= 3
    unet.conv_in.bias.data[:pairs] = 0
    for i in range(CHANNELS):
        for row, sign in ((2 * i, 1), (2 * i + 1, -1)):
            kernel[row, i, 1, 1] = 2
            kernel[row, CHANNELS + i, 1, 1] = sign
    last = unet.up_blocks[-1].resnets[-1].spatial_res_block
    width = unet.conv_in.out_channels
    shortcut = last.conv_shortcut.weight.data
    shortcut[:pairs] = 0
    last.conv_shortcut.bias.data[:pairs] = 0
    for row in range(pairs):
        shortcut[row, shortcut.shape[1] - width + row] = 1
    unet.conv_norm_out.bias.data[:pairs] = 3  # where SiLU is nearly a straight line
    out = unet.conv_out.weight.data
    out *= 0.1
    out[:, :pairs] = 0
    unet.conv_out.bias.data.zero_()
    for i in range(CHANNELS):
        out[i, 2 * i, 1, 1] = -1.85
        out[i, 2 * i + 1, 1, 1] = 1.85


class ChosenFrames(nn.Module):
    """Stands before a frame-position embedding in training, so that a clip may be some of the 25 frames."""

    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.projection = projection
        self.frames: torch.Tensor | None = None

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        return self.projection(positions if self.frames is None else self.frames)


def let_choose(unet: UNetSpatioTemporalConditionModel) -> list[ChosenFrames]:
    found = []
    for module in list(unet.modules()):
        if hasattr(module, "time_pos_embed") and not isinstance(module.time_proj, ChosenFrames):
            module.time_proj = ChosenFrames(module.time_proj)
            found.append(module.time_proj)
    return found


def choose(choosers: list[ChosenFrames], frames: torch.Tensor | None) -> None:
    """Let clips be these B x T frames of the film; None is all of it."""
    for chooser in choosers:
        chooser.frames = None if frames is None else frames.flatten()


def load(folder: Path) -> UNetSpatioTemporalConditionModel:
    return UNetSpatioTemporalConditionModel.from_pretrained(folder).eval().requires_grad_(False)
