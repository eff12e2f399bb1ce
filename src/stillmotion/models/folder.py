"""A profile's weights folder: filled by pull or import, described by its lock, verified and removed."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from stillmotion.errors import UserError, WeightsMissing
from stillmotion.lockfile import DATA_SUFFIXES, LOCK_NAME, LockedFile, digest, read_lock, write_lock
from stillmotion.models.casting import cast_to_half
from stillmotion.models.hub import Hub, RemoteFile
from stillmotion.models.selection import pipeline_files
from stillmotion.profiles import INDEX, Profile, Source

#: Downloads under way; kept when a pull is interrupted.
STAGING = ".pull"
#: Files are written whole before the old ones go: leave the system some room.
SPARE_BYTES = 1 << 30

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Flaw:
    path: str
    problem: str


def _checked_sources(profile: Profile, folder: Path) -> tuple[Source, ...]:
    """A profile's sources; raises UserError for bundled weights, unsafe formats and mixed-up folders."""
    if not profile.sources:
        raise UserError(
            f"The weights of profile {profile.name} ship with Stillmotion; "
            "there is nothing to fetch or to check."
        )
    listed = [name for source in profile.sources for name in source.files]
    if unsafe := [name for name in listed if Path(name).suffix not in DATA_SUFFIXES]:
        raise UserError(
            f"Profile {profile.name} names {', '.join(unsafe)}; only safetensors, JSON and text are loaded."
        )
    lock = read_lock(folder)
    for source in profile.sources:
        here, ours = source.place(""), {each.repository for each in profile.sources}
        held = [path for path in lock if here and path.startswith(here) and (folder / path).is_file()]
        if not source.files and (others := {lock[path].repository for path in held} - ours):
            raise UserError(
                f"{folder / here} holds files of {', '.join(sorted(others))}, which those of "
                f"{source.repository} must not be mixed with; name another folder, or delete that one."
            )
    return profile.sources


def plan_pull(profile: Profile, folder: Path, hub: Hub) -> tuple[list[RemoteFile], list[RemoteFile]]:
    """Ask the hub for everything the profile wants; return all of it, and what is not here yet."""
    sources = _checked_sources(profile, folder)
    remote = [file for source in sources for file in hub.describe(source, profile.variant_in(source.folder))]
    lock = read_lock(folder)
    return remote, [file for file in remote if not _is_here(file, folder, lock.get(file.path))]


def pull(missing: list[RemoteFile], folder: Path, hub: Hub, say: Say) -> None:
    """Fetch, verify, cast where the source says so, and lock; each file is whole before it has its name."""
    needed = sum(file.size for file in missing) + SPARE_BYTES
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free and {needed / 1e9:.1f} GB are needed; free some, or "
            "choose another disk with --data-dir."
        )
    for file in missing:
        say(f"{file.source.repository}/{file.name} ({file.size / 1e6:,.1f} MB)")
        arrived = hub.fetch(file, folder / STAGING)
        _place(arrived, folder, file.source, file.name, commit=file.commit)
    shutil.rmtree(folder / STAGING, ignore_errors=True)


def import_from(profile: Profile, folder: Path, origin: Path, say: Say) -> None:
    """Take weights that are on disk: a weights folder, hub repositories side by side, or a hub cache."""
    found = {
        (source, name): _find(origin, source, name)
        for source in _checked_sources(profile, folder)
        for name in source.files or _found_pipeline(origin, source, profile.variant_in(source.folder))
    }
    if absent := [f"{source.repository}/{name}" for (source, name), path in found.items() if path is None]:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise WeightsMissing(
            f"{origin} lacks {', '.join(absent[:3])}{more}. Looked for each as in a weights folder, as "
            "OWNER/NAME/FILE, as NAME/FILE and in a hub cache (models--OWNER--NAME/snapshots)."
        )
    for (source, name), path in found.items():
        assert path is not None, "absent files were refused above"
        if path.suffix == ".safetensors":
            _check_header(path)
        say(f"{path}")
        copy = folder / STAGING / source.place(name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.unlink(missing_ok=True)
        shutil.copyfile(path, copy)
        _place(copy, folder, source, name)
    shutil.rmtree(folder / STAGING, ignore_errors=True)


def verify(profile: Profile, folder: Path) -> Iterator[Flaw | str]:
    """Hash every file against the lock; yields the path of a good one and a Flaw of a bad one."""
    lock = read_lock(folder)
    sources = _checked_sources(profile, folder)
    for path in [source.place(name) for source in sources for name in source.known_files(lock)]:
        locked = lock.get(path)
        if locked is None:
            yield Flaw(path, f"not in {LOCK_NAME}: pull or import it")
        elif not (folder / path).is_file():
            yield Flaw(path, "not there: pull or import it again")
        elif (folder / path).stat().st_size != locked.size or digest(folder / path) != locked.sha256:
            yield Flaw(path, "other bytes than the lock names: delete it and pull or import it again")
        else:
            yield path


def remove(folder: Path) -> int:
    """Delete a weights folder; return the bytes it held."""
    held = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
    if folder.exists():
        shutil.rmtree(folder)
    return held


def _place(arrived: Path, folder: Path, source: Source, name: str, *, commit: str = "") -> None:
    path = source.place(name)
    original = ""
    if name in source.cast:
        original = digest(arrived)
        half = arrived.with_name(f"{arrived.name}.half")
        cast_to_half(arrived, half)
        half.replace(arrived)
    entry = LockedFile(
        size=arrived.stat().st_size,
        sha256=digest(arrived),
        repository=source.repository,
        commit=commit,
        cast_from=original,
    )
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(arrived, target)
    write_lock(folder, read_lock(folder) | {path: entry})


def _is_here(file: RemoteFile, folder: Path, locked: LockedFile | None) -> bool:
    path = folder / file.path
    if locked is None or not path.is_file() or path.stat().st_size != locked.size:
        return False
    return locked.commit == file.commit or (file.sha256 in {locked.sha256, locked.cast_from})


def _found_pipeline(origin: Path, source: Source, variant: str) -> list[str]:
    """Name the files of a whole pipeline where its index lies."""
    index = _find(origin, source, INDEX)
    if index is None:
        return [INDEX]
    home = index.parent
    files = sorted(path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file())
    try:
        names = pipeline_files(json.loads(index.read_bytes()), files, variant)
        shards = [shard for name in names if ".index." in name for shard in _shards(home, name)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsMissing(f"An index of {home} cannot be read: {error}.") from error
    return list(dict.fromkeys((*shards, *names)))


def _shards(home: Path, index: str) -> Iterator[str]:
    for shard in json.loads((home / index).read_bytes())["weight_map"].values():
        # An index comes from anywhere: it must lead to no other file, nor to a place of another.
        if Path(shard).name != shard or Path(shard).suffix != ".safetensors":
            raise WeightsMissing(
                f"{home / index} names {shard}, which is no shard beside it; the repository is damaged or "
                "not to be trusted. Fetch it again, or name another under first_frame."
            )
        yield f"{index.rpartition('/')[0]}/{shard}"


def _find(origin: Path, source: Source, name: str) -> Path | None:
    owner, _, short = source.repository.partition("/")
    cached = sorted(origin.glob(f"models--{owner}--{short}/snapshots/*/{name}"))
    homes = [
        origin / source.place(name),
        origin / source.repository / name,
        origin / short / name,
        *cached,
    ]
    return next((path for path in homes if path.is_file()), None)


def _check_header(path: Path) -> None:
    """Read a safetensors header, which names every tensor's place and so finds files cut short."""
    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise WeightsMissing(f"{path} cannot be read as safetensors: {error}.") from error
