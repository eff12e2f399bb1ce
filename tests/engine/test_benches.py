import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench import cpu, fidelity, gpu, levers, rigs, roofline, work
from bench.memory import FullSize
from bench.rows import Row, Rows
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
    kept = [lever for lever in gpu.LEVERS if not lever.reuse]
    usual = [row for row in found if "64x32" in row[0]]
    assert len(usual) == 2 * (1 + len(gpu.CHANGES)) + len(kept) + len(gpu.LEVERS)
    assert [row[0] for row in found[len(usual) :]] == [
        f" {job}, 32x64, 2 steps: {name} "
        for job in ("turbo", "HQ")
        for name in ("stock diffusers", "default")
    ]
    assert all(float(cell) > 0 for row in found for cell in row[1:5])
    guided = usual[-len(gpu.CHANGES + gpu.LEVERS) :]
    # Films of the guided job differ from stock's by rounding alone; with a lever, by more.
    assert all(float(row[-1]) > 50 for row in guided[: len(gpu.CHANGES)])
    assert all(30 < float(row[-1]) < 65 for row in guided[len(gpu.CHANGES) :])


@pytest.mark.parametrize(("base", "made", "db"), [(gpu.DEFAULT, 2, 50), (gpu.LEVERS[-1], 3, 30)])
def test_gpu_bench_measures_compiled_networks_by_the_engine_s_own_means(
    base: gpu.Change, made: int, db: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = rigs.build("tiny", torch.device("cpu"), torch.float32, chunk=2)
    change = gpu.compiled(rig, Compilation("default", tmp_path, "eager"), base)
    before = graphs()
    assert gpu.Bench(rig, gpu.TINY_JOBS[1], 1, Rows("here", None), "here", full=False).run([change])
    [_, found] = rows(capsys)
    assert found[0].endswith(f": {base.name}, compiled: default ")
    assert float(found[-1]) > db
    assert graphs() == before + made


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
    monkeypatch.setattr(work, "BRANCHES", work.BRANCHES[:1])
    work.main()
    told = capsys.readouterr().out
    assert "\n| 1024×576 | 79.95 | 173.6 | 496, 0.63 s | 4174, 5.28 s |" in told
    assert "\n| 0 | 6.57 | 2337, 2.96 s | 1774, 2.24 s |" in told


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


def test_levers_are_told_beside_what_they_change(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--kind", "tiny", "--films", "2", "--steps", "5", "--rows", "interval 2", "float8", "seeds"]
    monkeypatch.setattr(sys, "argv", ["levers", *asked])
    levers.main()
    found = {
        row[0].strip(): [cell.strip() for cell in row[1:]]
        for row in (line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[4:])
    }
    assert [name for name, cells in found.items() if cells[1] == "–"] == [
        "as served",
        "rewritten as on a GPU",
    ]
    assert len(found) == 6
    by_chance = float(found["other seeds"][1])
    assert by_chance < float(found["reuse, interval 2, branch 0"][1]) < float(found["the same, float8"][1])


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


def test_gpu_bench_that_is_cut_off_goes_on_with_the_next_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "rows.jsonl"
    monkeypatch.setattr(gpu, "TINY_JOBS", gpu.TINY_JOBS[1:])
    monkeypatch.setattr(gpu, "TINY_SIZES", ())
    monkeypatch.setattr(gpu, "CHANGES", gpu.CHANGES[:2])
    monkeypatch.setattr(gpu, "LEVERS", gpu.LEVERS[-2:])
    called = ["gpu", "--tiny", "--rounds", "1", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", [*called, "--minutes", "1e-9"])
    gpu.main()
    assert "the same command goes on" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", called)
    gpu.main()
    whole = rows(capsys)
    assert len(whole) == 5
    # Killed while it wrote its last row but one.
    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(lines[:3]) + lines[3][:20])
    gpu.main()
    again = rows(capsys)
    assert again[:3] == whole[:3]
    assert [row[0] for row in again] == [row[0] for row in whole]
    assert len(results.read_text().splitlines()) == 5


def test_the_decoder_s_weights_stay_where_a_cuda_graph_has_recorded_them() -> None:
    rig = rigs.build("tiny", torch.device("cpu"), torch.bfloat16, chunk=2)
    places: list[list[int]] = []
    for _ in range(2):
        rigs.ours(rig, gpu.TINY_JOBS[0])
        places.append([weight.data_ptr() for weight in rig.vae.decoder.parameters()])
    assert places[0] == places[1]


def test_a_row_s_peak_is_read_before_stock_runs_once_more_to_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    run = gpu.stock

    def stock(rig: rigs.Rig, job: rigs.Job) -> tuple[rigs.Seconds, rigs.Frames]:
        told.append("stock")
        return run(rig, job)

    def peak_gb(device: torch.device) -> float:
        told.append("peak")
        return 1.0

    monkeypatch.setattr(gpu, "stock", stock)
    monkeypatch.setattr(gpu, "peak_gb", peak_gb)
    kept = Row("here", "HQ, 64x32, 2 steps", "stock diffusers", dict.fromkeys(rigs.STAGES, 1.0), {})
    results = tmp_path / "rows.jsonl"
    results.write_text(json.dumps(asdict(kept)) + "\n")
    rig = rigs.build("tiny", torch.device("cpu"), torch.float32, chunk=2)
    bench = gpu.Bench(rig, gpu.TINY_JOBS[1], 1, Rows("here", results), "here", full=False)
    assert bench.run([gpu.DEFAULT])
    assert told == ["peak", "stock"]


def test_a_row_that_cannot_be_measured_says_why_and_the_others_are(tmp_path: Path) -> None:
    kept = Rows("here", tmp_path / "rows.jsonl")

    def fail() -> Row:
        raise RuntimeError("no kernel for this")

    failed = kept.take("turbo", "lever", fail)
    assert failed is not None
    assert gpu.line(failed) == "| turbo: lever | failed: RuntimeError: no kernel for this ||||||"

    def lose() -> Row:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(torch.AcceleratorError):
        kept.take("turbo", "another", lose)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 1


def test_the_roofline_draws_the_measured_rows_of_the_usual_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [Row("card", gpu.CARD, gpu.CEILINGS, {}, {"product": 790.0, "copy": 4.0, "host": 50.0})]
    for size in ((1024, 576), gpu.OTHER_SIZES[0]):
        counted = gpu.work_of(gpu.JOBS[0], size)
        seconds = {stage: tflop / 400 for stage, tflop in counted.items()}
        title = f"turbo, {size[0]}x{size[1]}, 4 steps"
        found += [
            Row("card", title, "default", seconds, counted),
            Row("card", title, "failed", {}, {}, failure="why"),
        ]
    results = tmp_path / "rows.jsonl"
    results.write_text("".join(json.dumps(asdict(row)) + "\n" for row in found))
    monkeypatch.setattr(sys, "argv", ["roofline", str(results)])
    roofline.main()
    assert capsys.readouterr().out == f"1 rows drawn in {tmp_path / 'rows.png'}\n"
    with Image.open(tmp_path / "rows.png") as picture:
        assert len(picture.convert("L").getcolors() or ()) > 50


def test_the_roofline_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "rows.jsonl"
    results.touch()
    monkeypatch.setattr(sys, "argv", ["roofline", str(results)])
    with pytest.raises(SystemExit):
        roofline.main()
