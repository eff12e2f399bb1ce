"""Engines on tiny random weights, made once a session."""

import gc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stillmotion.errors import RequestCancelled
from stillmotion.types import Assignment, Level, Sampler

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and transformers warn about their own imports
    from stillmotion.engine import Engine
    from tests.engine import tiny

from stillmotion.profiles import parse_profile
from tests.hub import LocalHub, running_hub


@pytest.fixture(scope="module", autouse=True)
def only_this_module_makes_garbage() -> None:
    """Spare collections what was imported before, half a second each; the engine asks for many."""
    gc.collect()
    gc.freeze()
    # Compiling makes so many objects, and keeps them, that torch's own would be looked through all the time.
    gc.set_threshold(10_000)


@dataclass
class Notebook:
    """A real report that remembers, and cancels when told to."""

    cancel_after: int | None = None
    lines: list[tuple[Level, str]] = field(default_factory=list)
    seen: list[tuple[str, int, int]] = field(default_factory=list)

    def log(self, message: str, level: Level = Level.INFO) -> None:
        self.lines.append((level, message))

    def progress(self, stage: str, step: int, steps: int) -> None:
        self.seen.append((stage, step, steps))

    def check_cancelled(self) -> None:
        steps = sum(stage == "denoise" for stage, _, _ in self.seen)
        if self.cancel_after is not None and steps >= self.cancel_after:
            raise RequestCancelled


@pytest.fixture(scope="session")
def kl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kl")
    tiny.write_kl(folder)
    return folder


@pytest.fixture(scope="session")
def cells_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cells")
    tiny.write_cells(folder)
    return folder


@pytest.fixture(scope="session")
def kl_engine(kl_folder: Path) -> Engine:
    return Engine(parse_profile(tiny.KL_PROFILE, Path("tiny-kl.toml")), kl_folder, "cpu")


@pytest.fixture(scope="session")
def cells_engine(cells_folder: Path) -> Engine:
    return Engine(parse_profile(tiny.CELLS_PROFILE, Path("tiny-cells.toml")), cells_folder, "cpu")


@pytest.fixture
def hub(repositories: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A running hub of what the test's module has written as `repositories`."""
    # The engine, imported above, takes its own process off the network; pull runs in another.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with running_hub(repositories) as running:
        yield running


@pytest.fixture
def assign(tmp_path: Path) -> Callable[..., Assignment]:
    """Make an assignment, a small turbo film from a prompt unless told otherwise."""

    def made(**changes: Any) -> Assignment:
        told: dict[str, Any] = {
            "request_id": "r1",
            "attempt": 1,
            "sampler": Sampler.LCM,
            "prompt": "a red rocket",
            "picture": None,
            "width": 96,
            "height": 64,
            "steps": 2,
            "fps": 10,
            "motion_bucket_id": 127,
            "cond_aug": 0.02,
            "seed": 7,
            "output": str(tmp_path / "film.mp4"),
        }
        return Assignment(**(told | changes))

    return made
