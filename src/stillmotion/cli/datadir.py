"""The data directory as processes see it: who holds it, and what a running server says of itself."""

import fcntl
import json
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy import Connection

from stillmotion import keys
from stillmotion.durable import write_whole
from stillmotion.errors import DataRefused

LOCK = "lock"
ADMIN_SOCKET = "admin.sock"
#: The key made at the first start, when nobody was there to read it.
FIRST_KEY = "first-key"
#: What a running server tells about itself, written once its listeners are bound.
ANNOUNCEMENT = "server.json"


@contextmanager
def using(data_dir: Path) -> Generator[None]:
    """Say of what the system refuses meanwhile that the directory cannot be used."""
    try:
        yield
    except OSError as error:
        raise DataRefused(
            f"Data directory {data_dir} cannot be used: {error.strerror} ({error.filename}). "
            "Choose another with --data-dir."
        ) from error


def open_lock(data_dir: Path) -> int:
    """Make the directory, closed to other users as it holds secrets, and open its lock file."""
    with using(data_dir):
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if data_dir.stat().st_mode & stat.S_ISVTX:
            raise DataRefused(f"{data_dir} is shared by all users. Give the data a folder of its own.")
        data_dir.chmod(0o700)
        return os.open(data_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


class Lock:
    """An exclusive hold on a data directory; the system drops it when the process ends, however it ends."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._fd: int | None = None

    def take(self) -> bool:
        """Return False when another process holds it."""
        fd = open_lock(self._data_dir)
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
    #: Path of the CA certificate clients of `https` and of tunnels must trust.
    ca: str
    admin: str


def announce(data_dir: Path, announcement: Announcement) -> None:
    """Write DATA/server.json whole or not at all."""
    write_whole(data_dir / ANNOUNCEMENT, f"{json.dumps(asdict(announcement))}\n".encode())


def make_first_key(conn: Connection, data_dir: Path, now: float) -> str | None:
    """Make a key and leave it in a file, unless there is one.

    The file is written before the commit: a kill in between leaves a secret that the next start replaces,
    never a key whose secret nobody has seen.
    """
    if keys.list_keys(conn):
        return None
    key = keys.create_key(conn, "first", now)
    write_whole(data_dir / FIRST_KEY, f"{key}\n".encode())
    return key


def read_announcement(data_dir: Path) -> Announcement | None:
    """Read what the server of a data directory said of itself; None when there is none."""
    try:
        return Announcement(**json.loads((data_dir / ANNOUNCEMENT).read_text()))
    except FileNotFoundError:
        return None
