"""One thing that can be called, and how the OpenAPI document spells it."""

from collections.abc import Mapping
from dataclasses import dataclass

from stillmotion.http.documents.schema import Schema, answer

#: What each status of a refusal means; its body is an Error unless said otherwise.
_REFUSALS = {
    400: ("A header or parameter is malformed.", "Error"),
    401: ("No key, or none that this server knows.", "Error"),
    403: ("The key, or the signature of the URL, does not allow it.", "Error"),
    404: ("There is no such thing, or it is someone else's.", "Error"),
    410: ("It was there and has expired.", "Error"),
    413: ("The body is too large.", "Error"),
    416: ("The range lies outside the file.", "Error"),
    421: ("The Host header holds a name that this server does not answer to.", "Error"),
    422: ("The input does not fit; each entry names its field.", "ValidationErrors"),
    429: ("Too many; `Retry-After` says when to ask again.", "Error"),
    499: ("Cancelled, or the client left.", "Error"),
    500: ("The work failed.", "WorkFailed"),
    507: ("The server's disk takes nothing more.", "Error"),
    503: ("The server cannot take the call now; the text says whether it may have been kept.", "Error"),
    504: ("It did not start before the deadline of X-Fal-Request-Timeout.", "Error"),
}
#: How a call that makes a film may end besides with the film.
FAILURES = (422, 499, 500, 504)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    method: str
    path: str
    tag: str
    id: str
    summary: str
    #: By status: an OpenAPI response.
    answers: Mapping[int | str, Schema]
    #: Statuses of `_REFUSALS` it answers besides those that any call may be answered.
    refusals: tuple[int, ...] = ()
    parameters: tuple[Schema, ...] = ()
    #: OpenAPI content of the body.
    body: Schema | None = None
    needs_key: bool = True

    def item(self) -> Schema:
        refusals = {400, *self.refusals, *((401, 429) if self.needs_key else ()), 421, 503}
        described = {str(code): answer(*_REFUSALS[code]) for code in refusals}
        described |= {str(code): response for code, response in self.answers.items()}
        item: Schema = {
            "operationId": self.id,
            "tags": [self.tag],
            "summary": self.summary,
            "responses": dict(sorted(described.items())),
        }
        if self.parameters:
            item["parameters"] = list(self.parameters)
        if self.body is not None:
            item["requestBody"] = {"content": self.body}
        if not self.needs_key:
            item["security"] = []
        return item


def query(name: str, schema: Schema, *, required: bool = False) -> Schema:
    return {"name": name, "in": "query", "required": required, "schema": schema}


def header(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "header", "required": False, "schema": schema}


def in_path(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": schema}
