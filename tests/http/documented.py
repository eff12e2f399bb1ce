"""Holds every answer of these tests against `/openapi.json`, by a hook on their clients."""

import re

import httpx

from stillmotion.http.documents.operations import operations
from stillmotion.http.ways.doors import PLANES

_OPERATIONS = [
    (one.method, re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(one.path))), one.item()["responses"])
    for one in operations()
]


async def check_documented(answer: httpx.Response) -> None:
    """Fail for a status that the called operation is not said to answer."""
    if answer.headers.get("x-fal-error-type") == "internal_error":
        # Broken on purpose by its test.
        return
    path = answer.request.url.path
    if plane := PLANES.get(answer.request.headers["host"].partition(":")[0].lower().rstrip(".")):
        path = f"/{plane}{path}"
    for method, pattern, known in _OPERATIONS:
        if method == answer.request.method and pattern.fullmatch(path.removesuffix("/") or "/"):
            described = "default" in known or str(answer.status_code) in known
            assert described, f"{method} {path} answers {answer.status_code}: {await answer.aread()!r}"
