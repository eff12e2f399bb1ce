"""Exact rewrites of diffusers' video networks: the same function in fewer or cheaper operations.

Each swaps one kind of module for an equal one, in place, on loaded weights; the modules diffusers built are
the slow twins that `tests/engine/test_rewrites.py` compares with. Equal means equal in real arithmetic:
results differ by rounding.

- Cross-attention to one token: its softmax is 1, so the answer is `to_out(to_v(token))` for every query;
  the queries, their norm and the attention vanish.
- The (3, 1, 1) convolutions over frames as Conv2d over (frames, pixels).
- `a x + (1 - a) (x + h)`, a learned blend with a residual, as `x + (1 - a) h` with `1 - a` folded into the
  last convolution of h.
- Nearest doubling before a 3x3 convolution as four 2x2 convolutions, one per output phase, whose weights
  are sums of the nine.

For bfloat16 on a CPU, `fused` has whole blocks rewritten.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from stillmotion.engine.fused import fuse, temporal_share

from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock  # isort: skip
from diffusers.models.resnet import SpatioTemporalResBlock, TemporalResnetBlock  # isort: skip
from diffusers.models.upsampling import Upsample2D  # isort: skip


class OneToken(nn.Module):
    """Cross-attention when each row's context is a single token."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.to_v, self.to_out = attention.to_v, attention.to_out[0]

    def forward(self, hidden: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        return self.to_out(self.to_v(encoder_hidden_states))


class FrameConv(nn.Module):
    """A (3, 1, 1) Conv3d over (n, C, T, H, W) as a Conv2d over (T, H * W)."""

    def __init__(self, conv: nn.Conv3d, scale: Tensor | None = None) -> None:
        super().__init__()
        weight, bias = conv.weight[..., 0], conv.bias
        assert bias is not None, "the video networks' convolutions have biases"
        if scale is not None:
            weight, bias = weight * scale, bias * scale
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.bias = nn.Parameter(bias.clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        flat = functional.conv2d(x.flatten(3), self.weight, self.bias, padding=(1, 0))
        return flat.view(*flat.shape[:3], *x.shape[3:])


class TemporalOnly(nn.Module):
    """The blend of a residual block whose share is folded into its last convolution."""

    def forward(self, x_spatial: Tensor, x_temporal: Tensor, image_only_indicator: Tensor | None) -> Tensor:
        return x_temporal


class PhaseUpsample(nn.Module):
    """Nearest doubling and a 3x3 convolution: each output phase sees 2x2 input pixels."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None, "the video networks' convolutions have biases"
        self.conv = conv
        # Row phase 0 of the doubled picture reads rows (-1, 0, 0) of the small one, phase 1 rows (0, 0, 1).
        fold = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], dtype=torch.float64)
        weight = torch.einsum("pak,qbl,oikl->pqoiab", fold, fold, conv.weight.double().cpu())
        self.weight = nn.Parameter(weight.flatten(0, 2).to(conv.weight), requires_grad=False)
        self.bias = nn.Parameter(conv.bias.repeat(4), requires_grad=False)

    def forward(self, hidden_states: Tensor, output_size: torch.Size | None = None) -> Tensor:
        height, width = hidden_states.shape[-2:]
        if output_size is not None and tuple(output_size) != (2 * height, 2 * width):
            # The skip connection has an odd side: the doubled picture is cut before it is convolved.
            return self.conv(functional.interpolate(hidden_states, size=output_size, mode="nearest"))
        phases = functional.conv2d(hidden_states, self.weight, self.bias, padding=1)
        parts = phases.view(len(phases), 2, 2, -1, *phases.shape[2:])
        # Phase (p, q) of pixel (y, x) stands at row y + p, column x + q of the padded answer.
        last = phases.is_contiguous(memory_format=torch.channels_last)
        out = torch.empty(
            (len(phases), parts.shape[3], 2 * height, 2 * width),
            dtype=phases.dtype,
            device=phases.device,
            memory_format=torch.channels_last if last else torch.contiguous_format,
        )
        for p in (0, 1):
            for q in (0, 1):
                out[:, :, p::2, q::2] = parts[:, p, q, :, p : p + height, q : q + width]
        return out


def rewrite_unet(unet: Any, device: torch.device | None = None) -> None:
    """Apply what is faster in the network's number format on a device; None = the one it is on."""
    if (device or unet.device).type == "cpu" and unet.dtype == torch.bfloat16:
        fuse(unet, pack=True)
    else:
        one_token_attention(unet)
        flat_frame_convolutions(unet)


def rewrite_decoder(decoder: nn.Module, device: torch.device) -> None:
    """Apply what is faster in the decoder's number format on a device; it can change formats afterwards."""
    if device.type == "cpu" and next(decoder.parameters()).dtype == torch.bfloat16:
        fuse(decoder, pack=False)
        phase_upsampling(decoder)


def one_token_attention(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, (BasicTransformerBlock, TemporalBasicTransformerBlock)):
            block = cast(Any, module)
            block.attn2, block.norm2 = OneToken(block.attn2), nn.Identity()


def flat_frame_convolutions(network: nn.Module) -> None:
    """Rewrite the temporal residual blocks and their blends."""
    for module in network.modules():
        if isinstance(module, SpatioTemporalResBlock):
            block = cast(Any, module)
            block.temporal_res_block.conv2 = FrameConv(
                block.temporal_res_block.conv2,
                temporal_share(block.time_mixer).to(block.temporal_res_block.conv2.weight),
            )
            block.time_mixer = TemporalOnly()
    for module in network.modules():
        if isinstance(module, TemporalResnetBlock):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Conv3d) and child.kernel_size == (3, 1, 1):
                    setattr(module, name, FrameConv(child))


def phase_upsampling(network: nn.Module) -> None:
    for module in network.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, Upsample2D) and child.interpolate and isinstance(child.conv, nn.Conv2d):
                setattr(module, name, _phases(child.conv))


def _phases(conv: nn.Conv2d) -> PhaseUpsample:
    assert conv.kernel_size == (3, 3) and conv.padding == (1, 1), "Upsample2D convolves 3x3"
    return PhaseUpsample(conv)
