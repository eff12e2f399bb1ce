"""`stillmotion doctor`: what the server needs, each with ok or what to do.

It changes nothing and imports no torch here: torch is asked in a process of its own, as the runner is.
"""

import json
import os
import shutil
import socket
import sqlite3
import struct
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import psutil
from rich.console import Console
from rich.markup import escape

from stillmotion.cli import devices
from stillmotion.cli.datadir import LOCK, Lock, read_announcement
from stillmotion.errors import DataRefused, UserError
from stillmotion.profiles import Profile
from stillmotion.settings import GIB, PREFIX, Settings, shell_environment

#: A day of small films; below it the database may not be able to commit.
DISK_BYTES = 2 * GIB
MEMORY_BYTES = 4 * GIB
OLDEST_SQLITE = (3, 35, 0)
TORCH_TIMEOUT_S = 120
_TORCH = """
import json, torch
names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
cpu = torch.backends.cpu.get_cpu_capability()
print(json.dumps({"version": torch.__version__, "cuda": names, "cpu": cpu}))
"""
_FREE = "import sys, torch; print(torch.cuda.mem_get_info(sys.argv[1])[0])"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    topic: str
    fact: str
    #: What to do; None means it is fine.
    cure: str | None = None


def doctor(settings: Settings) -> int:
    """Print every finding; returns 1 when something must be mended."""
    console = Console(soft_wrap=True, highlight=False)
    wrong = 0
    for check in CHECKS:
        for found in check(settings):
            mark = "[green]ok[/]  " if found.cure is None else "[red]mend[/]"
            console.print(f"{mark} {found.topic:8} {escape(found.fact)}")
            if found.cure is not None:
                wrong += 1
                console.print(f"              -> {escape(found.cure)}")
    console.print("All is well." if not wrong else f"{wrong} to mend.")
    return 1 if wrong else 0


def check_variables(settings: Settings) -> Iterable[Finding]:
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    for name in sorted(shell_environment()):
        if name.startswith(PREFIX) and name not in known:
            near = get_close_matches(name, known, 1)
            yield Finding("setting", f"{name} is none", f"did you mean {near[0]}?" if near else "unset it")


def check_python(settings: Settings) -> Iterable[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    cure = None if sys.version_info >= (3, 11) else "use Python 3.11 or newer"
    yield Finding("python", f"{version} at {sys.executable}", cure)


def check_torch(settings: Settings) -> Iterable[Finding]:
    asked = devices.ask_python(_TORCH, timeout_s=TORCH_TIMEOUT_S)
    if asked is None:
        yield Finding(
            "torch", f"did not load within {TORCH_TIMEOUT_S} s", "look at the disk and the GPU driver"
        )
        return
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        cure = "run `make setup`, or pip install torch; if that names the driver, install a newer one"
        yield Finding("torch", f"cannot be used: {last}", cure)
        return
    told = json.loads(asked.stdout.splitlines()[-1])
    yield Finding("torch", told["version"])
    yield Finding("device", ", ".join(told["cuda"]) or f"cpu ({told['cpu']}), no CUDA device")


def check_memory(settings: Settings) -> Iterable[Finding]:
    memory = psutil.virtual_memory()
    fact = f"{memory.available / GIB:.1f} GiB free of {memory.total / GIB:.1f} GiB"
    yield Finding("memory", fact, None if memory.available >= MEMORY_BYTES else "have 4 GiB free")


def check_disk(settings: Settings) -> Iterable[Finding]:
    wanted = settings.data_dir.absolute()
    place = next(path for path in (wanted, *wanted.parents) if path.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        yield Finding("disk", f"{place} is no folder this user may write to", "choose another --data-dir")
        return
    free = shutil.disk_usage(place).free
    cure = None if free >= DISK_BYTES else "make 2 GiB room, or choose another --data-dir"
    yield Finding("disk", f"{free / GIB:.1f} GiB free at {place}", cure)


def check_database(settings: Settings) -> Iterable[Finding]:
    if settings.database_url is not None:
        # Imported here: the other findings need no database library.
        from stillmotion.store.open import server_version

        try:
            yield Finding("database", f"PostgreSQL {server_version(settings.database_url)}")
        except DataRefused as error:
            yield Finding(
                "database", str(error).strip(), "mend STILLMOTION_DATABASE_URL, or start the database"
            )
        return
    version = sqlite3.sqlite_version_info
    if version < OLDEST_SQLITE:
        yield Finding("sqlite", sqlite3.sqlite_version, "use a Python built with SQLite 3.35 or newer")
        return
    note = ""
    if version < (3, 51, 3):
        # https://sqlite.org/wal.html#walresetbug needs two writing connections; this database has one.
        note = " (its WAL-reset bug cannot occur: one connection writes)"
    yield Finding("sqlite", sqlite3.sqlite_version + note)


def check_weights(settings: Settings) -> Iterable[Finding]:
    try:
        profile, why, chosen = devices.choose(settings)
    except UserError as error:
        yield Finding("weights", "no profile can run", str(error))
        return
    yield Finding("profile", f"{profile.name} ({why})")
    yield from check_profile_files(profile, settings.data_dir)
    # A running server fills the devices itself.
    if profile.memory and _running_server(settings.data_dir) is None:
        for device in chosen:
            if (free := free_gib(device)) is not None:
                yield check_preset(profile, settings.memory_preset, device, free)


def check_preset(profile: Profile, asked: str, device: str, free: float) -> Finding:
    """Say which memory preset a runner would take now."""
    try:
        preset = profile.choose_memory(asked, free)
    except UserError as error:
        return Finding("preset", f"none fits {device}", str(error))
    needs = f"{free:.1f} GiB free, {preset.needs_gib:g} needed"
    cure = None if preset.needs_gib <= free else "free some, or unset STILLMOTION_MEMORY_PRESET"
    return Finding("preset", f"{preset.name} on {device} ({needs})", cure)


def free_gib(device: str) -> float | None:
    """Ask a CUDA device, in a process of its own, for its free memory; None for what has none to tell."""
    if device == "cpu":
        return None
    asked = devices.ask_python(_FREE, device, timeout_s=TORCH_TIMEOUT_S)
    return int(asked.stdout) / GIB if asked and asked.returncode == 0 else None


def check_profile_files(profile: Profile, data_dir: Path) -> Iterable[Finding]:
    """Name every file of the weights that is absent or cut short."""
    folder = profile.weights_dir(data_dir)
    broken = [f"{part} is missing" for part in profile.missing_parts(data_dir)]
    files = sorted(folder.rglob("*.safetensors"))
    broken += [
        f"{file.relative_to(folder)} {problem}" for file in files if (problem := _safetensors_problem(file))
    ]
    for problem in broken:
        cure = "reinstall the package" if profile.bundled else f"run `stillmotion models pull {profile.name}`"
        yield Finding("weights", f"{problem} in {folder}", cure)
    if not broken:
        size = sum(file.stat().st_size for file in files)
        yield Finding("weights", f"{len(files)} files, {size / 1e6:.0f} MB in {folder}")


def _safetensors_problem(path: Path) -> str | None:
    """Compare the file's length with what its header says (format: huggingface.co/docs/safetensors)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size - 8:
            return "is cut short"
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return "has a damaged header"
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    wanted = 8 + length + max(ends, default=0)
    return None if size == wanted else f"has {size} bytes, its header says {wanted}"


def check_data(settings: Settings) -> Iterable[Finding]:
    running = _running_server(settings.data_dir)
    if running is not None:
        yield Finding("lock", f"held by {running}")
        return
    yield Finding("lock", f"free in {settings.data_dir}")
    for name, port in (("port", settings.port), ("tls port", settings.tls_port)):
        if port:
            yield _check_port(name, settings.host, port)


def _running_server(data_dir: Path) -> str | None:
    if not (data_dir / LOCK).exists():
        return None
    lock = Lock(data_dir)
    if lock.take():
        lock.release()
        return None
    told = read_announcement(data_dir)
    return lock.holder() if told is None else f"the server at {told.http} ({lock.holder()})"


def _check_port(name: str, host: str, port: int) -> Finding:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return Finding(
                name, f"{host}:{port}: {error.strerror}", "stop what uses it, or choose another port"
            )
    return Finding(name, f"{host}:{port} is free")


CHECKS: tuple[Callable[[Settings], Iterable[Finding]], ...] = (
    check_variables,
    check_python,
    check_torch,
    check_memory,
    check_disk,
    check_database,
    check_weights,
    check_data,
)
