"""Each rewrite of the video networks beside the module it replaces, in double precision, where only
rounding may differ."""

import copy
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from stillmotion.engine import rewrites
from tests.engine.tiny import film_unet

Rewrite = Callable[[nn.Module], None]
models: Any = diffusers
REWRITES = (
    rewrites.one_token_attention,
    rewrites.flat_frame_convolutions,
    rewrites.phase_upsampling,
    rewrites.sliced_attention,
    rewrites.rewrite_unet,
)


def unsettle(network: nn.Module) -> nn.Module:
    """Double precision, and no parameter left at the zero or half it was initialised to."""
    network.double().eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(torch.randn(parameter.shape, dtype=torch.float64) * 0.05)
    return network


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    torch.manual_seed(3)
    return unsettle(film_unet(4))


@pytest.fixture(scope="module")
def decoder() -> nn.Module:
    torch.manual_seed(4)
    vae = models.AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 3, block_out_channels=(32, 32, 64), layers_per_block=1
    )
    return unsettle(vae.decoder)


def ask_unet(unet: Any, films: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    cross = unet.config["cross_attention_dim"]
    return unet(
        noise(films, 4, 8, height, width),
        torch.tensor(0.5, dtype=torch.float64),
        encoder_hidden_states=noise(films, 1, cross),
        added_time_ids=noise(films, 3),
    ).sample


@pytest.mark.parametrize("rewrite", REWRITES)
@pytest.mark.parametrize("shape", [(1, 8, 16), (2, 8, 8), (1, 9, 7)], ids=["one", "two films", "odd sides"])
def test_unet_answers_the_same(
    unet: nn.Module, rewrite: Rewrite, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = copy.deepcopy(unet)
    rewrite(fast)
    with torch.inference_mode():
        # One slice holds few of the 8x16 tokens' scores, so that there are several.
        monkeypatch.setattr(rewrites.SlicedAttention, "SCORES", 3 * 128**2)
        torch.testing.assert_close(ask_unet(fast, *shape), ask_unet(unet, *shape), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("rewrite", [rewrites.flat_frame_convolutions, rewrites.phase_upsampling])
def test_decoder_answers_the_same(decoder: nn.Module, rewrite: Rewrite) -> None:
    fast = copy.deepcopy(decoder)
    rewrite(fast)
    latents = torch.randn((5, 4, 6, 8), generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    ordinary = torch.zeros(1, 5, dtype=torch.float64)
    with torch.inference_mode():
        stock = decoder(latents, num_frames=5, image_only_indicator=ordinary)
        torch.testing.assert_close(
            fast(latents, num_frames=5, image_only_indicator=ordinary), stock, atol=1e-9, rtol=1e-9
        )


@pytest.mark.parametrize(
    ("rewrite", "gone"),
    [
        (rewrites.one_token_attention, "to_q"),
        (rewrites.flat_frame_convolutions, "Conv3d"),
        (rewrites.phase_upsampling, "Upsample2D"),
    ],
)
def test_rewrite_leaves_none_of_what_it_replaces(unet: nn.Module, rewrite: Rewrite, gone: str) -> None:
    def found(network: nn.Module) -> int:
        names = [name for name, _ in network.named_modules() if ".attn2." in name]
        kinds = [type(module).__name__ for module in network.modules()]
        return sum(name.endswith(gone) for name in names) + kinds.count(gone)

    fast = copy.deepcopy(unet)
    rewrite(fast)
    assert found(unet) > 0
    assert found(fast) == 0
