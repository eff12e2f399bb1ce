"""fal's JSON, spelled here and nowhere else: pure functions from our words to theirs.

Every key is sent in every state, logs are always a list, and the only terminal status is COMPLETED:
clients hang or crash on anything else.
"""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError

from stillmotion.endpoints import File, VideoOutput, app_of
from stillmotion.signatures import Seal
from stillmotion.store.outbox import Delivery
from stillmotion.types import Bases, CancelAnswer, Failure, FileRecord, LogLine, Outcome, Request, State

#: Where fal explains each error type.
ERROR_PAGES = "https://docs.fal.ai/errors/#"
#: The model failed on a good input; fal spells this one as it does input errors.
MODEL_BROKE = "internal_server_error"
#: fal's names for errors that pydantic names by the kind of sequence.
_LENGTHS = {
    "string_too_short": "sequence_too_short",
    "too_short": "sequence_too_short",
    "string_too_long": "sequence_too_long",
    "too_long": "sequence_too_long",
}
#: An input value of at most this many characters is echoed in a validation error.
ECHO_CHARACTERS = 100
#: Longest payload a webhook carries (1 MiB).
PAYLOAD_BYTES = 1024 * 1024

#: What a request's timings hold besides the stages that need its device.
OFF_DEVICE = {"queue", "close", "publish"}

#: The query parameter that carries a temporary token, on streams only.
TOKEN_PARAMETER = "fal_jwt_token"  # noqa: S105 - a name
#: A comment, which every reader of server-sent events skips.
PING = b": ping\n\n"

NOT_FOUND: dict[str, Any] = {"status": "NOT_FOUND"}
IN_PROGRESS = Failure(status=400, kind="request_in_progress", message="Request is still in progress")

_STATUS = {
    State.HELD: "IN_QUEUE",
    State.READY: "IN_QUEUE",
    State.RUNNING: "IN_PROGRESS",
    State.DONE: "COMPLETED",
}
_CANCEL = {
    CancelAnswer.REMOVED: (202, {"status": "CANCELLATION_REQUESTED"}),
    CancelAnswer.ASKED: (202, {"status": "CANCELLATION_REQUESTED"}),
    CancelAnswer.ALREADY_DONE: (400, {"status": "ALREADY_COMPLETED"}),
    CancelAnswer.UNKNOWN: (404, NOT_FOUND),
}


def to_bytes(body: object) -> bytes:
    """Encode as ASCII JSON: no broken character survives a split chunk, no lone surrogate fails to encode."""
    return json.dumps(body, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


def request_urls(request: Request) -> dict[str, str]:
    """Return the URLs of a request by the door it came in, without the endpoint's sub-path."""
    root = f"{request.bases.queue}/{app_of(request.endpoint)}/requests/{request.id}"
    return {"response_url": root, "status_url": f"{root}/status", "cancel_url": f"{root}/cancel"}


def submitted(request: Request, position: int) -> dict[str, Any]:
    return {
        "status": _STATUS[State.READY],
        "request_id": request.id,
        "gateway_request_id": request.id,
        **request_urls(request),
        "queue_position": position,
        "logs": [],
        "metrics": {},
    }


def status(request: Request, position: int, logs: Sequence[LogLine]) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status, 202 until done, and the body."""
    body: dict[str, Any] = {
        "status": _STATUS[request.state],
        "request_id": request.id,
        **request_urls(request),
        "queue_position": position,
        "logs": [log_entry(line) for line in logs],
        "metrics": {},
    }
    if request.state is not State.DONE:
        return 202, body
    body["metrics"] = {"inference_time": inference_time(request)}
    if request.outcome is not Outcome.OK:
        failure = failure_of(request)
        body |= {"error": failure.message, "error_type": failure.kind}
    return 200, body


def progress(request: Request) -> dict[str, Any] | None:
    """Return the last step the runner told of; None while there is none."""
    return None if request.progress is None else dict(request.progress)


def event(body: Mapping[str, Any]) -> bytes:
    """Spell one server-sent event. Its JSON is ASCII: clients decode each network chunk by itself."""
    return b"data: " + to_bytes(body) + b"\n\n"


def stream_error(reason: Failure) -> dict[str, Any]:
    """Return the last event of a stream that fails, in the form of fal's workflow streams."""
    return {
        "type": "error",
        "message": reason.message,
        "error": {"status": reason.status, "body": failure(reason)},
    }


def inference_time(request: Request) -> float:
    """Return the seconds from the film's beginning to its end; without a film from the last claim, if any."""
    if request.started is None or request.finished is None:
        return 0.0
    began = request.created + request.timings["queue"] if request.timings else request.started
    return round(max(request.finished - began, 0.0), 3)


def device_seconds(request: Request) -> float:
    """Return for how long the film had its device to itself."""
    return round(sum(s for stage, s in request.timings.items() if stage not in OFF_DEVICE), 3)


def log_entry(line: LogLine) -> dict[str, Any]:
    moment = datetime.fromtimestamp(line.at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {
        "message": line.message,
        "timestamp": moment,
        "level": line.level.value,
        "source": "USER",
        # The Swift and Java clients read level and source from here.
        "labels": {"level": line.level.value, "source": "USER"},
    }


def output(request: Request, film: FileRecord) -> dict[str, Any]:
    """Return the bare model output of a request that went well."""
    assert request.result is not None
    return VideoOutput(
        video=File(
            url=file_url(request.bases, film),
            content_type=film.content_type,
            file_name=film.name,
            file_size=film.size,
        ),
        seed=request.result["seed"],
    ).model_dump()


def file_url(bases: Bases, record: FileRecord) -> str:
    return f"{bases.files}/files/{record.id}/{quote(record.name)}"


def upload(bases: Bases, record: FileRecord, signature: str) -> dict[str, str]:
    return {
        "upload_url": f"{bases.files}/uploads/{record.id}?{signature}",
        "file_url": file_url(bases, record),
    }


def uploaded(bases: Bases, record: FileRecord) -> dict[str, str]:
    return {"access_url": file_url(bases, record)}


def multipart_upload(bases: Bases, record: FileRecord) -> dict[str, str]:
    return {**uploaded(bases, record), "uploadId": record.id}


def upload_part(number: int, etag: str) -> dict[str, Any]:
    return {"partNumber": number, "etag": etag}


def upload_token(bases: Bases, token: str, expires: datetime) -> dict[str, str]:
    # Python before 3.11 reads an offset, but no Z.
    return {
        "token": token,
        "token_type": "Bearer",
        "base_url": bases.files,
        "expires_at": expires.isoformat(),
    }


def cancelled(answer: CancelAnswer) -> tuple[int, dict[str, Any]]:
    return _CANCEL[answer]


def failure_of(request: Request) -> Failure:
    """Return why a finished request has no output."""
    if request.outcome is Outcome.CANCELLED:
        return Failure(status=499, kind="client_cancelled", message="Request cancelled by the client.")
    assert request.failure is not None
    return request.failure


def failure(reason: Failure) -> dict[str, Any]:
    """Return the error body: a `detail` list for the model's errors, a text and a type for all others."""
    if reason.field is None and reason.status != 422 and reason.kind != MODEL_BROKE:
        return {"detail": reason.message, "error_type": reason.kind}
    location = ["body"] if reason.field is None else ["body", reason.field]
    return {"detail": [_detail(location, reason.message, reason.kind, reason.context)]}


def failure_headers(reason: Failure) -> dict[str, str]:
    headers = {
        "x-fal-error-type": reason.kind,
        "x-fal-retryable": "true" if reason.status in (429, 503) else "false",
        "x-fal-billable-units": "0",
    }
    if reason.status == 429:
        headers["x-fal-needs-retry"] = "1"
    if reason.kind == "request_timeout":
        # Tells clients that their own deadline passed, so that they do not retry the 504.
        headers["x-fal-request-timeout-type"] = "user"
    return headers


def webhook(request: Request, film: FileRecord | None) -> bytes:
    """Return the body of a finished request's webhook; `film` is None when there is none or it is gone."""
    body: dict[str, Any] = {"request_id": request.id, "gateway_request_id": request.id, "status": "OK"}
    payload: dict[str, Any] | None = None
    problem = None
    if request.outcome is not Outcome.OK:
        reason = failure_of(request)
        body |= {"status": "ERROR", "error": f"Invalid status code: {reason.status}"}
        payload = failure(reason)
    elif film is None:
        problem = "The film of this request has expired and was removed."
    else:
        payload = output(request, film)
    try:
        if len(to_bytes(payload)) > PAYLOAD_BYTES:
            payload, problem = None, f"The payload is larger than {PAYLOAD_BYTES} bytes; fetch the result."
    except (TypeError, ValueError):
        payload, problem = None, "The payload cannot be written as JSON."
    body["payload"] = payload
    if problem is not None:
        body["payload_error"] = problem
    return to_bytes(body)


def webhook_headers(seal: Seal) -> dict[str, str]:
    return {
        "X-Fal-Webhook-Request-Id": seal.request_id,
        "X-Fal-Webhook-User-Id": seal.user_id,
        "X-Fal-Webhook-Timestamp": str(seal.timestamp),
        "X-Fal-Webhook-Signature": seal.signature,
    }


def delivery(one: Delivery, now: float) -> dict[str, Any]:
    """Return a webhook delivery as an operator sees it; what was sent is not shown."""
    return {
        "request": one.request_id,
        "url": one.url,
        "due": one.due,
        "tries": one.tries,
        "sending": one.lease_until is not None and one.lease_until > now,
        "last_error": one.last_error,
        "delivered": one.delivered,
        "parked": one.parked,
    }


def jwks(public_keys: Sequence[bytes]) -> dict[str, Any]:
    """Return the keys that sign webhooks. `x` keeps its padding: fal's own verifier fails without it."""
    keys = [
        {"kty": "OKP", "crv": "Ed25519", "x": base64.urlsafe_b64encode(key).decode()} for key in public_keys
    ]
    return {"keys": keys}


def validation(error: ValidationError) -> dict[str, Any]:
    """Return fal's 422 body for an input that does not fit its model."""
    details: list[dict[str, Any]] = []
    for problem in error.errors(include_url=False):
        kind, message = problem["type"], problem["msg"]
        context: Mapping[str, Any] = problem.get("ctx", {})
        if kind == "model_type":
            # pydantic's own text names our class, which says nothing to a caller.
            kind, message, context = "dict_type", "Input should be an object", {}
        entry = _detail(["body", *problem["loc"]], message, _LENGTHS.get(kind, kind), context)
        if _may_echo(problem["input"]):
            entry["input"] = problem["input"]
        details.append(entry)
    return {"detail": details}


def query_refused(name: str, message: str) -> dict[str, Any]:
    """Return fal's 422 body for a query parameter."""
    return {"detail": [_detail(["query", name], message, "value_error", {})]}


def idempotency_reused() -> dict[str, Any]:
    """Return fal's 422 body for one idempotency key beside two different submits."""
    message = (
        "This Idempotency-Key was sent before with another body or endpoint; "
        "send a new one for a new request, or the same body to be answered with the first request"
    )
    return {"detail": [_detail(["header", "idempotency-key"], message, "value_error", {})]}


def input_headers(body: Mapping[str, Any]) -> dict[str, str]:
    """Return what goes with a 422 body: the type of its first problem stands for all of them."""
    return failure_headers(Failure(status=422, kind=body["detail"][0]["type"], message=""))


def _detail(
    location: Sequence[str | int], message: str, kind: str, context: Mapping[str, Any]
) -> dict[str, Any]:
    entry: dict[str, Any] = {"loc": list(location), "msg": message, "type": kind, "url": ERROR_PAGES + kind}
    if context:
        entry["ctx"] = {
            name: fact if isinstance(fact, bool | int | float | list) else str(fact)
            for name, fact in context.items()
        }
    return entry


def _may_echo(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return len(value) <= ECHO_CHARACTERS and "://" not in value
    return value is None or (isinstance(value, int) and abs(value) < 2**64)
