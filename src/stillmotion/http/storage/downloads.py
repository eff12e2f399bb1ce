"""Downloads: public by their unguessable address, whole or by range, never able to run script here."""

import re
from collections.abc import AsyncIterator
from email.utils import formatdate
from urllib.parse import quote

from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from stillmotion.http.answers import Refusal
from stillmotion.http.site import Site
from stillmotion.http.storage.lifecycle import access_to
from stillmotion.http.ways.callers import Callers
from stillmotion.media.types import is_inline_safe
from stillmotion.store.files import get_file, is_available
from stillmotion.types import Access, FileRecord

FILE_ID = re.compile(r"[0-9a-f]{32}")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class FileRoutes:
    def __init__(self, site: Site, callers: Callers) -> None:
        self.site = site
        self.callers = callers
        self.routes = [Route("/cdn/files/{file_id}/{name}", self.download, methods=["GET", "HEAD"])]

    async def download(self, call: HttpRequest) -> Response:
        file_id: str = call.path_params["file_id"]
        record = None
        if FILE_ID.fullmatch(file_id):
            record = await self.site.store.read(lambda conn: get_file(conn, file_id))
        if record is None or not is_available(record, self.site.clock.now()):
            raise _no_file()
        await self._check_access(call, record)
        headers = describe_file(record)
        if _names(call.headers.get("if-none-match"), headers["etag"]):
            return Response(status_code=304, headers=headers)
        part = None
        if call.method == "GET" and call.headers.get("if-range", headers["etag"]) == headers["etag"]:
            part = read_range(call.headers.get("range", ""), record.size)
        start, end = part or (0, record.size)
        headers["content-length"] = str(end - start)
        headers["content-type"] = record.content_type
        if part:
            headers["content-range"] = f"bytes {start}-{end - 1}/{record.size}"
        if call.method == "HEAD":
            return Response(headers=headers)
        body = await self._open(record, start, end)
        return StreamingResponse(body, status_code=206 if part else 200, headers=headers)

    async def _check_access(self, call: HttpRequest, record: FileRecord) -> None:
        if record.acl is None:
            return
        try:
            caller = await self.callers.identify(call, "this file")
        except Refusal:
            # Told that its key is wrong, a stranger would learn that a hidden file is there.
            caller = None
        access = access_to(record, caller)
        if access is Access.HIDE:
            raise _no_file()
        if access is Access.FORBID:
            raise Refusal(403, "forbidden", "The owner of this file does not let this caller read it")

    async def _open(self, record: FileRecord, start: int, end: int) -> AsyncIterator[bytes]:
        """Read the first block before any header goes out, so that lost bytes are a 404, not a broken 200."""
        blocks = self.site.media.stream(record.media_key, start, end)
        try:
            first = await anext(blocks, b"")
        except FileNotFoundError:
            raise _no_file() from None

        async def all_blocks() -> AsyncIterator[bytes]:
            yield first
            async for block in blocks:
                yield block

        return all_blocks()


def describe_file(record: FileRecord) -> dict[str, str]:
    """Return the headers every answer about a file carries."""
    inline = is_inline_safe(record.content_type)
    headers = {
        "etag": f'"{record.digest}"',
        "last-modified": formatdate(record.created, usegmt=True),
        "accept-ranges": "bytes",
        "content-disposition": (
            f"{'inline' if inline else 'attachment'}; filename*=UTF-8''{quote(record.name, safe='')}"
        ),
        "x-content-type-options": "nosniff",
        # A stranger's upload opened in a browser gets an origin of its own and may load nothing but itself.
        "content-security-policy": (
            "sandbox; default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'"
            if inline
            else "sandbox; default-src 'none'"
        ),
        "cross-origin-resource-policy": "cross-origin",
    }
    if record.acl is not None:
        headers["cache-control"] = "private"
    if record.expires is not None:
        headers["expires"] = formatdate(record.expires, usegmt=True)
    return headers


def read_range(header: str, size: int) -> tuple[int, int] | None:
    """Return start and end (not included) of a single range; None means the whole file.

    Several ranges, other units and garbage are ignored, as RFC 9110 section 14.2 allows; raises a 416
    Refusal for a range outside the file.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match[1], match[2]
    if not first:
        start, end = max(size - int(last), 0), size
    else:
        start = int(first)
        end = min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= end:
        raise Refusal(
            416,
            "range_not_satisfiable",
            f"The file has {size} bytes; {header} lies outside",
            {"Content-Range": f"bytes */{size}"},
        )
    return start, end


def _names(header: str | None, etag: str) -> bool:
    """Tell whether an If-None-Match header names `etag`, compared weakly as RFC 9110 section 13.1.2 asks."""
    if header is None:
        return False
    return header.strip() == "*" or etag in {tag.strip().removeprefix("W/") for tag in header.split(",")}


def _no_file() -> Refusal:
    return Refusal(404, "not_found", "There is no such file, or no longer")
