import sys

import pytest
import torch

from bench import cpu, gpu, rigs


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


def test_full_size_networks_have_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        networks = rigs.full_networks()
    counted = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
    assert counted == [1_524_623_082, 97_742_847, 632_076_800]


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_gpu_bench_says_in_one_line_that_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    gpu.main()
    assert len(capsys.readouterr().out.splitlines()) == 1
