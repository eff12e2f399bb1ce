"""Answers, and the one exception that carries one: everything a route refuses is a `Refusal`."""

import errno
import logging
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from stillmotion.errors import (
    CommitUnanswered,
    IdempotencyReused,
    InputRefused,
    LimitReached,
    StillmotionError,
    StoreUnavailable,
)
from stillmotion.http import wire
from stillmotion.types import Failure

log = logging.getLogger("stillmotion.http")

#: How the system says that a disk is full, over its quota or limit, read-only or broken.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


class Json(Response):
    """A JSON answer in ASCII; clients ignore bodies of any other content type."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return wire.to_bytes(content)


class Refusal(StillmotionError):
    """A call is refused with this status, text and error type."""

    def __init__(
        self, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.failure = Failure(status=status, kind=kind, message=message)
        self.headers = dict(headers or {})


class BadInput(StillmotionError):
    """The input does not fit; carries fal's 422 body."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        super().__init__("the input was refused")
        self.body = body


class Instead(StillmotionError):
    """The call gets this answer, whatever its route was about to send."""

    def __init__(self, answer: Response) -> None:
        super().__init__("answered otherwise")
        self.answer = answer


class Unknown(StillmotionError):
    """There is no such request for this caller; someone else's answers the same bytes."""


def failed(reason: Failure, headers: Mapping[str, str] | None = None) -> Json:
    return Json(
        wire.failure(reason), reason.status, headers={**wire.failure_headers(reason), **(headers or {})}
    )


def unknown_path(path: str) -> Refusal:
    return Refusal(404, "not_found", f"Path {path[:200]} not found")


def wrong_method(allowed: str) -> Refusal:
    return Refusal(
        405, "method_not_allowed", f"Method not allowed; this address takes {allowed}", {"Allow": allowed}
    )


async def answer_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return failed(error.failure, error.headers)


async def answer_instead(request: Request, error: Exception) -> Response:
    assert isinstance(error, Instead)
    return error.answer


async def answer_unknown(request: Request, error: Exception) -> Response:
    reason = Failure(status=404, kind="not_found", message="There is no such request")
    return Json(wire.NOT_FOUND, 404, headers=wire.failure_headers(reason))


async def answer_input(request: Request, error: Exception) -> Response:
    assert isinstance(error, InputRefused)
    return failed(error.failure)


async def answer_bad_input(request: Request, error: Exception) -> Response:
    assert isinstance(error, BadInput)
    return Json(error.body, 422, headers=wire.input_headers(error.body))


async def answer_limit(request: Request, error: Exception) -> Response:
    assert isinstance(error, LimitReached)
    return failed(error.failure, {"Retry-After": str(error.retry_after_s)})


async def answer_idempotency(request: Request, error: Exception) -> Response:
    return await answer_bad_input(request, BadInput(wire.idempotency_reused()))


async def answer_store(request: Request, error: Exception) -> Response:
    message = "The database did not take the call and nothing of it was kept; try again shortly."
    if isinstance(error, CommitUnanswered):
        message = (
            "The database went away before it said whether the call was kept: try again shortly. A submit "
            "with an Idempotency-Key is kept once; one without may run twice."
        )
    return failed(Failure(status=503, kind="store_unavailable", message=message), {"Retry-After": "1"})


async def answer_disk(request: Request, error: Exception) -> Response:
    """Answer for a disk that takes nothing more; any other error of the system is one of ours."""
    assert isinstance(error, OSError)
    if error.errno not in FULL:
        raise error
    log.error("%s: the media store takes nothing more", error.strerror)
    reason = "The server's disk takes nothing more, nothing of the call was kept; its operator must make room"
    return failed(Failure(status=507, kind="insufficient_storage", message=reason))


async def answer_http(request: Request, error: Exception) -> Response:
    """Answer what Starlette's router itself refuses: an unknown path or method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return await answer_refusal(request, wrong_method((error.headers or {}).get("Allow", "")))
    return await answer_refusal(request, unknown_path(request.scope["path"]))


#: For Starlette: which exception becomes which answer.
ANSWERS = {
    Refusal: answer_refusal,
    Instead: answer_instead,
    Unknown: answer_unknown,
    InputRefused: answer_input,
    BadInput: answer_bad_input,
    LimitReached: answer_limit,
    IdempotencyReused: answer_idempotency,
    StoreUnavailable: answer_store,
    OSError: answer_disk,
    HTTPException: answer_http,
}
