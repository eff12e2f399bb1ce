"""The first-frame model: diffusers' text-conditioned UNet at a small size, and its scheduler."""

import math
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

from training.codec import CHANNELS
from training.text import HIDDEN

SIGMA_MAX = 80.0
# The last step from here is straight to the clean estimate; going lower only added specks (seen by eye).
SIGMA_MIN = 2.0


def build() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=(64, 128),
        layers_per_block=1,
        cross_attention_dim=HIDDEN,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def scheduler() -> EulerDiscreteScheduler:
    """SVD's own scheduler with a lower ceiling: one picture is far smaller than 25 frames."""
    return EulerDiscreteScheduler(
        prediction_type="v_prediction",
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=SIGMA_MIN,
        sigma_max=SIGMA_MAX,
        timestep_spacing="leading",
        steps_offset=1,
        interpolation_type="linear",
    )


def load(folder: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder).eval().requires_grad_(False)


def sample(
    unet: UNet2DConditionModel,
    words: torch.Tensor,
    nothing: torch.Tensor,
    noise: torch.Tensor,
    steps: int = 6,
    guidance: float = 1.5,
) -> torch.Tensor:
    """Scaled latents for text hidden states B x L x D; the sampler of `scheduler`, written out."""
    from training import edm

    context = torch.cat((nothing.expand_as(words), words))

    def network(x: torch.Tensor, sigma: float) -> torch.Tensor:
        time = torch.full((len(context),), 0.25 * math.log(sigma), device=x.device)
        without, given = unet(torch.cat((x, x)), time, encoder_hidden_states=context).sample.chunk(2)
        return without + guidance * (given - without)

    levels = [float(s) for s in edm.karras(steps, SIGMA_MIN, SIGMA_MAX)]
    return edm.euler(network, noise, levels)
