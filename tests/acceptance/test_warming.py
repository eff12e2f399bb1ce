"""What a caller sees of compiled networks: sizes that become warm, and a mode that cannot work."""

from pathlib import Path
from typing import Any

from tests.server import Server, ask_readiness, wait_until

WARMING_ENGINE = "tests.timed_engine:open_warming"


def readiness(server: Server) -> dict[str, Any]:
    return ask_readiness(server.url, 30).json()


def test_readyz_tells_how_many_sizes_are_warm(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Server(data, engine=WARMING_ENGINE) as server:
        assert readiness(server)["runners"] == [{"device": "cpu", "warm": 1, "sizes": 3}]
        for size in (2, 3):
            (data / f"warm-{size}").touch()
        whole = [{"device": "cpu", "warm": 3, "sizes": 3}]
        wait_until(lambda: readiness(server)["runners"] == whole, "all sizes to be warm")
        wait_until(lambda: "runner warm device=cpu sizes=3" in server.output(), "the log line")


def test_a_compile_mode_the_device_cannot_do_is_the_reason_in_readyz(tmp_path: Path) -> None:
    asked = {"STILLMOTION_COMPILE": "reduce-overhead", "STILLMOTION_DEVICES": "cpu"}
    with Server(tmp_path / "data", env=asked, wait=False) as server:
        server.wait_listening()
        refused = "CUDA graphs, which cpu has not; use default"
        wait_until(lambda: refused in readiness(server)["reason"], refused)
