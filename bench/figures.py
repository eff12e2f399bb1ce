"""What a benchmark prints: rows of one table, and the line that names the machine."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

from stillmotion.cli.bench import percentile

#: CPU features that decide how fast the networks run; the first found of each group is named.
ISA = (("amx_tile",), ("avx512_bf16",), ("avx512_vnni",), ("avx512f", "avx2", "avx", "asimd"))


@dataclass(frozen=True, slots=True)
class Row:
    """One measured thing; `includes` says what the number holds and how it was taken."""

    what: str
    value: str
    includes: str


def table(rows: Sequence[Row]) -> str:
    lines = ["| measured | value | what it includes |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {row.what} | {row.value} | {row.includes} |" for row in rows)])


def p50_p99_ms(seconds: Sequence[float]) -> str:
    return f"{percentile(seconds, 0.5) * 1000:.1f} / {percentile(seconds, 0.99) * 1000:.1f} ms"


def machine(disk: Path) -> str:
    """Name the machine and how busy it was; `disk` is where the databases of the run lie."""
    facts = Path("/proc/cpuinfo").read_text()
    cpu, flags = _cpu_field(facts, "model name") or platform.machine(), _cpu_field(facts, "flags", "Features")
    have = set(flags.split())
    isa = [next((flag for flag in group if flag in have), None) for group in ISA]
    ram = psutil.virtual_memory().total / 2**30
    load = ", ".join(f"{number:.2f}" for number in os.getloadavg())
    return (
        f"Machine: {cpu}, {os.cpu_count()} cores, {' '.join(filter(None, isa)) or 'no vector flags'}, "
        f"{ram:.0f} GiB RAM, {_file_system(disk)} under the database; Python {platform.python_version()}, "
        f"torch {version('torch')}; load average at start {load}."
    )


def _cpu_field(facts: str, *names: str) -> str:
    for line in facts.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in names:
            return value.strip()
    return ""


def _file_system(path: Path) -> str:
    """Name the file system a path lies on: a COMMIT costs nothing on tmpfs."""
    mounts = (line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines())
    holding = [(point, kind) for point, kind in mounts if path.resolve().is_relative_to(point)]
    return max(holding, key=lambda mount: len(mount[0]))[1]


def peak_mib(pid: int) -> float:
    """Read the most memory a process ever held resident (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(f"process {pid} has ended")


def runner_pid(server_pid: int) -> int:
    [runner] = [
        child.pid
        for child in psutil.Process(server_pid).children()
        if "stillmotion.runner" in child.cmdline()
    ]
    return runner
