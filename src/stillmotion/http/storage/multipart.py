"""Uploads that come in numbered parts, in any order and several at once, and are joined when complete.

Two addresses lead here: a signed one, `{upload_url}/{n}`, and `{file}/multipart/{upload id}/{n}` with an
upload token. A part sent again replaces the earlier try; complete may be asked again, too.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Annotated
from weakref import WeakValueDictionary

from pydantic import BaseModel, Field, ValidationError
from sqlalchemy import Connection
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from stillmotion.errors import StoreUnavailable
from stillmotion.http import wire
from stillmotion.http.answers import BadInput, Json, Refusal
from stillmotion.http.site import Site
from stillmotion.http.storage.downloads import FILE_ID
from stillmotion.http.storage.routes import check_address, describe_headers
from stillmotion.http.storage.uploads import Received, Uploads, too_large
from stillmotion.http.ways.body import read_json
from stillmotion.http.ways.callers import Callers
from stillmotion.http.ways.doors import door_of
from stillmotion.media.signing import UploadWay
from stillmotion.media.store import MediaStore
from stillmotion.store.files import get_file
from stillmotion.store.limits import count_upload
from stillmotion.store.open import Store
from stillmotion.store.parts import Placed, drop_parts, get_parts, put_part
from stillmotion.types import FileRecord, UploadPart

MAX_PARTS = 10_000
#: Largest part (512 MiB); fal's clients send 10 MiB.
PART_BYTES = 512 * 1024 * 1024
#: Room for a list of all parts (2 MiB).
LIST_BYTES = 2 * 1024 * 1024

_NUMBER = re.compile(r"[1-9][0-9]{0,4}")


class ListedPart(BaseModel):
    number: Annotated[int, Field(alias="partNumber", ge=1, le=MAX_PARTS)]
    etag: Annotated[str, Field(max_length=200)]

    @property
    def digest(self) -> str:
        return self.etag.removeprefix("W/").strip('"')


class Completion(BaseModel):
    parts: Annotated[list[ListedPart], Field(min_length=1, max_length=MAX_PARTS)]


class MultipartRoutes:
    def __init__(self, site: Site, callers: Callers, uploads: Uploads) -> None:
        self.site = site
        self.callers = callers
        self.uploads = uploads
        #: One join of an upload at a time; a client that asked twice waits for the first.
        self._joining: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        owned = "/cdn/files/{file_id}/{name}/multipart/{upload_id}"
        self.routes = [
            Route("/cdn/files/upload/multipart", self.create, methods=["POST"]),
            Route("/cdn/uploads/{file_id}/complete", self.complete_signed, methods=["POST"]),
            Route("/cdn/uploads/{file_id}/{number}", self.take_signed_part, methods=["PUT"]),
            Route(f"{owned}/complete", self.complete_owned, methods=["POST"]),
            Route(f"{owned}/{{number}}", self.take_owned_part, methods=["PUT"]),
        ]

    async def create(self, call: HttpRequest) -> Response:
        caller = await self.callers.identify_uploader(call)
        record = await self.uploads.begin(call, caller, describe_headers(call))
        return Json(wire.multipart_upload(door_of(call).bases, record))

    async def take_signed_part(self, call: HttpRequest) -> Response:
        grant, record = await check_address(self.site, call, UploadWay.PARTS)
        return await self._take_part(call, record, grant.max_bytes)

    async def take_owned_part(self, call: HttpRequest) -> Response:
        return await self._take_part(call, await self._owned(call), self.site.settings.upload_bytes)

    async def complete_signed(self, call: HttpRequest) -> Response:
        grant, record = await check_address(self.site, call, UploadWay.PARTS)
        return await self._complete(call, record, grant.max_bytes)

    async def complete_owned(self, call: HttpRequest) -> Response:
        return await self._complete(call, await self._owned(call), self.site.settings.upload_bytes)

    async def _owned(self, call: HttpRequest) -> FileRecord:
        """Find the upload a token may go on with; someone else's answers like an unknown one."""
        caller = await self.callers.identify_uploader(call)
        file_id: str = call.path_params["file_id"]
        record = None
        if FILE_ID.fullmatch(file_id) and call.path_params["upload_id"] == file_id:
            record = await self.site.store.read(lambda conn: get_file(conn, file_id))
        if record is None or record.key_id != caller.key_id or record.request_id is not None:
            raise _no_upload()
        return record

    async def _take_part(self, call: HttpRequest, record: FileRecord, max_bytes: int) -> Response:
        number = _part_number(call.path_params["number"])
        if record.complete:
            raise _no_upload()
        received = await self.uploads.receive(call, record, min(PART_BYTES, max_bytes))
        part = UploadPart(
            number=number, size=received.size, digest=received.digest, media_key=received.media_key
        )
        now = self.site.clock.now()

        def place(conn: Connection) -> Placed:
            placed = put_part(conn, record.id, part, now)
            if placed is None:
                raise _no_upload()
            if placed.total > max_bytes:
                raise too_large(max_bytes)
            count_upload(conn, record.key_id, part.size, now)
            return placed

        placed = await self.site.record(place, received.media_key)
        if placed.replaced is not None:
            await self.site.media.delete([placed.replaced])
        # JavaScript reads the body, Python the header.
        return Json(wire.upload_part(number, received.etag), headers={"etag": received.etag})

    async def _complete(self, call: HttpRequest, record: FileRecord, max_bytes: int) -> Response:
        try:
            asked = Completion.model_validate(await read_json(call, LIST_BYTES))
        except ValidationError as error:
            raise BadInput(wire.validation(error)) from None
        async with self._joining.setdefault(record.id, asyncio.Lock()):
            joined = await self._join(record, asked.parts, max_bytes)
            if joined is not None and await self.uploads.complete(record, joined, counted=True):
                # The file is whole, and a 503 would say that it is not; parts left over go with its record.
                with suppress(StoreUnavailable):
                    await remove_parts(self.site.store, self.site.media, record.id)
            elif not await self._is_complete(record):
                raise _no_upload()
        return Json(wire.uploaded(door_of(call).bases, record))

    async def _join(
        self, record: FileRecord, listed: Sequence[ListedPart], max_bytes: int
    ) -> Received | None:
        """Write the parts as one file; None when another call did, or they were given up meanwhile."""
        if await self._is_complete(record):
            return None
        parts = await self.site.store.read(lambda conn: get_parts(conn, record.id))
        _check(listed, parts)

        async def blocks() -> AsyncIterator[bytes]:
            for part in parts:
                async for block in self.site.media.stream(part.media_key, 0, part.size):
                    yield block

        try:
            return await self.uploads.keep(record, blocks(), max_bytes)
        except FileNotFoundError:
            return None

    async def _is_complete(self, record: FileRecord) -> bool:
        newest = await self.site.store.read(lambda conn: get_file(conn, record.id))
        return newest is not None and newest.complete


async def remove_parts(store: Store, media: MediaStore, file_id: str) -> None:
    """Remove bytes, then records: what a crash leaves of these goes with the file's own."""
    parts = await store.read(lambda conn: get_parts(conn, file_id))
    await media.delete([part.media_key for part in parts])
    await store.write(lambda conn: drop_parts(conn, file_id))


def _check(listed: Sequence[ListedPart], parts: Sequence[UploadPart]) -> None:
    """Raise a 400 Refusal naming the first part that keeps the file from being whole.

    The list may have any order. A gap, or a part that was sent and is not listed, is a client's mistake
    that would otherwise cost its user bytes in silence.
    """
    digests: dict[int, str] = {}
    for entry in listed:
        if digests.setdefault(entry.number, entry.digest) != entry.digest:
            raise _bad_part(entry.number, "is listed with two ETags; list each part once")
    found = {part.number: part for part in parts}
    for number in range(1, max([*digests, *found]) + 1):
        if number not in found:
            raise _bad_part(number, "is missing; send it, then complete again")
        if number not in digests:
            raise _bad_part(number, "was sent but is not listed; list every part")
        if not found[number].size:
            raise _bad_part(number, "is empty; send its bytes, then complete again")
        if found[number].digest != digests[number]:
            raise _bad_part(number, "has another ETag than the one listed; list what its last PUT answered")


def _part_number(text: str) -> int:
    if not _NUMBER.fullmatch(text) or int(text) > MAX_PARTS:
        raise Refusal(400, "bad_request", f"A part number must be between 1 and {MAX_PARTS}, got {text[:20]}")
    return int(text)


def _bad_part(number: int, problem: str) -> Refusal:
    return Refusal(400, "bad_request", f"Part {number} {problem}")


def _no_upload() -> Refusal:
    return Refusal(404, "not_found", "There is no such upload to go on with, or no longer; begin a new one")
