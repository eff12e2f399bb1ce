"""Where the bytes of films and uploads lie: objects under keys made by us, written once.

Promises: an object is whole or absent (temp, fsync, rename, fsync of the folder); a transfer that fails or
is cancelled leaves nothing; no key is ever built from text a stranger sent. Reading goes through obstore;
writing to a directory is done here, because obstore's local store does not fsync.
"""

import asyncio
import hashlib
import math
import os
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, ParamSpec, TypeVar

from obstore.exceptions import BaseError
from obstore.store import LocalStore

from stillmotion.durable import sync_folder
from stillmotion.errors import StillmotionError

P = ParamSpec("P")
T = TypeVar("T")

#: Written and read in blocks of this many bytes.
BLOCK = 1024 * 1024
HEAD_BYTES = 64
#: Keys per batch of a listing.
LISTED = 500
KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
INCOMING = ".incoming"
#: How often a folder may vanish under a rename before that is an error.
RACES = 20


class TooLarge(StillmotionError):
    """A transfer went past its size limit; nothing of it was kept."""


class MediaStore:
    """A directory of objects; safe to use from one event loop and its threads."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / INCOMING
        self._objects = LocalStore(root, automatic_cleanup=True)

    async def publish(self, path: Path, key: str) -> tuple[int, str]:
        """Move a finished local file in; returns its size and SHA-256 hex."""
        return await _in_thread(self._publish, path, self._place(key))

    async def receive(self, key: str, chunks: AsyncIterator[bytes], max_bytes: int) -> tuple[int, str, bytes]:
        """Stream an upload in; returns size, SHA-256 hex and the first bytes for `sniff_type`.

        Raises TooLarge past `max_bytes`; on that, any other error or a cancel nothing is left behind.
        """
        place = self._place(key)
        partial = self._incoming / secrets.token_hex(16)
        digest = hashlib.sha256()
        size = 0
        head = b""
        file = partial.open("xb")
        try:
            block = bytearray()

            def put(data: bytes) -> None:
                digest.update(data)
                file.write(data)

            async for chunk in chunks:
                size += len(chunk)
                if size > max_bytes:
                    raise TooLarge(f"The upload is larger than the {max_bytes:,} bytes allowed.")
                block += chunk
                if len(head) < HEAD_BYTES:
                    head = (head + chunk)[:HEAD_BYTES]
                if len(block) >= BLOCK:
                    await _in_thread(put, bytes(block))
                    block.clear()
            await _in_thread(put, bytes(block))
            await _in_thread(_sync_and_close, file)
            try:
                await _in_thread(_settle, partial, place)
            except asyncio.CancelledError:
                # It came when the bytes had reached their place.
                place.unlink(missing_ok=True)
                raise
        finally:
            # Closing writes what is left, which fails on a full disk: the name goes first.
            partial.unlink(missing_ok=True)
            file.close()
        return size, digest.hexdigest(), head

    async def stream(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Yield bytes `start` up to but not including `end`; a file deleted meanwhile still ends whole.

        Raises FileNotFoundError before the first byte.
        """
        self._place(key)
        if start >= end:
            return
        found = await self._objects.get_async(key, options={"range": (start, end)})
        async for chunk in found.stream(min_chunk_size=BLOCK):
            yield bytes(chunk)

    async def read(self, key: str) -> bytes:
        """Read a whole object; raises FileNotFoundError."""
        self._place(key)
        with _os_errors():
            found = await self._objects.get_async(key)
            return bytes(await found.bytes_async())

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those already gone count as removed."""
        for key in keys:
            self._place(key)
            with suppress(FileNotFoundError), _os_errors():
                await self._objects.delete_async(key)

    async def delete_folder(self, folder: str) -> None:
        """Remove all objects of a folder; there need be none."""
        await self.delete([key async for keys in self.keys(folder) for key in keys])

    async def keys(self, folder: str, *, before: float = math.inf) -> AsyncIterator[list[str]]:
        """List the objects of a folder that were written before a time, in batches."""
        with _os_errors():
            async for batch in self._objects.list(folder, chunk_size=LISTED):  # pyright: ignore[reportUnknownMemberType]
                yield [found["path"] for found in batch if found["last_modified"].timestamp() < before]

    def _place(self, key: str) -> Path:
        if not KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no media key.")
        return self._root / key

    def _publish(self, path: Path, place: Path) -> tuple[int, str]:
        partial = self._incoming / secrets.token_hex(16)
        try:
            # Within one file system this moves no byte.
            shutil.move(path, partial)
            with partial.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = os.fstat(file.fileno()).st_size
                os.fsync(file.fileno())
            _settle(partial, place)
        finally:
            partial.unlink(missing_ok=True)
        return size, digest


@contextmanager
def _os_errors() -> Generator[None, None, None]:
    """Raise obstore's own errors, which share no base with Python's, as OSError."""
    try:
        yield
    except BaseError as error:
        raise OSError(str(error)) from error


def open_media(data_dir: Path) -> MediaStore:
    """Open or make DATA/media and clear what a kill left there; only for who holds DATA/lock."""
    root = (data_dir / "media").absolute()
    incoming = root / INCOMING
    incoming.mkdir(parents=True, exist_ok=True)
    for leftover in incoming.iterdir():
        leftover.unlink()
    return MediaStore(root)


def _settle(partial: Path, place: Path) -> None:
    """Rename a synced file to its place and make the rename and new folders durable."""
    for tries_left in reversed(range(RACES)):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial, place)
            break
        except (FileNotFoundError, FileExistsError):
            # A delete of a folder's last object takes the folder away, maybe between any two steps here.
            if not tries_left or not partial.exists():
                raise
    for folder in place.parents:
        with suppress(FileNotFoundError):
            sync_folder(folder)
        if folder == partial.parent.parent:
            break


def _sync_and_close(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


async def _in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `call` in a thread and, when cancelled, still wait for it: its file must not close under it."""
    running = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        raise
