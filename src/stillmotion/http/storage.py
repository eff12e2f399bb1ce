"""Uploads: a signed address for one PUT, then the bytes, streamed to the media store."""

import re
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from stillmotion import ids
from stillmotion.errors import StoreUnavailable
from stillmotion.http import wire
from stillmotion.http.answers import BadInput, Json, Refusal
from stillmotion.http.body import read_json, stream
from stillmotion.http.callers import Callers
from stillmotion.http.doors import door_of
from stillmotion.http.site import Site
from stillmotion.media.signing import UploadGrant
from stillmotion.media.store import TooLarge
from stillmotion.media.types import safe_name, sniff_type
from stillmotion.settings import DAY_S
from stillmotion.store.files import add_file, complete_file, get_file
from stillmotion.types import FileRecord

#: A description of an upload; larger ones are no description (64 KiB).
DESCRIPTION_BYTES = 64 * 1024
UNTYPED = "application/octet-stream"

_TOKEN = r"[A-Za-z0-9!#$&^_.+-]+"  # noqa: S105 - RFC 9110's word for a name, not a credential
_MEDIA_TYPE = rf'{_TOKEN}/{_TOKEN}(\s*;\s*{_TOKEN}=({_TOKEN}|"[^"\\\x00-\x1f\x7f-\uffff]*"))*'
_FILE_ID = re.compile(r"[0-9a-f]{32}")


class Description(BaseModel):
    """What a caller says of the file it is about to upload."""

    content_type: Annotated[str, Field(max_length=200, pattern=f"^{_MEDIA_TYPE}$")] = UNTYPED
    file_name: Annotated[str, Field(max_length=10_000)] = "file"


class StorageRoutes:
    def __init__(self, site: Site, callers: Callers) -> None:
        self.site = site
        self.callers = callers
        self.routes = [
            Route("/rest/storage/upload/initiate", self.initiate, methods=["POST"]),
            Route("/cdn/uploads/{file_id}", self.receive, methods=["PUT"]),
        ]

    async def initiate(self, call: HttpRequest) -> Response:
        caller = await self.callers.identify(call, "storage")
        try:
            described = Description.model_validate(await read_json(call, DESCRIPTION_BYTES))
        except ValidationError as error:
            raise BadInput(wire.validation(error)) from None
        settings, now = self.site.settings, self.site.clock.now()
        file_id = ids.file_id()
        record = FileRecord(
            id=file_id,
            key_id=caller.key_id,
            request_id=None,
            name=safe_name(described.file_name),
            content_type=described.content_type,
            media_key=f"uploads/{file_id}",
            size=0,
            digest="",
            created=now,
            expires=now + settings.upload_days * DAY_S,
            complete=False,
        )
        await self.site.store.write(lambda conn: add_file(conn, record))
        signature = self.site.signer.sign(
            file_id, record.content_type, settings.upload_bytes, now + settings.upload_url_s
        )
        return Json(wire.upload(door_of(call).bases, record, signature))

    async def receive(self, call: HttpRequest) -> Response:
        """Take the bytes. The address itself authorises, so an Authorization header beside it is ignored."""
        file_id: str = call.path_params["file_id"]
        query = call.scope["query_string"].decode("latin-1")
        grant = self.site.signer.check(file_id, query, self.site.clock.now())
        record = None
        if grant is not None and _FILE_ID.fullmatch(file_id):
            record = await self.site.store.read(lambda conn: get_file(conn, file_id))
        if grant is None or record is None:
            raise Refusal(403, "forbidden", "This upload URL is altered or expired; initiate a new upload")
        if record.complete:
            raise _used()
        self._check_headers(call, grant)
        # Each PUT has bytes of its own, so that the loser of two at once overwrites nothing.
        media_key = f"uploads/{ids.file_id()}"
        try:
            size, digest, head = await self.site.media.receive(media_key, stream(call), grant.max_bytes)
        except TooLarge:
            raise _too_large(grant) from None
        content_type = grant.content_type
        if content_type == UNTYPED:
            content_type = sniff_type(head) or UNTYPED
        await self._complete(file_id, media_key, size, digest, content_type)
        return Response(status_code=200, headers={"etag": f'"{digest}"'})

    def _check_headers(self, call: HttpRequest, grant: UploadGrant) -> None:
        sent = call.headers.get("content-type", grant.content_type)
        if _essence(sent) != _essence(grant.content_type):
            raise Refusal(
                403, "forbidden", f"This upload URL is for content of type {grant.content_type} only"
            )
        length = call.headers.get("content-length", "")
        if length.isdecimal() and int(length) > grant.max_bytes:
            raise _too_large(grant)

    async def _complete(
        self, file_id: str, media_key: str, size: int, digest: str, content_type: str
    ) -> None:
        now = self.site.clock.now()
        try:
            won = await self.site.store.write(
                lambda conn: complete_file(
                    conn,
                    file_id,
                    size=size,
                    digest=digest,
                    content_type=content_type,
                    now=now,
                    media_key=media_key,
                )
            )
        except StoreUnavailable:
            await self.site.media.delete([media_key])
            raise
        if not won:
            await self.site.media.delete([media_key])
            raise _used()


def _essence(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _used() -> Refusal:
    return Refusal(409, "conflict", "This upload URL was already used; initiate a new upload")


def _too_large(grant: UploadGrant) -> Refusal:
    return Refusal(413, "payload_too_large", f"The upload is larger than the {grant.max_bytes} bytes allowed")
