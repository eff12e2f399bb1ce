"""Forgetting on time: expired and orphaned files, old requests with their logs; certificates renewed."""

import asyncio
import logging
from collections.abc import Callable

from stillmotion.clock import Clock
from stillmotion.errors import StoreUnavailable
from stillmotion.media.store import MediaStore
from stillmotion.settings import DAY_S, Settings
from stillmotion.store.files import drop_files, expired_files, unnamed_films
from stillmotion.store.open import Store
from stillmotion.store.retention import drop_old_requests

log = logging.getLogger(__name__)

EVERY_S = 3600
#: Rows per transaction: others write in between.
BATCH = 500


async def drop_expired_files(store: Store, media: MediaStore, now: float) -> int:
    """Remove bytes, then records: after a crash in between, the next sweep removes the rest."""
    dropped = 0
    while files := await store.read(lambda conn: expired_files(conn, now, BATCH)):
        await media.delete([file.media_key for file in files])
        names = [file.id for file in files]
        await store.write(lambda conn, names=names: drop_files(conn, names))
        dropped += len(files)
    return dropped


async def drop_unnamed_films(store: Store, media: MediaStore) -> int:
    """Remove films no result names: their server died between writing the film and writing the ending."""
    dropped = 0
    async for keys in media.keys("films"):
        films = {key: key.split("/")[1] for key in keys}
        unnamed = await store.read(lambda conn, films=films: unnamed_films(conn, films))
        await media.delete(unnamed)
        dropped += len(unnamed)
    return dropped


async def drop_requests(store: Store, before: float) -> int:
    dropped = 0
    while batch := await store.write(lambda conn: drop_old_requests(conn, before, BATCH)):
        dropped += batch
    return dropped


async def keep_house(
    settings: Settings, store: Store, media: MediaStore, clock: Clock, renew_certificate: Callable[[], None]
) -> None:
    """Do all of it now and every hour, until cancelled."""
    while True:
        try:
            now = clock.now()
            files = await drop_expired_files(store, media, now)
            # Before their requests are forgotten, for only these tell whose they are.
            files += await drop_unnamed_films(store, media)
            requests = await drop_requests(store, now - settings.request_days * DAY_S)
            if files or requests:
                log.info("forgot files=%d requests=%d", files, requests)
            await asyncio.to_thread(renew_certificate)
        except (StoreUnavailable, OSError) as error:
            log.warning("housekeeping waits an hour: %s", error)
        await asyncio.sleep(EVERY_S)
