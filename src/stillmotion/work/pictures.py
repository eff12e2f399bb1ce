"""From what a request names as its picture to the checked RGB file its runner may open.

All network access for a request happens here, in the worker, through the guard.
"""

import asyncio
from dataclasses import replace
from pathlib import Path

from stillmotion.clock import Clock
from stillmotion.errors import InputRefused
from stillmotion.images import prepare_picture
from stillmotion.media.store import MediaStore
from stillmotion.net.fetch import fetch
from stillmotion.net.guard import AllowList
from stillmotion.settings import Settings
from stillmotion.store.files import get_file, is_available
from stillmotion.store.open import Store

FIELD = "image_url"
OWN_FILE = "file:"


async def place_picture(
    picture: str, target: Path, *, settings: Settings, store: Store, media: MediaStore, clock: Clock
) -> None:
    """Write the picture upright as PNG to `target`; raises InputRefused naming `image_url`."""
    try:
        if picture.startswith(OWN_FILE):
            data = await _read_own(picture.removeprefix(OWN_FILE), settings, store, media, clock)
        else:
            data = await fetch(
                picture,
                allow=AllowList.parse(settings.fetch_allow),
                max_bytes=settings.picture_bytes,
                timeout_s=settings.fetch_timeout_s,
            )
        await asyncio.to_thread(prepare_picture, data, target, max_pixels=settings.picture_pixels)
    except InputRefused as refused:
        refused.failure = replace(refused.failure, field=FIELD)
        raise


async def _read_own(file_id: str, settings: Settings, store: Store, media: MediaStore, clock: Clock) -> bytes:
    record = await store.read(lambda conn: get_file(conn, file_id))
    if record is None or not is_available(record, clock.now()):
        raise InputRefused(
            "The file behind the URL is no longer here; upload it again.", kind="file_download_error"
        )
    if record.size > settings.picture_bytes:
        raise InputRefused(
            f"The file has {record.size:,} bytes; a picture may have {settings.picture_bytes:,} at most.",
            kind="file_too_large",
            context={"max_size": settings.picture_bytes},
        )
    return await media.read(record.media_key)
