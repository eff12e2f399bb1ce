"""What all ways to upload share: a pending record, bytes that go straight to disk, one completion.

Everything of an upload lies in one folder of the media store, so that whatever a crash leaves there goes
with its record.
"""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticCustomError
from sqlalchemy import Connection
from starlette.requests import Request as HttpRequest

from stillmotion import ids
from stillmotion.http.answers import Refusal
from stillmotion.http.site import Site
from stillmotion.http.storage.lifecycle import read_lifecycle
from stillmotion.http.ways.body import stream
from stillmotion.media.store import TooLarge
from stillmotion.media.types import safe_name, sniff_type
from stillmotion.settings import DAY_S
from stillmotion.store.files import add_file, complete_file
from stillmotion.store.limits import count_upload, upload_allowance, upload_refused
from stillmotion.types import Caller, FileRecord

UNTYPED = "application/octet-stream"
#: An upload not complete after this long is abandoned.
PENDING_S = DAY_S

_TOKEN = r"[A-Za-z0-9!#$&^_.+-]+"  # noqa: S105 - RFC 9110's word for a name, not a credential
#: Values may hold commas, which RFC 9110 wants quoted: Chrome records `video/webm;codecs=vp8,opus`.
_MEDIA_TYPE = re.compile(rf'{_TOKEN}/{_TOKEN}([ \t]*;[ \t]*{_TOKEN}=({_TOKEN}(,{_TOKEN})*|"[ !#-\[\]-~]*"))*')


def _media_type(value: str) -> str:
    if not _MEDIA_TYPE.fullmatch(value):
        # pydantic's own words would be the pattern.
        raise PydanticCustomError("value_error", "Input should be a media type such as image/png")
    return value


MediaType = Annotated[
    str,
    Field(max_length=200, json_schema_extra={"pattern": f"^{_MEDIA_TYPE.pattern}$"}),
    AfterValidator(_media_type),
]


class Description(BaseModel):
    """What a caller says of the file it is about to upload."""

    content_type: MediaType = UNTYPED
    file_name: Annotated[str, Field(max_length=10_000)] = "file"


@dataclass(frozen=True, slots=True)
class Received:
    """Bytes that arrived whole and belong to no record yet."""

    media_key: str
    size: int
    digest: str
    #: The first bytes, which show the type.
    head: bytes

    @property
    def etag(self) -> str:
        return f'"{self.digest}"'


class Uploads:
    def __init__(self, site: Site) -> None:
        self._site = site

    async def begin(self, call: HttpRequest, caller: Caller, described: Description) -> FileRecord:
        """Record a pending upload, with the lifecycle its headers ask for."""
        lifecycle = read_lifecycle(call)
        settings, now = self._site.settings, self._site.clock.now()
        file_id = ids.file_id()
        record = FileRecord(
            id=file_id,
            key_id=caller.key_id,
            request_id=None,
            name=safe_name(described.file_name),
            content_type=described.content_type,
            media_key=f"{folder_of(file_id)}/pending",
            size=0,
            digest="",
            created=now,
            expires=now + max(PENDING_S, settings.upload_url_s),
            complete=False,
            keep_s=lifecycle.keep_s or settings.upload_days * DAY_S,
            acl=lifecycle.acl,
        )
        await self._site.store.write(lambda conn: add_file(conn, record))
        return record

    async def receive(self, call: HttpRequest, record: FileRecord, max_bytes: int) -> Received:
        """Stream a body to disk; raises a 413 Refusal, or LimitReached when its key has less left."""
        now = self._site.clock.now()
        declared = call.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > max_bytes:
            raise too_large(max_bytes)
        allowance = await self._site.store.read(lambda conn: upload_allowance(conn, record.key_id, now))
        if allowance is None:
            return await self.keep(record, stream(call), max_bytes)
        if declared.isdecimal() and int(declared) > allowance.left:
            raise upload_refused(allowance, now)
        try:
            return await self.keep(record, stream(call), min(max_bytes, allowance.left))
        except Refusal as refusal:
            if refusal.failure.status == 413 and allowance.left < max_bytes:
                raise upload_refused(allowance, now) from None
            raise

    async def keep(self, record: FileRecord, chunks: AsyncIterator[bytes], max_bytes: int) -> Received:
        """Write bytes into the upload's folder, under a name of their own: two at once overwrite nothing."""
        media_key = f"{folder_of(record.id)}/{ids.file_id()}"
        try:
            return Received(media_key, *await self._site.media.receive(media_key, chunks, max_bytes))
        except TooLarge:
            raise too_large(max_bytes) from None

    async def complete(self, record: FileRecord, received: Received, *, counted: bool = False) -> bool:
        """Publish the bytes; False, and the bytes are gone, when another call did or the time is over.

        `counted` says that its key's allowance has been charged already, part by part.
        """
        content_type = record.content_type
        if content_type == UNTYPED:
            content_type = sniff_type(received.head) or UNTYPED
        now = self._site.clock.now()

        def publish(conn: Connection) -> bool:
            won = complete_file(
                conn,
                record.id,
                size=received.size,
                digest=received.digest,
                content_type=content_type,
                now=now,
                media_key=received.media_key,
            )
            if won and not counted:
                count_upload(conn, record.key_id, received.size, now)
            return won

        won = await self._site.record(publish, received.media_key)
        if not won:
            await self.discard(received)
        return won

    async def discard(self, received: Received) -> None:
        await self._site.media.delete([received.media_key])


def folder_of(file_id: str) -> str:
    return f"uploads/{file_id}"


def too_large(max_bytes: int) -> Refusal:
    return Refusal(413, "payload_too_large", f"The upload is larger than the {max_bytes} bytes allowed")
