"""`models.lock`: what lies in a weights folder, its digests, and where each file was read from.

JSON beside the files. Nothing is in it that was not read: digests come from the bytes on disk, commits
from the hub's own answer.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from stillmotion.durable import write_whole
from stillmotion.errors import WeightsMissing

LOCK_NAME = "models.lock"
#: What a weights folder is made of, nothing of which can run code when loaded: tensors, settings, words.
DATA_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja"})
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedFile:
    size: int
    sha256: str
    repository: str
    #: The hub's commit; "" for files taken from a folder.
    commit: str = ""
    #: SHA-256 of the hub's own file where this one was cast from it.
    cast_from: str = ""


def read_lock(folder: Path) -> dict[str, LockedFile]:
    """Read a folder's lock by file path; empty when it has none."""
    path = folder / LOCK_NAME
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["version"] != VERSION:
            raise WeightsMissing(f"{path} has version {told['version']}; this Stillmotion reads {VERSION}.")
        return {name: LockedFile(**entry) for name, entry in told["files"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsMissing(f"{path} is damaged ({error}); remove it and pull or import again.") from error


def write_lock(folder: Path, files: Mapping[str, LockedFile]) -> None:
    """Write the lock whole or not at all."""
    entries = {name: asdict(files[name]) for name in sorted(files)}
    told = json.dumps({"version": VERSION, "files": entries}, indent=1)
    write_whole(folder / LOCK_NAME, f"{told}\n".encode(), 0o644)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
