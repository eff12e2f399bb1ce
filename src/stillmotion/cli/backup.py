"""`stillmotion backup`: a copy to start a server from.

The database first, then the media: a film published in between is in the copy of the media and unknown to
the copy of the database, which is harmless; the other order could lose one.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from stillmotion import signatures
from stillmotion.cli.admin import perform
from stillmotion.durable import write_whole
from stillmotion.errors import UserError
from stillmotion.media.store import INCOMING
from stillmotion.profiles import OWN
from stillmotion.settings import Settings

DATABASE = "stillmotion.db"
#: What signs upload URLs and webhooks, and the authority that clients trust.
SECRETS = ("secret", signatures.FILE, "tls/ca.key", "tls/ca.pem")


def backup(settings: Settings, target: Path, media: bool) -> None:
    if settings.database_url is not None:
        raise UserError("The state is in PostgreSQL; back it up with pg_dump, and DATA/media by copying it.")
    if not (settings.data_dir / DATABASE).exists():
        raise UserError(f"There is nothing to back up in {settings.data_dir}; choose with --data-dir.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is not an empty folder; a backup never overwrites, choose another.")
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        perform(settings, "backup", {"target": str((target / DATABASE).absolute())})
        (target / DATABASE).chmod(0o600)
        for name in SECRETS:
            secret = settings.data_dir / name
            if secret.exists():
                (target / name).parent.mkdir(mode=0o700, exist_ok=True)
                write_whole(target / name, secret.read_bytes())
        if (settings.data_dir / OWN).is_dir():
            shutil.copytree(settings.data_dir / OWN, target / OWN)
        source = settings.data_dir / "media"
        files = _media_files(source)
        (target / "media.txt").write_text("".join(f"{name}\n" for name in files))
        if media:
            for name in files:
                _copy(source / name, target / "media" / name)
    except OSError as error:
        raise UserError(f"The backup in {target} is not whole: {error}. Remove it and try again.") from error
    print(f"Database and the names of {len(files)} media files are in {target}.")
    if media:
        print(f"The files are in {target / 'media'}; start a server from this copy with --data-dir {target}.")
    else:
        print("The files themselves are not copied (--media does that).")


def _media_files(source: Path) -> list[Path]:
    """Name what lies in the media store, without transfers under way."""

    def tell(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    found: list[Path] = []
    for folder, folders, names in os.walk(source, onerror=tell, followlinks=True):
        folders[:] = [name for name in folders if name != INCOMING]
        found += [(Path(folder) / name).relative_to(source) for name in names]
    return sorted(found)


def _copy(file: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    # A running server forgets files that expire while we copy; the copy of the database does the same.
    with suppress(FileNotFoundError):
        shutil.copy2(file, place)
