"""What can be called here: one table of operations, which the OpenAPI document is written from.

`tests/http/test_schema.py` walks the app's routes and fails for one that no operation here reaches;
`tests/conformance/test_openapi.py` lets schemathesis call every operation of a real server.
"""

from stillmotion.endpoints import ENDPOINTS, Endpoint
from stillmotion.http import wire
from stillmotion.http.documents.operation import FAILURES, Operation, header, in_path, query
from stillmotion.http.documents.operations_files import file_operations, storage_operations
from stillmotion.http.documents.schema import (
    REF,
    Schema,
    answer,
    in_openapi_30,
    input_name,
    json_of,
    model_schemas,
    output_name,
    pascal_case,
    pascal_name,
    text,
)

_REQUEST_ID = in_path("request_id", text("As the submit answered it.", format="uuid"))
_LOGS = query("logs", text("1 or true: with the log lines.", enum=["0", "1", "true", "false"]))
_WEBHOOK = query("fal_webhook", text("Told when the request has ended.", format="uri"))
_MAX_QUEUE = query(
    "fal_max_queue_length",
    {"type": "integer", "minimum": 0, "description": "Refuse with 429 when more requests wait."},
)
_WISHES = (
    header("X-Fal-Queue-Priority", text("low waits behind normal ones.", enum=["normal", "low"])),
    header(
        "X-Fal-Request-Timeout",
        {
            "type": "number",
            "minimum": 1,
            "description": "Seconds within which work must start, else it fails with 504.",
        },
    ),
    header("X-Fal-Store-IO", text("0: forget input and result soon after the end.", enum=["0", "1"])),
    header("X-Fal-No-Retry", text("1: fail with the first runner that dies.", enum=["0", "1"])),
    header(
        "X-Fal-Object-Lifecycle-Preference",
        text("JSON: `expiration_duration_seconds` and `initial_acl` of the film."),
    ),
)
_IDEMPOTENCY = header(
    "Idempotency-Key",
    text("The same again with the same body is the same request.", pattern="^[!-~]{1,255}$"),
)
_JSON_TEXT: Schema = {"application/json": {"schema": {"type": "string"}}}
_NO_TARGET = answer("There is no target, or it is not one of fal's.", "Error")
_EVENTS: Schema = {
    "description": "Server-sent events, each one JSON document.",
    "content": {"text/event-stream": {"schema": {}}},
}
_TOKEN = query(wire.TOKEN_PARAMETER, text("A temporary token instead of the key."))


def operations() -> list[Operation]:
    """Return every operation, in the order of the document."""
    apps = {endpoint.app for endpoint in ENDPOINTS.values()}
    return [
        *(one for endpoint in ENDPOINTS.values() for one in _calls(endpoint)),
        *(one for app in sorted(apps) for one in _requests(app)),
        *storage_operations(),
        *file_operations(),
        *_tokens(),
        *_proxy(),
        *_documents(),
        *_state(),
    ]


def _calls(endpoint: Endpoint) -> list[Operation]:
    name = pascal_name(endpoint)
    body = json_of(input_name(endpoint))
    film: dict[int | str, Schema] = {200: answer("The film.", output_name(endpoint))}
    refusals = (413, 422, 507)
    return [
        Operation(
            method="POST",
            path=f"/queue/{endpoint.id}",
            tag="queue",
            id=f"submit{name}",
            summary=f"Submit: {endpoint.title}",
            answers={
                200: {**answer("It is on disk and will be run.", "QueueStatus"), "links": _links(endpoint)}
            },
            refusals=refusals,
            parameters=(_WEBHOOK, _MAX_QUEUE, _IDEMPOTENCY, *_WISHES),
            body=body,
        ),
        Operation(
            method="POST",
            path=f"/run/{endpoint.id}",
            tag="run",
            id=f"run{name}",
            summary=f"Run and wait: {endpoint.title}",
            answers=film,
            refusals=(*refusals, *FAILURES),
            parameters=_WISHES,
            body=body,
        ),
        Operation(
            method="GET",
            path=f"/run/{endpoint.id}",
            tag="run",
            id=f"runByQuery{name}",
            summary="The same with the input in the query string",
            answers=film,
            refusals=(*refusals, *FAILURES),
            parameters=(*_fields(endpoint), *_WISHES),
        ),
        *(
            Operation(
                method=method,
                path=f"/run/{endpoint.id}/stream",
                tag="run",
                id=f"{verb}{name}",
                summary="Run and tell of each step; the last event is the film",
                answers={200: _EVENTS},
                refusals=(*refusals, 403, *FAILURES),
                parameters=(_TOKEN, *fields, *_WISHES),
                body=content,
            )
            for method, verb, fields, content in (
                ("POST", "stream", (), body),
                ("GET", "streamByQuery", tuple(_fields(endpoint)), None),
            )
        ),
    ]


def _links(endpoint: Endpoint) -> Schema:
    app = pascal_case(endpoint.app)
    taken = {"request_id": "$response.body#/request_id"}
    return {
        verb: {"operationId": f"{verb}{app}", "parameters": taken} for verb in ("status", "result", "cancel")
    }


def _requests(app: str) -> list[Operation]:
    one = f"/queue/{app}/requests/{{request_id}}"
    word = pascal_case(app)
    unknown = answer("There is no such request, or it is another key's.", "NotFound")
    return [
        Operation(
            method="GET",
            path=f"{one}/status",
            tag="queue",
            id=f"status{word}",
            summary="Where a request stands",
            answers={
                202: answer("It waits or runs.", "QueueStatus"),
                200: answer("It has ended, well or not.", "QueueStatus"),
                404: unknown,
            },
            parameters=(_REQUEST_ID, _LOGS),
        ),
        Operation(
            method="GET",
            path=f"{one}/status/stream",
            tag="queue",
            id=f"statusStream{word}",
            summary="Where a request stands, told at each change until it has ended",
            answers={200: _EVENTS, 404: unknown},
            refusals=(403,),
            parameters=(_REQUEST_ID, _LOGS, _TOKEN),
        ),
        *_results(app, one, unknown),
        Operation(
            method="PUT",
            path=f"{one}/cancel",
            tag="queue",
            id=f"cancel{word}",
            summary="Cancel: a queued request never starts, a running one stops at its next step",
            answers={
                202: answer("It will end soon.", "CancelAnswer"),
                400: answer("It had ended before.", "CancelAnswer"),
                404: unknown,
            },
            parameters=(_REQUEST_ID,),
        ),
    ]


def _results(app: str, one: str, unknown: Schema) -> list[Operation]:
    outputs = [
        {"$ref": REF + output_name(endpoint)} for endpoint in ENDPOINTS.values() if endpoint.app == app
    ]
    film = {"description": "The film.", "content": {"application/json": {"schema": {"anyOf": outputs}}}}
    word = pascal_case(app)
    return [
        Operation(
            method="GET",
            path=one + suffix,
            tag="queue",
            id=f"{verb}{word}",
            summary="The output, or the failure with its own status and body",
            answers={
                200: film,
                400: answer("It has not ended yet.", "Error"),
                404: unknown,
            },
            refusals=(410, *FAILURES),
            parameters=(_REQUEST_ID,),
        )
        for verb, suffix in (("result", ""), ("response", "/response"))
    ]


def _fields(endpoint: Endpoint) -> list[Schema]:
    """Return an input's fields as query parameters; a size is a preset's name there."""
    schema = in_openapi_30(model_schemas(endpoint))[input_name(endpoint)]
    return [
        query(
            name,
            next((form for form in field.get("anyOf", []) if "enum" in form), field),
            required=name in schema["required"],
        )
        for name, field in schema["properties"].items()
    ]


def _tokens() -> list[Operation]:
    return [
        Operation(
            method="POST",
            path=path,
            tag="tokens",
            id=name,
            summary="A temporary token for streams, so that a browser holds no key",
            answers={201: {"description": "The token.", "content": _JSON_TEXT}},
            refusals=(413, 422),
            body=json_of("TokenRequest"),
        )
        for path, name in (("/rest/tokens", "token"), ("/rest/tokens/realtime", "realtimeToken"))
    ]


def _proxy() -> list[Operation]:
    target = header("X-Fal-Target-Url", text("One of fal's addresses.", format="uri"))
    return [
        Operation(
            method=method,
            path="/api/fal/proxy",
            tag="proxy",
            id=f"{method.lower()}ByProxy",
            summary="The call that the target names, answered here; nothing is forwarded",
            answers={"default": {"description": "As the operation that is meant."}, 400: _NO_TARGET},
            parameters=(target,),
            needs_key=False,
        )
        for method in ("GET", "POST", "PUT", "DELETE")
    ]


def _documents() -> list[Operation]:
    names = [endpoint.id for endpoint in ENDPOINTS.values()]
    document = {
        "description": "The document.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
    page = {"description": "The page.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return [
        Operation(
            method="GET",
            path="/openapi.json",
            tag="documents",
            id="openapi",
            summary="This document",
            answers={200: document},
            needs_key=False,
        ),
        Operation(
            method="GET",
            path="/api/openapi/queue/openapi.json",
            tag="documents",
            id="endpointOpenapi",
            summary="One endpoint in fal's shape; null when there is none of that id",
            answers={
                200: document,
                404: {"description": "null", "content": {"application/json": {"schema": {"type": "null"}}}},
            },
            parameters=(query("endpoint_id", text("Its id.", examples=names), required=True),),
            needs_key=False,
        ),
        *(
            Operation(
                method="GET",
                path=f"/models/{name}/llms.txt",
                tag="documents",
                id=f"llms{pascal_case(name)}",
                summary=f"{name} on one page",
                answers={200: page},
                needs_key=False,
            )
            for name in names
        ),
        Operation(
            method="GET",
            path="/",
            tag="documents",
            id="page",
            summary="What runs here and how to call it",
            answers={
                200: {"description": "The page.", "content": {"text/html": {"schema": {"type": "string"}}}}
            },
            needs_key=False,
        ),
    ]


def _state() -> list[Operation]:
    return [
        Operation(
            method="GET",
            path="/healthz",
            tag="state",
            id="health",
            summary="The process is up",
            answers={200: answer("It is.", "Health")},
            needs_key=False,
        ),
        Operation(
            method="GET",
            path="/readyz",
            tag="state",
            id="ready",
            summary="A runner can take work",
            answers={200: answer("Yes.", "Readiness"), 503: answer("No, and why.", "Readiness")},
            needs_key=False,
        ),
        Operation(
            method="GET",
            path="/rest/.well-known/jwks.json",
            tag="webhooks",
            id="jwks",
            summary="The public keys that webhook signatures verify with",
            answers={200: answer("The keys.", "Jwks")},
            needs_key=False,
        ),
        Operation(
            method="GET",
            path="/admin/webhooks",
            tag="webhooks",
            id="listWebhooks",
            summary="The newest deliveries that wait or are parked; for keys of scope admin",
            answers={200: answer("The deliveries, newest first.", "Webhooks")},
            refusals=(403,),
            parameters=(query("all", text("1 or true: also those delivered.", enum=["1", "true"])),),
        ),
        Operation(
            method="POST",
            path="/admin/webhooks/{request_id}/redeliver",
            tag="webhooks",
            id="redeliverWebhook",
            summary="Send a webhook again; for keys of scope admin",
            answers={
                202: answer("It is due now.", "Redelivery"),
                404: answer("No finished request of that id has a webhook.", "NotFound"),
            },
            refusals=(403,),
            parameters=(_REQUEST_ID,),
        ),
    ]
