"""The data directory as processes see it: who holds it, and what a running server says of itself."""

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from stillmotion.errors import DataRefused

LOCK = "lock"
ADMIN_SOCKET = "admin.sock"
#: The key made at the first start, when nobody was there to read it.
FIRST_KEY = "first-key"
#: What a running server tells about itself, written once its listeners are bound.
ANNOUNCEMENT = "server.json"


def make_data_dir(data_dir: Path) -> None:
    """Make the directory, closed to other users; it holds secrets."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        data_dir.chmod(0o700)
    except OSError as error:
        raise DataRefused(
            f"Data directory {data_dir} cannot be used: {error.strerror}. Choose another with --data-dir."
        ) from error


class Lock:
    """An exclusive hold on a data directory; the system drops it when the process ends, however it ends."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._fd: int | None = None

    def take(self) -> bool:
        """Return False when another process holds it."""
        make_data_dir(self._data_dir)
        fd = os.open(self._data_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd
        return True

    def holder(self) -> str:
        """Name the process that wrote itself into the lock file."""
        pid = (self._data_dir / LOCK).read_text().strip()
        return f"process {pid}" if pid else "another process"

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """Where a running server answers."""

    pid: int
    http: str
    https: str | None
    #: Path of the CA certificate clients of `https` must trust.
    ca: str | None
    admin: str


def announce(data_dir: Path, announcement: Announcement) -> None:
    """Write DATA/server.json whole or not at all."""
    target = data_dir / ANNOUNCEMENT
    draft = target.with_suffix(".tmp")
    draft.write_text(json.dumps(asdict(announcement)) + "\n")
    draft.chmod(0o600)
    draft.replace(target)


def write_private(path: Path, data: bytes) -> None:
    """Write a file only its owner can read, never readable to others for a moment."""
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)


def read_announcement(data_dir: Path) -> Announcement | None:
    """Read what the server of a data directory said of itself; None when there is none."""
    try:
        return Announcement(**json.loads((data_dir / ANNOUNCEMENT).read_text()))
    except FileNotFoundError:
        return None
