"""Uploads: described here first, then sent to a signed address in one PUT, or straight to the file host."""

import mimetypes
from datetime import UTC, datetime

from pydantic import ValidationError
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from stillmotion.http import wire
from stillmotion.http.answers import BadInput, Json, Refusal
from stillmotion.http.site import Site
from stillmotion.http.storage.downloads import FILE_ID
from stillmotion.http.storage.uploads import UNTYPED, Description, Uploads
from stillmotion.http.ways.body import read_json
from stillmotion.http.ways.callers import UPLOADS, Callers
from stillmotion.http.ways.doors import door_of
from stillmotion.media.signing import UploadGrant, UploadWay
from stillmotion.store.files import get_file
from stillmotion.types import FileRecord

#: A description of an upload; larger ones are no description (64 KiB).
DESCRIPTION_BYTES = 64 * 1024
#: How long an upload token may be used; clients fetch the next by themselves.
TOKEN_S = 3600


class StorageRoutes:
    def __init__(self, site: Site, callers: Callers, uploads: Uploads) -> None:
        self.site = site
        self.callers = callers
        self.uploads = uploads
        self.routes = [
            Route("/rest/storage/upload/initiate", self.initiate, methods=["POST"]),
            Route("/rest/storage/upload/initiate-multipart", self.initiate_parts, methods=["POST"]),
            Route("/rest/storage/auth/token", self.issue_token, methods=["POST"]),
            Route("/cdn/uploads/{file_id}", self.receive, methods=["PUT"]),
            Route("/cdn/files/upload", self.upload, methods=["POST"]),
        ]

    async def initiate(self, call: HttpRequest) -> Response:
        return await self._initiate(call, UploadWay.WHOLE, self.site.settings.upload_url_s)

    async def initiate_parts(self, call: HttpRequest) -> Response:
        return await self._initiate(call, UploadWay.PARTS, None)

    async def _initiate(self, call: HttpRequest, way: UploadWay, url_s: int | None) -> Response:
        """Answer a signed address, good for `url_s`, or as long as the upload is not given up."""
        caller = await self.callers.identify(call, "storage")
        described = describe(await read_json(call, DESCRIPTION_BYTES))
        record = await self.uploads.begin(call, caller, described)
        assert record.expires is not None
        signature = self.site.signer.sign(
            record.id,
            record.content_type,
            self.site.settings.upload_bytes,
            record.expires if url_s is None else record.created + url_s,
            way,
        )
        return Json(wire.upload(door_of(call).bases, record, signature))

    async def issue_token(self, call: HttpRequest) -> Response:
        """Answer a token that stands for the calling key where files are uploaded, and nowhere else."""
        caller = await self.callers.identify(call, "storage")
        now = self.site.clock.now()
        token = self.site.tokens.sign(caller.key_id, [UPLOADS], now, now + TOKEN_S)
        expires = datetime.fromtimestamp(int(now) + TOKEN_S, UTC)
        answer = wire.upload_token(door_of(call).bases, token, expires)
        return Json(answer, headers={"cache-control": "no-store"})

    async def receive(self, call: HttpRequest) -> Response:
        """Take the bytes. The address itself authorises, so an Authorization header beside it is ignored."""
        grant, record = await check_address(self.site, call, UploadWay.WHOLE)
        if record.complete:
            raise _used()
        sent = call.headers.get("content-type", grant.content_type)
        if _essence(sent) != _essence(grant.content_type):
            raise Refusal(
                403, "forbidden", f"This upload URL is for content of type {grant.content_type} only"
            )
        received = await self.uploads.receive(call, record, grant.max_bytes)
        if not await self.uploads.complete(record, received):
            raise _used()
        return Response(status_code=200, headers={"etag": received.etag})

    async def upload(self, call: HttpRequest) -> Response:
        """Take a file whose headers describe it."""
        caller = await self.callers.identify_uploader(call)
        record = await self.uploads.begin(call, caller, describe_headers(call))
        received = await self.uploads.receive(call, record, self.site.settings.upload_bytes)
        if not await self.uploads.complete(record, received):
            raise _used()
        return Json(wire.uploaded(door_of(call).bases, record))


def describe(given: object) -> Description:
    try:
        return Description.model_validate(given)
    except ValidationError as error:
        raise BadInput(wire.validation(error)) from None


def describe_headers(call: HttpRequest) -> Description:
    content_type = call.headers.get("content-type", UNTYPED)
    extension = mimetypes.guess_extension(_essence(content_type)) or ".bin"
    name = call.headers.get("x-fal-file-name", f"upload{extension}")
    # Header values are bytes; clients mean UTF-8 where they mean more than ASCII.
    name = name.encode("latin-1").decode("utf-8", "replace")
    return describe({"content_type": content_type, "file_name": name})


async def check_address(site: Site, call: HttpRequest, way: UploadWay) -> tuple[UploadGrant, FileRecord]:
    """Return what the signed address of a call permits, and the record of its upload."""
    file_id: str = call.path_params["file_id"]
    query = call.scope["query_string"].decode("latin-1")
    grant = site.signer.check(file_id, query, site.clock.now(), way)
    record = None
    if grant is not None and FILE_ID.fullmatch(file_id):
        record = await site.store.read(lambda conn: get_file(conn, file_id))
    if grant is None or record is None:
        raise Refusal(403, "forbidden", "This upload URL is altered or expired; initiate a new upload")
    return grant, record


def _essence(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _used() -> Refusal:
    # Not 409: clients would send the whole file again, up to ten times.
    return Refusal(403, "forbidden", "This upload URL was already used; initiate a new upload")
