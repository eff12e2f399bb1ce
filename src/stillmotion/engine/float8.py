"""Large linear layers in float8: half their bytes, and twice bfloat16's rate on GPUs that multiply it.

Weights are scaled by output channel, once, and inputs by token, at every call, to the range of float8_e4m3fn
(3 bits of mantissa). Products are summed at higher precision and scaled back. Of the UNet's layers: the
projections of self-attention and the feed-forwards. Left as they are: cross-attention, which sees one token,
embeddings, convolutions and the projections around each transformer.

A CPU computes the same, only slower than in bfloat16: so quality can be measured without a GPU.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock  # isort: skip

#: The product behind torch 2.13's public `scaled_mm`, which older versions have, too.
scaled_mm: Any = torch.ops.aten._scaled_mm
FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
#: Compute capability of the first GPUs that multiply float8: Ada.
CAPABILITY = (8, 9)


class Float8Linear(nn.Module):
    """A linear layer with weights and inputs in float8; answers in its input's number format."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        rows = scaled_rows(linear.weight)
        # (inputs, outputs), one output after the other in memory, as the product wants them.
        self.weight, self.scale = (nn.Parameter(part.t(), requires_grad=False) for part in rows)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        tokens, scale = scaled_rows(x.flatten(0, -2))
        answer: Tensor = scaled_mm(
            tokens, self.weight, scale, self.scale, self.bias, out_dtype=x.dtype, use_fast_accum=True
        )
        return answer.view(*x.shape[:-1], -1)


def scaled_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each row of a matrix so that its largest fits float8; returns the rows and the divisors."""
    # In the input's own format, so that no copy is larger than the input.
    scale = (x.abs().amax(dim=-1, keepdim=True) / LARGEST).clamp(min=torch.finfo(x.dtype).tiny)
    return (x / scale).to(FLOAT8), scale.float()


def float8_linears(unet: nn.Module) -> None:
    """Swap the large linear layers of a video UNet, in place."""
    kinds = (BasicTransformerBlock, TemporalBasicTransformerBlock)
    blocks = [cast(Any, module) for module in unet.modules() if isinstance(module, kinds)]
    assert blocks, "blocks fused for a CPU have no linear layers of their own"
    for block in blocks:
        inward = [block.ff_in] if isinstance(block, TemporalBasicTransformerBlock) else []
        for part in (block.attn1, block.ff, *inward):
            _swap(part)


def _swap(part: nn.Module) -> None:
    for name, child in list(part.named_children()):
        if isinstance(child, nn.Linear):
            setattr(part, name, Float8Linear(child))
        else:
            _swap(child)
