"""Each rewrite of the video networks beside the module it replaces, in double precision, where only
rounding may differ; oneDNN's operations, which have none, in float32."""

import copy
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from stillmotion.engine import fused, rewrites
from tests.engine.tiny import film_unet

Rewrite = Callable[[nn.Module], None]
models: Any = diffusers
REWRITES = (
    rewrites.one_token_attention,
    rewrites.flat_frame_convolutions,
    rewrites.phase_upsampling,
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


def distance(answer: Tensor, exact: Tensor) -> float:
    """Difference relative to the exact answer's norm."""
    return float((answer.double() - exact).norm() / exact.norm())


def ask_decoder(decoder: Any) -> Tensor:
    latents = torch.randn((5, 4, 6, 8), generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    dtype = next(decoder.parameters()).dtype
    return decoder(latents.to(dtype), num_frames=5, image_only_indicator=torch.zeros(1, 5, dtype=dtype))


def ask_unet(unet: Any, films: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(unet.dtype)

    cross = unet.config["cross_attention_dim"]
    return unet(
        noise(films, 4, 8, height, width),
        torch.tensor(0.5, dtype=torch.float64),
        encoder_hidden_states=noise(films, 1, cross),
        added_time_ids=noise(films, 3),
    ).sample


@pytest.mark.parametrize("rewrite", REWRITES)
@pytest.mark.parametrize("shape", [(1, 8, 16), (2, 8, 8), (1, 9, 7)], ids=["one", "two films", "odd sides"])
def test_unet_answers_the_same(unet: nn.Module, rewrite: Rewrite, shape: tuple[int, int, int]) -> None:
    fast = copy.deepcopy(unet)
    rewrite(fast)
    with torch.inference_mode():
        torch.testing.assert_close(ask_unet(fast, *shape), ask_unet(unet, *shape), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("rewrite", [rewrites.flat_frame_convolutions, rewrites.phase_upsampling])
def test_decoder_answers_the_same(decoder: nn.Module, rewrite: Rewrite) -> None:
    fast = copy.deepcopy(decoder)
    rewrite(fast)
    with torch.inference_mode():
        torch.testing.assert_close(ask_decoder(fast), ask_decoder(decoder), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("shape", [(1, 8, 16), (2, 8, 8), (1, 9, 7)], ids=["one", "two films", "odd sides"])
def test_fused_unet_answers_the_same_in_float32(
    unet: nn.Module, pack: bool, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = copy.deepcopy(unet).float()
    fused.fuse(fast, pack=pack)
    # One slice holds few of the 8x16 tokens' scores, so that there are several.
    monkeypatch.setattr(fused, "SCORES", 3 * 128**2)
    with torch.inference_mode():
        assert distance(ask_unet(fast, *shape), ask_unet(unet, *shape)) < 5e-6


@pytest.mark.parametrize("small", [0, fused.SMALL_MAP], ids=["torch's group norm", "own group norm"])
def test_fused_decoder_answers_the_same_in_float32(
    decoder: nn.Module, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = copy.deepcopy(decoder).float()
    fused.fuse(fast, pack=False)
    monkeypatch.setattr(fused, "SMALL_MAP", small)
    with torch.inference_mode():
        assert distance(ask_decoder(fast), ask_decoder(decoder)) < 5e-6


def test_bfloat16_on_the_cpu_loses_no_more_when_fused(unet: nn.Module, decoder: nn.Module) -> None:
    half_unet, half_decoder = copy.deepcopy(unet).bfloat16(), copy.deepcopy(decoder).bfloat16()
    fast_unet, fast_decoder = copy.deepcopy(half_unet), copy.deepcopy(half_decoder)
    rewrites.rewrite_unet(fast_unet)
    rewrites.rewrite_decoder(fast_decoder, torch.device("cpu"))
    assert not any(isinstance(module, nn.Conv3d) for module in fast_unet.modules())
    with torch.inference_mode():
        exact, exact_frames = ask_unet(unet, 1, 8, 16), ask_decoder(decoder)
        allowed = 1.1 * distance(ask_unet(half_unet, 1, 8, 16), exact)
        assert distance(ask_unet(fast_unet, 1, 8, 16), exact) < allowed < 0.1
        allowed = 1.1 * distance(ask_decoder(half_decoder), exact_frames)
        assert distance(ask_decoder(fast_decoder), exact_frames) < allowed < 0.1


def test_fused_decoder_changes_formats_and_back(decoder: nn.Module) -> None:
    fast = copy.deepcopy(decoder).bfloat16()
    rewrites.rewrite_decoder(fast, torch.device("cpu"))
    with torch.inference_mode():
        before = ask_decoder(fast)
        assert ask_decoder(fast.float()).dtype == torch.float32
        torch.testing.assert_close(ask_decoder(fast.bfloat16()), before, atol=0, rtol=0)


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
