"""Linear layers in float8, on the CPU: the same arithmetic as plain products of dequantised numbers."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.memory import GIB, FullSize, peak
from stillmotion.engine import rewrites
from stillmotion.engine.compiling import Compilation, Plan, compile_forward, graphs
from stillmotion.engine.float8 import FLOAT8, Float8Linear, float8_linears, scaled_rows
from stillmotion.engine.memory import Movable
from stillmotion.engine.weights import load_weights, pick_device
from stillmotion.errors import UserError
from stillmotion.profiles import MemoryPreset, Profile, change_profile, load_profile
from tests.engine import tiny
from tests.engine.test_rewrites import ask_unet, distance, unsettle

DTYPES = (torch.float32, torch.bfloat16)


def linear(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(96, 64).to(dtype).requires_grad_(False)


def tokens(dtype: torch.dtype) -> Tensor:
    """Rows of very different sizes, one of nothing."""
    sizes = torch.tensor([1e-3, 1.0, 300.0, 0.0]).repeat(2)[:, None]
    return (torch.randn(3, 8, 96, generator=torch.Generator().manual_seed(2)) * sizes).to(dtype)


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(3)
    return unsettle(tiny.film_unet(4)).float()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_is_the_product_of_its_dequantised_weights_and_inputs(dtype: torch.dtype) -> None:
    plain, x = linear(dtype), tokens(dtype)
    quick = Float8Linear(plain)
    (rows, by), (weight, per) = scaled_rows(x), (quick.weight, quick.scale)
    wanted = (rows.double() * by.double()) @ (weight.double() * per.double()) + plain.bias.double()
    answer = quick(x)
    assert answer.dtype == dtype
    assert distance(answer, wanted) < (1e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_row_loses_a_sixteenth_of_a_number_at_most_whatever_its_size(dtype: torch.dtype) -> None:
    x = tokens(dtype)
    rows, by = scaled_rows(x)
    assert rows.dtype == FLOAT8
    back, exact = rows.float() * by, x.float()
    # Half the last of three bits of mantissa; below 2**-6 of 448, steps are of one size.
    allowed = exact.abs() / 16 + exact.abs().amax(-1, keepdim=True) * 2**-10 / 448
    assert ((back - exact).abs() <= allowed * 1.01).all()
    assert not back[:, 3].any()


def test_numbers_that_are_none_stay_so() -> None:
    x = tokens(torch.bfloat16)
    x[0, 0, 0] = float("inf")
    answer = Float8Linear(linear(torch.bfloat16))(x)
    assert not answer[0, 0].isfinite().any()
    assert answer[1:].isfinite().all()


def test_of_a_unet_self_attention_and_feed_forwards_are_swapped_and_no_other(unet: Any) -> None:
    quick = copy.deepcopy(unet)
    rewrites.rewrite_unet(quick)
    float8_linears(quick)
    swapped = {name for name, module in quick.named_modules() if isinstance(module, Float8Linear)}
    kept = {name for name, module in quick.named_modules() if isinstance(module, nn.Linear)}
    assert {name.split(".")[-2] for name in swapped if name.split(".")[-1].isdigit()} == {"to_out", "net"}
    assert {part for name in swapped for part in name.split(".") if part in ("attn1", "ff", "ff_in")} == {
        "attn1",
        "ff",
        "ff_in",
    }
    assert not any(part in name for name in kept for part in (".attn1.", ".ff.", ".ff_in."))
    with torch.inference_mode():
        exact = ask_unet(unet, 1, 8, 16)
        assert 1e-3 < distance(ask_unet(quick, 1, 8, 16), exact.double()) < 5e-2


def test_a_unet_fused_for_the_cpu_is_not_taken_for_one(unet: Any) -> None:
    fused = copy.deepcopy(unet).bfloat16()
    rewrites.rewrite_unet(fused)
    with pytest.raises(AssertionError):
        float8_linears(fused)


def test_it_compiles_to_one_graph_and_leaves_and_comes_as_it_was(unet: Any, tmp_path: Path) -> None:
    quick = copy.deepcopy(unet)
    float8_linears(quick)
    with torch.inference_mode():
        wanted = ask_unet(quick, 1, 8, 16)
        part = Movable((quick,), torch.device("cpu"))
        part.leave()
        part.come()
        assert ask_unet(quick, 1, 8, 16).equal(wanted)
        before = graphs()
        compile_forward(quick, Compilation("default", tmp_path, "eager"), Plan(frozenset(((8, 16),)), 2))
        assert ask_unet(quick, 1, 8, 16).equal(wanted)
        assert graphs() == before + 1
    torch.compiler.reset()


def test_it_takes_less_memory_than_bfloat16_in_every_preset_of_svd() -> None:
    full, slices = FullSize(), {preset.feed_forward_frames for preset in load_profile("svd").memory}
    assert slices == {0, 5}

    def counted() -> list[int]:
        peak.cache_clear()
        return [full.weight("unet") + peak(full.denoise, frames) for frames in sorted(slices)]

    before, weight = counted(), full.weight("unet")
    float8_linears(full.unet)
    assert weight - full.weight("unet") == pytest.approx(0.543e9, rel=1e-3)
    assert all(now < then - 0.4 * GIB for now, then in zip(counted(), before, strict=True))
    peak.cache_clear()


def asking(text: str = "") -> Profile:
    return change_profile(tiny.KL_PROFILE, f"dtype.cuda_float8 = true\n{text}", Path("own.toml"))


def test_both_video_unets_have_it_on_cuda_and_none_on_a_cpu(kl_folder: Path) -> None:
    # Parts that wait for their stage are loaded into host memory, so that this needs no GPU.
    waiting = MemoryPreset(name="none", needs_gib=0)
    for device, wanted in (("cuda", True), ("cpu", False)):
        weights = load_weights(asking(), kl_folder, torch.device(device), torch.bfloat16, waiting)
        for unet in weights.unets.values():
            assert any(isinstance(module, Float8Linear) for module in unet.modules()) == wanted


@pytest.mark.parametrize(("capability", "allowed"), [((8, 0), False), ((8, 9), True), ((9, 0), True)])
def test_gpus_that_have_no_float8_are_refused(
    capability: tuple[int, int], allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    if allowed:
        assert pick_device("cuda:0", asking()) == torch.device("cuda:0")
        return
    with pytest.raises(UserError, match=r"compute capability 8\.9 or more.*A100 has 8\.0"):
        pick_device("cuda:0", asking())


def test_it_asks_for_bfloat16_beside_it() -> None:
    with pytest.raises(
        UserError, match=r"dtype.cuda is 'float16', it must be 'bfloat16' for dtype.cuda_float8"
    ):
        asking("dtype.cuda = 'float16'")
