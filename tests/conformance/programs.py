"""Running a client program as its own process and reading the JSON lines it prints."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Only these reach a program from the test's own environment: nothing of the machine leads a client astray.
KEPT = ("PATH", "HOME", "TMPDIR", "LANG")


@dataclass(frozen=True)
class Outcome:
    """What one action came to: exactly one of the two is set."""

    value: Any = None
    error: dict[str, Any] | None = None

    def film(self) -> dict[str, Any]:
        """Return the model's output; fails with the client's error when there is none."""
        assert self.error is None, self.error
        return self.value.get("output", self.value)

    def refusal(self) -> dict[str, Any]:
        assert self.error is not None, f"was accepted: {self.value}"
        return self.error


def run(
    command: Sequence[str | Path],
    env: Mapping[str, str],
    *,
    cwd: Path | None = None,
    timeout_s: float = 120,
) -> str:
    """Run a program to its end and return its stdout; it must exit by itself, with status 0."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    done = subprocess.run(
        command, env={**kept, **env}, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def outcomes(stdout: str) -> dict[str, Outcome]:
    lines = [json.loads(line) for line in stdout.splitlines()]
    return {line["action"]: Outcome(line.get("value"), line.get("error")) for line in lines}
