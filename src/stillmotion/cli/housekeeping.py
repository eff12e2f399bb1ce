"""Forgetting on time: expired and orphaned files, old requests with their logs; certificates renewed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from stillmotion.clock import Clock
from stillmotion.errors import DataRefused, StoreUnavailable
from stillmotion.http.storage.uploads import folder_of
from stillmotion.media.store import MediaStore
from stillmotion.settings import DAY_S, Settings
from stillmotion.store.files import drop_files, expired_files, unnamed_films, unrecorded
from stillmotion.store.open import Store
from stillmotion.store.retention import drop_old_requests, drop_unstored_requests
from stillmotion.types import FileRecord

log = logging.getLogger(__name__)

EVERY_S = 3600
#: Some files and requests live for a minute only.
FORGET_EVERY_S = 60
#: Rows per transaction: others write in between.
BATCH = 500


async def drop_expired_files(store: Store, media: MediaStore, now: float) -> int:
    """Remove bytes, then records: after a crash in between, the next sweep removes the rest."""
    dropped = 0
    while files := await store.read(lambda conn: expired_files(conn, now, BATCH)):
        gone = [file.id for file in files if await removed(media, file)]
        if not gone:
            break
        await store.write(lambda conn, gone=gone: drop_files(conn, gone))
        dropped += len(gone)
    return dropped


async def removed(media: MediaStore, file: FileRecord) -> bool:
    """Remove a file's bytes; one that cannot be removed is told, and keeps no other."""
    try:
        await media.delete([file.media_key])
        # Parts of an abandoned upload, and what a crash left beside a complete one.
        await media.delete_folder(folder_of(file.id))
    except OSError as error:
        log.warning("%s cannot be removed: %s", file.media_key, error)
        return False
    return True


async def drop_unnamed_films(store: Store, media: MediaStore) -> int:
    """Remove films no result names: their server died between writing the film and writing the ending."""
    dropped = 0
    async for keys in media.keys("films"):
        films = {key: key.split("/")[1] for key in keys}
        unnamed = await store.read(lambda conn, films=films: unnamed_films(conn, films))
        await media.delete(unnamed)
        dropped += len(unnamed)
    return dropped


async def drop_unrecorded(store: Store, media: MediaStore, folder: str, before: float) -> int:
    """Remove files written before a time and without a record: their server died before it wrote one."""
    dropped = 0
    async for keys in media.keys(folder, before=before):
        orphans = await store.read(lambda conn, keys=keys: unrecorded(conn, keys))
        await media.delete(orphans)
        dropped += len(orphans)
    return dropped


async def drop_requests(store: Store, before: float, unstored_before: float) -> int:
    dropped = 0
    while batch := await store.write(lambda conn: drop_unstored_requests(conn, unstored_before, BATCH)):
        dropped += batch
    while batch := await store.write(lambda conn: drop_old_requests(conn, before, BATCH)):
        dropped += batch
    return dropped


async def keep_house(
    settings: Settings, store: Store, media: MediaStore, clock: Clock, renew_certificate: Callable[[], None]
) -> None:
    """Do all of it now and every hour, and forget what is past its time every minute, until cancelled."""
    due = clock.monotonic()
    while True:
        now = clock.now()
        files = await attempted(drop_expired_files(store, media, now))
        if clock.monotonic() >= due:
            due = clock.monotonic() + EVERY_S
            files += await attempted(drop_unnamed_films(store, media))
            # Bytes whose record may be in another database are left for as long as that would keep them.
            for folder, days in (("uploads", settings.upload_days), ("films", settings.output_days)):
                before = now - max(days, 1) * DAY_S
                files += await attempted(drop_unrecorded(store, media, folder, before))
            await attempted(asyncio.to_thread(renew_certificate))
        unstored_before = now - settings.unstored_result_s
        requests = await attempted(drop_requests(store, now - settings.request_days * DAY_S, unstored_before))
        if files or requests:
            log.info("forgot files=%d requests=%d", files, requests)
        await asyncio.sleep(FORGET_EVERY_S)


async def attempted(duty: Awaitable[int | None]) -> int:
    """Do one duty; what stops it stops no other, and it has its next turn."""
    try:
        return await duty or 0
    except (StoreUnavailable, DataRefused, OSError) as error:
        log.warning("housekeeping was cut short: %s", error)
        return 0
