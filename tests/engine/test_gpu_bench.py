import runpy
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[2] / "bench" / "gpu.py"


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    runpy.run_path(str(BENCH), run_name="__main__")


def test_bench_measures_both_loops_on_tiny_networks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--tiny", "--rounds", "1")
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "steps: " in line]
    assert len(rows) == 4
    assert all(float(cell) > 0 for row in rows for cell in row[1:5])


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_bench_says_in_one_line_that_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch)
    assert len(capsys.readouterr().out.splitlines()) == 1
