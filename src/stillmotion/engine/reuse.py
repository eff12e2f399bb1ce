"""Reuse of deep features between steps (DeepCache, arXiv 2312.00858).

A skip connection cuts the UNet in two. What its lower side hands up, the deep features, changes little from
one step to the next; so some calls are given those of an earlier call and compute the upper side alone.
Connections are counted from the outermost, 0, as DeepCache counts its branches.

Nothing is kept here: features are an answer and an argument, so whoever runs the steps of one film owns them.
diffusers' own forward is the slow twin (`tests/engine/test_reuse.py`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stillmotion.errors import UserError

from diffusers.models.unets.unet_spatio_temporal_condition import (  # isort: skip
    UNetSpatioTemporalConditionModel,
)


#: Features of one layer to those of the next.
Layer = Callable[..., Tensor]


class Answer(NamedTuple):
    """What the UNet predicts, and its deep features."""

    sample: Tensor
    deep: Tensor


class ReusingUNet(UNetSpatioTemporalConditionModel):
    """diffusers' network, layer by layer; takes its weights and every rewrite of its blocks."""

    #: The skip connection whose lower side can be left out.
    branch: int = 0

    def cut_at(self, branch: int) -> None:
        """Choose the skip connection; `samplers.euler.reuse_branch` of the profile."""
        net: Any = self
        deepest = sum(len(block.resnets) for block in net.up_blocks) - 1
        if branch > deepest:
            raise UserError(
                f"samplers.euler.reuse_branch is {branch}; this UNet's skip connections are 0 to {deepest}."
            )
        self.branch = branch

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  (fewer ways to call it)
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        added_time_ids: Tensor,
        deep: Tensor | None = None,
    ) -> Answer:
        """Answer as diffusers does, with the deep features; those given are taken instead of computed."""
        films, frames = sample.shape[:2]
        net: Any = self
        time = net.time_embedding(net.time_proj(timestep.expand(films)).to(sample.dtype))
        ids = net.add_time_proj(added_time_ids.flatten()).view(films, -1).to(time.dtype)
        told = {
            "temb": (time + net.add_embedding(ids)).repeat_interleave(frames, dim=0),
            "encoder_hidden_states": encoder_hidden_states.repeat_interleave(frames, dim=0),
            "image_only_indicator": sample.new_zeros(films, frames),
        }
        down, up = self._layers(told)
        skips: list[Tensor] = [net.conv_in(sample.flatten(0, 1))]
        for layer in down[: self.branch]:
            skips.append(layer(skips[-1]))
        above = len(up) - self.branch - 1
        if deep is None:
            for layer in down[self.branch :]:
                skips.append(layer(skips[-1]))
            deep = _climb(up[:above], net.mid_block(skips[-1], **told), skips)
        x = net.conv_out(net.conv_act(net.conv_norm_out(_climb(up[above:], deep, skips))))
        return Answer(x.view(films, frames, *x.shape[1:]), deep)

    def _layers(self, told: dict[str, Tensor]) -> tuple[list[Layer], list[tuple[Layer, Layer | None]]]:
        """List what makes a skip connection on the way down, and what takes one on the way up.

        The latter with the upsampler behind it, if there is one.
        """
        net: Any = self
        down: list[Layer] = []
        for block in net.down_blocks:
            down += [partial(_layer, *both, **told) for both in _pairs(block)]
            down += block.downsamplers or ()
        up: list[tuple[Layer, Any]] = []
        for block in net.up_blocks:
            layers = [partial(_layer, *both, **told) for both in _pairs(block)]
            (upsampler,) = block.upsamplers or (None,)
            up += zip(layers, [None] * (len(layers) - 1) + [upsampler], strict=True)
        return down, up


def _pairs(block: Any) -> list[tuple[Any, Any]]:
    """A block's residual blocks, each with the transformer behind it; SVD's lowest level has none."""
    resnets = list(block.resnets)
    return list(zip(resnets, getattr(block, "attentions", [None] * len(resnets)), strict=True))


def _layer(
    resnet: Any,
    attention: Any,
    x: Tensor,
    *,
    temb: Tensor,
    encoder_hidden_states: Tensor,
    image_only_indicator: Tensor,
) -> Tensor:
    x = resnet(x, temb, image_only_indicator=image_only_indicator)
    if attention is None:
        return x
    told = {"encoder_hidden_states": encoder_hidden_states, "image_only_indicator": image_only_indicator}
    return attention(x, **told, return_dict=False)[0]


def _climb(layers: list[tuple[Layer, Layer | None]], x: Tensor, skips: list[Tensor]) -> Tensor:
    """Go up through layers, each taking the last skip connection."""
    for layer, upsampler in layers:
        x = layer(torch.cat((x, skips.pop()), dim=1))
        if upsampler is not None:
            x = upsampler(x, skips[-1].shape[2:])
    return x
