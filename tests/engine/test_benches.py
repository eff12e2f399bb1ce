import sys
from pathlib import Path

import pytest
import torch

from bench import cpu, fidelity, gpu, rigs, work
from bench.memory import FullSize
from stillmotion.engine.compiling import Compilation, graphs
from stillmotion.profiles import load_profile


def rows(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "steps: " in line]


def test_gpu_bench_measures_stock_and_each_change_on_tiny_networks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--rounds", "1"])
    gpu.main()
    found = rows(capsys)
    assert len(found) == 2 * (1 + len(gpu.CHANGES))
    assert all(float(cell) > 0 for row in found for cell in row[1:5])
    # Films of the guided job differ from stock's by rounding alone.
    assert all(float(row[-1]) > 50 for row in found[-len(gpu.CHANGES) :])


def test_gpu_bench_measures_compiled_networks_by_the_engine_s_own_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = rigs.build("tiny", torch.device("cpu"), torch.float32, chunk=2)
    change = gpu.compiled(rig, Compilation("default", tmp_path, "eager"))
    before = graphs()
    gpu.measure(rig, gpu.TINY_JOBS[1], 1, [change], full=False)
    [_, found] = rows(capsys)
    assert found[0].endswith(": default, compiled: default ")
    assert float(found[-1]) > 50
    assert graphs() == before + 2


def test_full_size_networks_have_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        networks = rigs.full_networks()
    counted = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
    assert counted == [1_524_623_082, 97_742_847, 632_076_800]


@pytest.mark.parametrize(("size", "unet", "decode"), [((1024, 576), 79.95, 173.6), ((512, 512), 31.71, 76.1)])
def test_work_of_the_full_size_networks_is_the_published_count(
    size: tuple[int, int], unet: float, decode: float
) -> None:
    plain, rewritten, vae, clip = work.networks()
    assert work.unet_call(plain, size) == pytest.approx(unet, rel=2e-3)
    assert work.unet_call(rewritten, size) == pytest.approx(unet * (1 - 0.036), rel=5e-3)
    assert work.decoding(vae, size) == pytest.approx(decode, rel=2e-3)
    assert work.encoding(vae, clip, (1024, 576)) == pytest.approx(2.6 + 0.33, rel=2e-2)


def test_work_is_told_for_each_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["work"])
    monkeypatch.setattr(work, "SIZES", work.SIZES[:1])
    work.main()
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith("| 1024×576 | 79.95 | 173.6 | 496, 0.63 s | 4174, 5.28 s |")


def test_cpu_bench_compares_films_and_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["cpu", "--kind", "tiny", "--rounds", "1", "--steps", "2", "--threads", "1"]
    )
    cpu.main()
    found = rows(capsys)
    assert len(found) == 6
    assert float(found[1][-1]) > 50
    assert all(float(row[-1]) > 30 for row in found if "–" not in row[-1])


def test_fidelity_is_told_for_each_job_and_number_format(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fidelity", "--kind", "tiny", "--steps", "2", "--threads", "1"])
    fidelity.main()
    found = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "| tiny" in line]
    assert len(found) == 2 * 4
    assert all(float(row[2]) > (70 if "float32" in row[1] else 40) for row in found)
    assert all(float(row[4]) > 20 for row in found)


def test_each_memory_preset_of_svd_asks_for_what_is_counted_and_no_more() -> None:
    full = FullSize()
    presets = load_profile("svd").memory_presets
    for preset in presets:
        assert full.needs_gib(preset) <= preset.needs_gib < full.needs_gib(preset) + 0.2
    assert [preset.needs_gib for preset in presets] == sorted((p.needs_gib for p in presets), reverse=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_gpu_bench_says_in_one_line_that_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    gpu.main()
    assert len(capsys.readouterr().out.splitlines()) == 1
