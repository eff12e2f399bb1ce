"""The result of a finished request: its output, or its failure replayed with its own status and body."""

from typing import Any

from starlette.responses import Response

from stillmotion.http import wire
from stillmotion.http.answers import Json, failed
from stillmotion.http.site import Site
from stillmotion.http.ways.edge import REQUEST_ID
from stillmotion.store.files import get_file, is_available
from stillmotion.types import Failure, Outcome, Request

_EXPIRED = Failure(
    status=410, kind="output_expired", message="The film of this request has expired and was removed."
)


async def find_output(site: Site, request: Request) -> dict[str, Any] | Failure:
    """Return the output of a finished request, or why it has none."""
    if request.outcome is not Outcome.OK:
        return wire.failure_of(request)
    assert request.result is not None
    file_id: str = request.result["file"]
    film = await site.store.read(lambda conn: get_file(conn, file_id))
    if film is None or not is_available(film, site.clock.now()):
        return _EXPIRED
    return wire.output(request, film)


async def answer_result(site: Site, request: Request) -> Response:
    headers = {REQUEST_ID: request.id}
    if request.fingerprint is not None:
        headers["x-stillmotion-fingerprint"] = request.fingerprint
    if request.timings:
        headers["x-stillmotion-device-seconds"] = f"{wire.device_seconds(request):.3f}"
    output = await find_output(site, request)
    if isinstance(output, Failure):
        return failed(output, headers)
    return Json(output, headers=headers)
