"""The video networks' blocks for bfloat16 on a CPU: channels last throughout, oneDNN's fused operations.

With the channels of a pixel side by side in memory, frames (T, C, H, W) are at once pictures for the 3x3
convolutions, tokens for the linear layers and one picture (T, H * W) for the convolutions over frames, so
nothing is copied between them; diffusers permutes for each. What follows a product (bias, GELU, gate,
residual) is written with it, and the UNet's weights are packed for oneDNN once instead of at every call.
diffusers' own modules are the slow twins (`tests/engine/test_rewrites.py`).

Relied on, as SVD's UNet always calls its blocks: the time embedding and the one context token are the same
for every frame of a film.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffusers.models.attention_processor import Attention  # isort: skip
from diffusers.models.resnet import AlphaBlender, SpatioTemporalResBlock  # isort: skip
from diffusers.models.transformers.transformer_temporal import (  # isort: skip
    TransformerSpatioTemporalModel,
)

#: Attention scores held at once: 1 MiB of bfloat16.
SCORES = 1 << 19
#: torch's bfloat16 softmax takes longer than its float32 one, casts counted in, on rows shorter than this.
SHORT_ROW = 64
#: torch's channels-last group norm goes pixel by pixel through maps smaller than this, 2 or 3 channels at a
#: time: 10.4 ms for 25 maps of 64x16x32, `group_norm` here 0.5.
SMALL_MAP = 1024

mkldnn: Any = torch.ops.mkldnn


class Packing(nn.Module):
    """A weight that can be had in oneDNN's own layout for the shape it is multiplied with.

    Another shape's layout would be turned around at every call, which takes longer than the product.
    A compiler is given torch's own operations: it knows none of oneDNN's, and fuses by itself.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.packs = False
        self._packed: tuple[torch.Size, Tensor] | None = None

    def pack(self, shape: torch.Size) -> Tensor:
        raise NotImplementedError

    def weight_for(self, x: Tensor) -> Tensor:
        if not self.packs:
            return self.weight
        if self._packed is None or self._packed[0] != x.shape:
            self._packed = x.shape, self.pack(x.shape)
        return self._packed[1]

    def shifted(self, shift: Tensor | None) -> Tensor | None:
        return self.bias if shift is None or self.bias is None else self.bias + shift


class FusedLinear(Packing):
    """A linear layer over (..., channels) and what follows it."""

    def pack(self, shape: torch.Size) -> Tensor:
        return mkldnn._reorder_linear_weight(self.weight, shape[:-1].numel())

    def forward(self, x: Tensor, *, shift: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
        """Answer `W x + bias + shift + plus`."""
        bias = self.shifted(shift)
        if torch.compiler.is_compiling():
            answer = functional.linear(x, self.weight, bias)
            return answer if plus is None else answer + plus
        weight = self.weight_for(x)
        if plus is None:
            return mkldnn._linear_pointwise(x, weight, bias, "none", [], "none")
        return mkldnn._linear_pointwise.binary(x, plus, weight, bias, "add")

    def times(self, gate: Tensor, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self(x) * gate
        return mkldnn._linear_pointwise.binary(x, gate, self.weight_for(x), self.bias, "mul")

    def gelu(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return functional.gelu(self(x))
        return mkldnn._linear_pointwise(x, self.weight_for(x), self.bias, "gelu", [], "none")


class FusedConv(Packing):
    """A convolution of stride 1 that keeps the size of (n, channels, height, width), and what follows it."""

    def __init__(self, conv: Any, scale: Tensor | None = None) -> None:
        # A (3, 1, 1) convolution over (T, H, W) is a (3, 1) one over (T, H * W).
        weight, bias = (conv.weight[..., 0] if conv.weight.ndim == 5 else conv.weight), conv.bias
        if scale is not None:
            weight, bias = ((part.double() * scale).to(part.dtype) for part in (weight, bias))
        super().__init__(weight.contiguous(memory_format=torch.channels_last), bias)
        self.padding = [side // 2 for side in weight.shape[2:]]

    def pack(self, shape: torch.Size) -> Tensor:
        return mkldnn._reorder_convolution_weight(self.weight, self.padding, [1, 1], [1, 1], 1, shape)

    def forward(self, x: Tensor, *, shift: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
        """Answer the convolution, plus `shift` in every pixel, plus `plus`."""
        if torch.compiler.is_compiling():
            answer = functional.conv2d(x, self.weight, self.shifted(shift), padding=self.padding)
            return answer if plus is None else answer + plus
        how = self.weight_for(x), self.shifted(shift), self.padding, [1, 1], [1, 1], 1
        if plus is None:
            return mkldnn._convolution_pointwise(x, *how, "none", [], "")
        return mkldnn._convolution_pointwise.binary(x, plus, *how, "add", 1.0, None, [], None)

    def add_to(self, total: Tensor, x: Tensor) -> Tensor:
        """Add the answer to `total`, in place."""
        if torch.compiler.is_compiling():
            return total.add_(self(x))
        how = self.weight_for(x), self.bias, self.padding, [1, 1], [1, 1], 1
        return mkldnn._convolution_pointwise_.binary(total, x, *how, "add", 1.0, None, [], None)


class FusedFeedForward(nn.Module):
    """diffusers' feed-forward with a GELU gate, and the residual."""

    def __init__(self, feed_forward: Any) -> None:
        super().__init__()
        project, out = feed_forward.net[0].proj, feed_forward.net[2]
        weights, biases = project.weight.chunk(2), project.bias.chunk(2)
        self.value, self.gate = (FusedLinear(*both) for both in zip(weights, biases, strict=True))
        self.out = FusedLinear(out.weight, out.bias)

    def forward(self, x: Tensor, plus: Tensor) -> Tensor:
        return self.out(self.value.times(self.gate.gelu(x), x), plus=plus)


class FusedAttention(nn.Module):
    """Self-attention within each row of tokens, or across the rows, in slices that fit the cache.

    torch's fused bfloat16 kernel takes two to three times as long on a CPU without matrix tiles (AMX).
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.heads: int = attention.heads
        q, k, v, out = attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]
        weight = torch.cat((q.weight * attention.scale, k.weight, v.weight))
        bias = None if q.bias is None else torch.cat((q.bias * attention.scale, k.bias, v.bias))
        self.qkv, self.out = FusedLinear(weight, bias), FusedLinear(out.weight, out.bias)

    def forward(
        self, x: Tensor, plus: Tensor, *, shift: Tensor | None = None, across: bool = False
    ) -> Tensor:
        parts = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1)
        answer = torch.empty_like(x).view(*x.shape[:2], self.heads, -1)
        if across:
            parts, answer = parts.transpose(0, 1), answer.transpose(0, 1)
        query, key, value = parts.permute(2, 0, 3, 1, 4).contiguous()
        into, length = answer.transpose(1, 2), query.shape[2]
        step = max(1, SCORES // (self.heads * length**2))
        for first in range(0, len(query), step):
            part = slice(first, first + step)
            into[part] = _softmax(query[part] @ key[part].transpose(-1, -2)) @ value[part]
        if across:
            answer = answer.transpose(0, 1)
        return self.out(answer.flatten(2), shift=shift, plus=plus)


class SpatialBlock(nn.Module):
    """A transformer block of each frame's tokens."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.norm3 = block.norm1, block.norm3
        self.attention, self.feed_forward = FusedAttention(block.attn1), FusedFeedForward(block.ff)
        # Cross-attention to one token answers the same to every query (see `rewrites`).
        self.answer = nn.Sequential(block.attn2.to_v, block.attn2.to_out[0])
        self.across = False

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        x = self.attention(self.norm1(x), x, shift=self.answer(token), across=self.across)
        return self.feed_forward(self.norm3(x), x)


class TemporalBlock(SpatialBlock):
    """A transformer block of each pixel's tokens over the frames."""

    def __init__(self, block: Any) -> None:
        super().__init__(block)
        assert block.is_res, "SVD's temporal blocks keep their width"
        self.norm_in, self.feed_forward_in = block.norm_in, FusedFeedForward(block.ff_in)
        self.across = True

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return super().forward(self.feed_forward_in(self.norm_in(x), x), token)


class FrameTransformer(nn.Module):
    """diffusers' TransformerSpatioTemporalModel."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.norm, self.time_proj, self.time_pos_embed = model.norm, model.time_proj, model.time_pos_embed
        self.proj_in = FusedLinear(model.proj_in.weight, model.proj_in.bias)
        self.proj_out = FusedLinear(model.proj_out.weight, model.proj_out.bias)
        self.spatial = nn.ModuleList(map(SpatialBlock, model.transformer_blocks))
        self.temporal = nn.ModuleList(map(TemporalBlock, model.temporal_transformer_blocks))
        self.share = float(temporal_share(model.time_mixer))

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        image_only_indicator: Tensor,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        frames = image_only_indicator.shape[-1]
        films = _films(hidden_states, frames), _films(encoder_hidden_states, frames)
        return (_joined([self._film(*film) for film in zip(*films, strict=True)]),)

    def _film(self, x: Tensor, context: Tensor) -> Tensor:
        frames, height = len(x), x.shape[2]
        x, token = x.contiguous(memory_format=torch.channels_last), context[0, 0]
        hidden = self.proj_in(_tokens(group_norm(self.norm, x)))
        places = self.time_proj(torch.arange(frames, device=x.device)).to(x.dtype)
        places = self.time_pos_embed(places)[:, None]
        for spatial, temporal in zip(self.spatial, self.temporal, strict=True):
            hidden = spatial(hidden, token)
            hidden = torch.lerp(hidden, temporal(hidden + places, token), self.share)
        return _pictures(self.proj_out(hidden, plus=_tokens(x)), height)


class FrameResBlock(nn.Module):
    """diffusers' SpatioTemporalResBlock, the blend folded into its last convolution."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        pictures, frames = block.spatial_res_block, block.temporal_res_block
        assert pictures.output_scale_factor == 1, "SVD's residual blocks are not scaled"
        self.norms = nn.ModuleList([pictures.norm1, pictures.norm2, frames.norm1, frames.norm2])
        share = temporal_share(block.time_mixer)
        self.conv1, self.conv2 = FusedConv(pictures.conv1), FusedConv(pictures.conv2)
        self.conv3, self.conv4 = FusedConv(frames.conv1), FusedConv(frames.conv2, share)
        self.shortcut = None if pictures.conv_shortcut is None else FusedConv(pictures.conv_shortcut)
        self.times = nn.ModuleList(filter(None, (pictures.time_emb_proj, frames.time_emb_proj)))

    def forward(
        self, hidden_states: Tensor, temb: Tensor | None = None, *, image_only_indicator: Tensor
    ) -> Tensor:
        frames = image_only_indicator.shape[-1]
        films = _films(hidden_states, frames)
        times = [None] * len(films) if temb is None else temb[::frames]
        return _joined([self._film(*film) for film in zip(films, times, strict=True)])

    def _film(self, x: Tensor, time: Tensor | None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        shifts = [None] * 2 if time is None else [project(functional.silu(time)) for project in self.times]
        hidden = self.conv1(group_norm(self.norms[0], x, silu=True), shift=shifts[0])
        hidden = group_norm(self.norms[1], hidden, silu=True)
        # In place only where the sum is the block's own: what it was given may be a skip connection.
        if self.shortcut is None:
            x = self.conv2(hidden, plus=x)
        else:
            x = self.conv2.add_to(self.shortcut(x), hidden)
        over_frames = _tokens(x)[None].permute(0, 3, 1, 2)
        hidden = self.conv3(group_norm(self.norms[2], over_frames, silu=True), shift=shifts[1])
        self.conv4.add_to(over_frames, group_norm(self.norms[3], hidden, silu=True))
        return x


class PictureAttention(nn.Module):
    """The attention of an autoencoder's middle: over each picture's pixels, with its norm and residual."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.norm, self.attention = attention.group_norm, FusedAttention(attention)

    def forward(self, x: Tensor) -> Tensor:
        return _pictures(self.attention(_tokens(group_norm(self.norm, x)), _tokens(x)), x.shape[2])


class PictureNorm(nn.Module):
    """A group norm outside of the blocks."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return group_norm(self.norm, x)


BLOCKS: dict[type, type[nn.Module]] = {
    SpatioTemporalResBlock: FrameResBlock,
    TransformerSpatioTemporalModel: FrameTransformer,
    Attention: PictureAttention,
    nn.GroupNorm: PictureNorm,
}


def group_norm(norm: Any, x: Tensor, *, silu: bool = False) -> Tensor:
    """Normalise channels-last (n, C, H, W), and apply SiLU when asked."""
    if x.shape[2] * x.shape[3] >= SMALL_MAP:
        answer = norm(x)
        return functional.silu(answer, inplace=True) if silu else answer
    exact = _tokens(x).to(torch.promote_types(x.dtype, torch.float32))
    count = exact.shape[1] * exact.shape[2] // norm.num_groups

    def moment(y: Tensor) -> Tensor:
        return y.sum(1).view(len(y), norm.num_groups, -1).sum(-1, keepdim=True) / count

    mean, square = moment(exact), moment(exact.square())
    weight, bias = (part.to(exact.dtype).view(norm.num_groups, -1) for part in (norm.weight, norm.bias))
    scale = (square - mean.square() + norm.eps).rsqrt() * weight
    shift = torch.addcmul(bias, mean, scale, value=-1)
    answer = torch.addcmul(shift.flatten(1)[:, None], exact, scale.flatten(1)[:, None])
    if silu:
        answer = functional.silu(answer, inplace=True)
    return _pictures(answer.to(x.dtype), x.shape[2])


def fuse(network: nn.Module, *, pack: bool) -> None:
    """Swap the blocks; with `pack`, the network keeps to its number format from the first call on."""
    _swap(network)
    channels_last(network)
    for module in network.modules():
        if isinstance(module, Packing):
            module.packs = pack


def _swap(network: nn.Module) -> None:
    for name, child in list(network.named_children()):
        if type(child) in BLOCKS:
            setattr(network, name, BLOCKS[type(child)](child))
        else:
            _swap(child)


def channels_last(network: nn.Module) -> None:
    """Lay the convolutions' weights out by channels last, which `Module.to` refuses beside 5-D ones."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for weight in network.parameters():
        if weight.ndim in formats:
            weight.data = weight.data.contiguous(memory_format=formats[weight.ndim])


def temporal_share(blender: AlphaBlender) -> Tensor:
    """Weight of the temporal side for films (no frame is an image on its own)."""
    learned = cast(Tensor, blender.mix_factor).double()
    alpha = learned if blender.merge_strategy == "fixed" else torch.sigmoid(learned)
    return alpha if blender.switch_spatial_to_temporal_mix else 1 - alpha


def _softmax(scores: Tensor) -> Tensor:
    if scores.shape[-1] >= SHORT_ROW:
        return scores.softmax(-1)
    return scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1).to(scores.dtype)


def _tokens(pictures: Tensor) -> Tensor:
    """Channels-last (n, C, H, W) seen as (n, H * W, C)."""
    return pictures.permute(0, 2, 3, 1).flatten(1, 2)


def _pictures(tokens: Tensor, height: int) -> Tensor:
    """(n, H * W, C) seen as channels-last (n, C, H, W)."""
    return tokens.view(len(tokens), height, -1, tokens.shape[-1]).permute(0, 3, 1, 2)


def _films(x: Tensor, frames: int) -> list[Tensor]:
    return [x[first : first + frames] for first in range(0, len(x), frames)]


def _joined(films: list[Tensor]) -> Tensor:
    return films[0] if len(films) == 1 else torch.cat(films)
