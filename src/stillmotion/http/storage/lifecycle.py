"""How long a caller's files are kept and who may read them, by the headers fal's clients send.

An ACL speaks of users; here a user is a key's id. The owner may always read, and so may anyone who knows the
address of a file without an ACL.
"""

from typing import Annotated

from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request as HttpRequest

from stillmotion.http.answers import Refusal
from stillmotion.settings import DAY_S, MOST_DAYS
from stillmotion.types import Access, Acl, Caller, FileRecord, Lifecycle

#: Uploads send the first, some both with the same words; submits send the second, for the film.
HEADERS = ("x-fal-object-lifecycle", "x-fal-object-lifecycle-preference")
MAX_RULES = 100


class _Rule(BaseModel):
    user: Annotated[str, Field(max_length=200)]
    decision: Access


class _Acl(BaseModel):
    default: Access | None = None
    rules: Annotated[list[_Rule], Field(max_length=MAX_RULES)] | None = None


class _Preference(BaseModel):
    #: 0 and null are fal's ways to say "your own rule".
    expiration_duration_seconds: Annotated[int, Field(ge=0, le=MOST_DAYS * DAY_S)] | None = None
    initial_acl: _Acl | None = None


def read_lifecycle(call: HttpRequest) -> Lifecycle:
    """Raise a 400 Refusal for a malformed header."""
    name = next((name for name in HEADERS if name in call.headers), None)
    if name is None:
        return Lifecycle()
    try:
        asked = _Preference.model_validate_json(call.headers[name])
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in problem["loc"])
        raise Refusal(
            400, "bad_request", f"Header {name}: {place + ': ' if place else ''}{problem['msg']}"
        ) from None
    return Lifecycle(
        keep_s=asked.expiration_duration_seconds or None,
        acl=None if asked.initial_acl is None else _settle(asked.initial_acl),
    )


def _settle(asked: _Acl) -> Acl | None:
    acl = Acl(
        default=asked.default or Access.ALLOW,
        rules={rule.user: rule.decision for rule in asked.rules or ()},
    )
    return None if acl == Acl() else acl


def access_to(record: FileRecord, caller: Caller | None) -> Access:
    """Tell what a caller, None for one without a key, may know of a file."""
    if record.acl is None or (caller is not None and caller.key_id == record.key_id):
        return Access.ALLOW
    return record.acl.default if caller is None else record.acl.rules.get(caller.key_id, record.acl.default)
