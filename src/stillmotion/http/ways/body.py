"""Request bodies, read with a cap and parsed without surprises."""

from collections.abc import AsyncIterator
from typing import Any

from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from stillmotion.errors import InputRefused
from stillmotion.http.answers import Refusal

#: Values in a body, by its commas: millions of tiny ones would hold up everyone while they are made.
MOST_VALUES = 100_000


async def read_json(request: Request, max_bytes: int) -> Any:
    """Parse the body, whatever its content type says; no body at all is an empty object.

    Clients send zero bytes when their user forgot the input, and then deserve to hear which field is
    missing.
    """
    body = await read_body(request, max_bytes)
    if not body.strip():
        return {}
    if body.count(b",") > MOST_VALUES:
        raise InputRefused(f"The body holds more than {MOST_VALUES:,} values", kind="json_invalid")
    try:
        # This parser knows no NaN, no lone surrogate and no nesting deep enough to hurt.
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InputRefused(
            f"The body is not JSON: {error}", kind="json_invalid", context={"error": str(error)}
        ) from None


async def read_body(request: Request, max_bytes: int) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise _too_large(max_bytes)
    received = bytearray()
    async for chunk in stream(request):
        if len(received) + len(chunk) > max_bytes:
            raise _too_large(max_bytes)
        received += chunk
    return bytes(received)


async def stream(request: Request) -> AsyncIterator[bytes]:
    """Yield the body; a client that leaves midway is refused without an answer anyone reads."""
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect:
        raise Refusal(499, "client_disconnected", "The client left before its body was whole") from None


def _too_large(max_bytes: int) -> Refusal:
    return Refusal(
        413,
        "payload_too_large",
        f"The body is larger than {max_bytes} bytes; upload files to storage and send their URL instead",
    )
