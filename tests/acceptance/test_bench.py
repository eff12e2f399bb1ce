"""`stillmotion bench` beside a real server."""

import re

import pytest

from tests.server import Server, run_cli


@pytest.mark.parametrize("endpoint", ["fal-ai/fast-svd-lcm/text-to-video", "fal-ai/stable-video"])
def test_bench_tells_rate_latency_and_cost(server: Server, endpoint: str) -> None:
    done = run_cli(
        *("bench", "--data-dir", str(server.data_dir), "--endpoint", endpoint),
        *("--duration", "1", "--concurrency", "3", "--price", "3.6"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    head = re.match(r"(\S+), 3 at once: (\d+) films in ([\d.]+) s, 0 failed\n", done.stdout)
    assert head is not None and head[1] == endpoint
    made, elapsed = int(head[2]), float(head[3])
    assert made >= 3
    told = dict(re.findall(r"^(.*\S)  +([\d.]+)", done.stdout, re.MULTILINE))
    assert float(told["films per minute"]) == pytest.approx(made / elapsed * 60, rel=0.1)
    # Two decimals of each.
    busy = float(told["device seconds per film, mean"]) * made / elapsed
    assert float(told["devices busy, mean"]) == pytest.approx(busy, abs=0.01 * (made / elapsed + 1))
    assert 0 < float(told["devices busy, mean"]) <= 1
    assert float(told["cost per film at 3.6 an hour"]) == pytest.approx(0.001 * elapsed / made, abs=1e-4)


def test_bench_without_a_server_says_how_to_start_one(tmp_path: object) -> None:
    done = run_cli("bench", "--data-dir", str(tmp_path))
    assert done.returncode == 1
    assert "stillmotion serve" in done.stderr


def test_bench_names_the_endpoints(server: Server) -> None:
    done = run_cli("bench", "--data-dir", str(server.data_dir), "--endpoint", "fal-ai/flux")
    assert done.returncode == 1
    assert "fal-ai/stable-video" in done.stderr
