"""`stillmotion models`: list, pull, import, verify and remove weights."""

import sys
from pathlib import Path

from rich.table import Table

from stillmotion.cli.tables import print_table
from stillmotion.errors import UserError
from stillmotion.models import folder as weights
from stillmotion.profiles import Profile, load_profile, profile_names
from stillmotion.settings import Settings


def show(settings: Settings) -> None:
    table = Table("profile", "state", "where", "licence", box=None, pad_edge=False)
    for name in profile_names():
        profile = load_profile(name, settings.data_dir)
        table.add_row(name, _state(profile, settings), str(_folder(profile, settings)), profile.licence)
    print_table(table)


def pull(settings: Settings, name: str, token: str | None, accepted: bool) -> None:
    # Imported here: `models list` needs no hub.
    from stillmotion.models.hub import Hub, total_size

    profile = load_profile(name, settings.data_dir)
    folder, hub = _folder(profile, settings), Hub(token)
    remote, missing = weights.plan_pull(profile, folder, hub)
    for source in profile.sources:
        files = [file for file in remote if file.source == source]
        print(f"{source.repository}, commit {files[0].commit[:12]}, {total_size(files) / 1e9:.2f} GB")
        print(f"  licence: {source.licence}")
    if not missing:
        print(f"All of it is in {folder} already.")
        return
    print(f"{len(missing)} of {len(remote)} files, {total_size(missing) / 1e9:.2f} GB, go to {folder}.")
    if not accepted:
        _ask_for_consent()
    weights.pull(missing, folder, hub, print)
    print(f"Profile {name} is complete: {folder}")


def bring(settings: Settings, name: str, origin: Path) -> None:
    profile = load_profile(name, settings.data_dir)
    if not origin.is_dir():
        raise UserError(f"{origin} is not a folder; name the folder that holds the weights.")
    weights.import_from(profile, _folder(profile, settings), origin, print)
    print(f"Profile {name} is complete: {_folder(profile, settings)}")


def verify(settings: Settings, name: str) -> int:
    """Print each file's state; return the process's exit status."""
    profile = load_profile(name, settings.data_dir)
    flaws = 0
    for told in weights.verify(profile, _folder(profile, settings)):
        if isinstance(told, weights.Flaw):
            flaws += 1
            print(f"BAD  {told.path}: {told.problem}")
        else:
            print(f"ok   {told}")
    return 1 if flaws else 0


def remove(settings: Settings, name: str) -> None:
    profile = load_profile(name, settings.data_dir)
    if profile.bundled:
        raise UserError(f"The weights of profile {name} are part of Stillmotion; they cannot be removed.")
    freed = weights.remove(_folder(profile, settings))
    print(f"Freed {freed / 1e9:.2f} GB of {_folder(profile, settings)}.")


def _folder(profile: Profile, settings: Settings) -> Path:
    return profile.weights_dir(settings.data_dir.absolute())


def _state(profile: Profile, settings: Settings) -> str:
    if profile.bundled:
        return "ships with Stillmotion"
    absent = profile.missing_parts(settings.data_dir.absolute())
    if not absent:
        return "complete"
    return f"lacks {absent[0]}" + (f" and {len(absent) - 1} more" if absent[1:] else "")


def _ask_for_consent() -> None:
    if not sys.stdin.isatty():
        raise UserError("Read the licences above; to accept them without a terminal, add --accept-licences.")
    if input("Do you accept these licences? [y/N] ").strip().lower() not in {"y", "yes"}:
        raise UserError("Nothing was fetched.")
