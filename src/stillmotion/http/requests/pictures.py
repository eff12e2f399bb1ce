"""`image_url` at the door: what can be settled before the request is kept, is.

A data URI is decoded, checked and stored; a URL of this server, by whatever name, becomes its file record
and is never fetched; any other http(s) URL stays for the worker, which goes through the guard.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from stillmotion import ids
from stillmotion.errors import InputRefused
from stillmotion.http.site import Site
from stillmotion.http.storage.lifecycle import access_to
from stillmotion.http.ways.doors import FAL_HOSTS, Door, Plane, local_names
from stillmotion.images import check_picture, decode_data_uri
from stillmotion.net.guard import AddressRefused, Target, parse_url
from stillmotion.settings import DAY_S
from stillmotion.store.files import get_file, is_available
from stillmotion.types import Access, Caller, FileRecord

_FIELD = "image_url"
_OWN_PATH = re.compile(r".*/files/([0-9a-f]{32})/[^/]*")
_CDN_HOSTS = {name for name, plane in FAL_HOSTS.items() if plane is Plane.CDN}


@dataclass(frozen=True, slots=True)
class Source:
    """Where the worker finds the picture, and the record to keep with the request, if it is new."""

    picture: str
    new_file: FileRecord | None = None


async def take_picture(site: Site, image_url: str, caller: Caller, door: Door) -> Source:
    """Raise InputRefused naming `image_url` for what can never become a picture."""
    try:
        if image_url[:5].lower() == "data:":
            record = await _keep(site, image_url, caller)
            return Source(f"file:{record.id}", record)
        target = parse_url(image_url)
    except InputRefused as error:
        error.failure = replace(error.failure, field=_FIELD)
        raise
    except AddressRefused as error:
        raise InputRefused(
            f"{error} Give an http(s) URL or a data URI such as data:image/png;base64,….", field=_FIELD
        ) from None
    match = _OWN_PATH.fullmatch(target.url.path)
    if match is None:
        return Source(image_url)
    file_id = match[1]
    record = await site.store.read(lambda conn: get_file(conn, file_id))
    # Nobody guesses an id: the file is ours even by an address we do not know we have.
    if record is None and not _is_our_name(site, target, door):
        return Source(image_url)
    access = Access.HIDE
    if record is not None and is_available(record, site.clock.now()):
        access = access_to(record, caller)
    if access is not Access.ALLOW:
        raise InputRefused(
            "This server has no such file, or no longer: upload it again"
            if access is Access.HIDE
            else "The owner of this file does not let this key read it",
            kind="file_download_error",
            field=_FIELD,
        )
    return Source(f"file:{file_id}")


def _is_our_name(site: Site, target: Target, door: Door) -> bool:
    return target.host.lower() in {*local_names(site.settings), *_CDN_HOSTS, door.host}


async def _keep(site: Site, uri: str, caller: Caller) -> FileRecord:
    settings = site.settings
    now = site.clock.now()

    def decode() -> tuple[bytes, str]:
        data = decode_data_uri(uri, settings.picture_bytes)
        found = check_picture(data, max_pixels=settings.picture_pixels, max_bytes=settings.picture_bytes)
        return data, found.format

    data, kind = await asyncio.to_thread(decode)
    file_id = ids.file_id()
    media_key = f"uploads/{file_id}"
    size, digest, _ = await site.media.receive(media_key, _whole(data), settings.picture_bytes)
    return FileRecord(
        id=file_id,
        key_id=caller.key_id,
        request_id=None,
        name=f"picture.{kind}",
        content_type=f"image/{kind}",
        media_key=media_key,
        size=size,
        digest=digest,
        created=now,
        expires=now + settings.upload_days * DAY_S,
        complete=True,
    )


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    yield data
