"""JSON schemas of what goes over the wire, and the document fal publishes for one endpoint.

Inputs and outputs come from the pydantic models that validate them. Where fal's own documents differ from its
service (`logs` as an object, cancel answering `{success}`), these say what is really answered.
"""

import re
from collections.abc import Mapping
from typing import Any

from stillmotion.endpoints import Endpoint
from stillmotion.http.ways.doors import Door

Schema = dict[str, Any]

REF = "#/components/schemas/"
API_KEY: Schema = {
    "type": "apiKey",
    "in": "header",
    "name": "Authorization",
    "description": "`Key <key_id>:<key_secret>`; `stillmotion keys create NAME` makes one.",
}
STATUSES = ("IN_QUEUE", "IN_PROGRESS", "COMPLETED")


def text(description: str, **more: Any) -> Schema:
    return {"type": "string", "description": description, **more}


def record(title: str, properties: Mapping[str, Schema], optional: tuple[str, ...] = ()) -> Schema:
    """Return the schema of an object; every property but the `optional` ones is always there."""
    return {
        "title": title,
        "type": "object",
        "x-fal-order-properties": list(properties),
        "properties": dict(properties),
        "required": [name for name in properties if name not in optional],
    }


LOG_ENTRY = record(
    "LogEntry",
    {
        "message": text("The line."),
        "timestamp": text("When it was written, UTC.", format="date-time"),
        "level": text("How grave it is.", enum=["STDERR", "STDOUT", "ERROR", "INFO", "WARN", "DEBUG"]),
        "source": text("Who wrote it.", enum=["USER"]),
        "labels": {"type": "object", "description": "Level and source once more."},
    },
)
QUEUE_STATUS = record(
    "QueueStatus",
    {
        "status": text("COMPLETED is the only end, of failed and cancelled requests too.", enum=STATUSES),
        "request_id": text("The request id."),
        "gateway_request_id": text("The same id; only in the answer to a submit."),
        "response_url": text("Where the result is read.", format="uri"),
        "status_url": text("Where this status is read.", format="uri"),
        "cancel_url": text("Where the request is cancelled.", format="uri"),
        "queue_position": {
            "type": "integer",
            "minimum": 0,
            "description": "How many requests wait before it; 0 is next, or no longer waiting.",
        },
        "logs": {
            "type": "array",
            "items": {"$ref": f"{REF}LogEntry"},
            "description": "All lines so far; empty unless the call said logs=1.",
        },
        "metrics": {
            "type": "object",
            "description": "`inference_time`, in seconds, once it is COMPLETED.",
            "properties": {"inference_time": {"type": "number", "minimum": 0}},
        },
        "error": text("Why there is no result; only when it failed or was cancelled."),
        "error_type": text("The same, for programs."),
    },
    optional=("gateway_request_id", "error", "error_type"),
)
CANCELLED = record(
    "CancelAnswer",
    {
        "status": text(
            "What became of the call.", enum=["CANCELLATION_REQUESTED", "ALREADY_COMPLETED", "NOT_FOUND"]
        )
    },
)


def pascal_name(endpoint: Endpoint) -> str:
    """`FastSvdLcmTextToVideo`: the id without its owner, as fal names an endpoint's types."""
    return pascal_case(endpoint.id.partition("/")[2])


def pascal_case(path: str) -> str:
    return "".join(word.capitalize() for word in re.split("[-/]", path))


def model_schemas(endpoint: Endpoint) -> dict[str, Schema]:
    """Return the schemas of an endpoint's input, its output and what these hold, by name."""
    found: dict[str, Schema] = {}
    for model, name in ((endpoint.Input, input_name(endpoint)), (endpoint.Output, output_name(endpoint))):
        schema = model.model_json_schema(ref_template=REF + "{model}")
        found |= schema.pop("$defs", {})
        found[name] = {**schema, "title": name}
    for schema in found.values():
        schema["x-fal-order-properties"] = list(schema["properties"])
        for name, field in schema["properties"].items():
            field.setdefault("title", name.replace("_", " ").title())
            if "description" not in field:
                # Where None is allowed, pydantic leaves the words with the other form.
                field["description"] = next(form.pop("description") for form in field["anyOf"])
    return found


def input_name(endpoint: Endpoint) -> str:
    return f"{pascal_name(endpoint)}Input"


def output_name(endpoint: Endpoint) -> str:
    return f"{pascal_name(endpoint)}Output"


def forms(field: Schema) -> list[Schema]:
    """Return the alternatives of a field that takes several; itself otherwise."""
    return field.get("anyOf", [field])


def in_openapi_30(schemas: dict[str, Schema]) -> dict[str, Schema]:
    """Say what OpenAPI 3.0 lacks as it can: no type `null`, nothing beside a `$ref`."""
    for schema in schemas.values():
        for name, field in schema["properties"].items():
            if {"type": "null"} in field.get("anyOf", []):
                [form] = [form for form in field.pop("anyOf") if form != {"type": "null"}]
                rest = {key: fact for key, fact in field.items() if key != "default"}
                schema["properties"][name] = {**rest, **form, "nullable": True}
            elif "$ref" in field:
                field["allOf"] = [{"$ref": field.pop("$ref")}]
    return schemas


def endpoint_document(endpoint: Endpoint, door: Door) -> Schema:
    """Return the OpenAPI document of one endpoint in fal's shape; its server is the door it was asked at."""
    schemas = {
        "QueueStatus": QUEUE_STATUS,
        "LogEntry": LOG_ENTRY,
        "CancelAnswer": CANCELLED,
        **in_openapi_30(model_schemas(endpoint)),
    }
    return {
        "openapi": "3.0.4",
        "info": {
            "title": f"Queue OpenAPI for {endpoint.id}",
            "version": "1.0.0",
            "description": f"The OpenAPI schema for the {endpoint.id} queue.",
            "x-fal-metadata": {
                "endpointId": endpoint.id,
                "category": endpoint.category,
                "playgroundUrl": f"{door.origin}/",
                "documentationUrl": f"{door.origin}/models/{endpoint.id}/llms.txt",
                "about": endpoint.description,
            },
        },
        "components": {"securitySchemes": {"apiKeyAuth": API_KEY}, "schemas": schemas},
        "paths": _queue_paths(endpoint),
        "servers": [{"url": door.bases.queue}],
        "security": [{"apiKeyAuth": []}],
    }


def _queue_paths(endpoint: Endpoint) -> Schema:
    one = f"/{endpoint.id}/requests/{{request_id}}"
    request_id = {
        "name": "request_id",
        "in": "path",
        "required": True,
        "schema": text("Request ID"),
    }
    logs = {
        "name": "logs",
        "in": "query",
        "required": False,
        "schema": {"type": "number", "description": "1 or true: with the log lines so far."},
    }
    return {
        f"{one}/status": {
            "get": {
                "parameters": [request_id, logs],
                "responses": {
                    "202": answer("Waiting or running.", "QueueStatus"),
                    "200": answer("Completed.", "QueueStatus"),
                },
            }
        },
        f"{one}/cancel": {
            "put": {
                "parameters": [request_id],
                "responses": {"202": answer("It will be cancelled.", "CancelAnswer")},
            }
        },
        f"/{endpoint.id}": {
            "post": {
                "requestBody": {"required": True, "content": json_of(input_name(endpoint))},
                "responses": {"200": answer("The request status.", "QueueStatus")},
            }
        },
        one: {
            "get": {
                "parameters": [request_id],
                "responses": {"200": answer("The result.", output_name(endpoint))},
            }
        },
    }


def json_of(name: str) -> Schema:
    return {"application/json": {"schema": {"$ref": REF + name}}}


def answer(description: str, name: str) -> Schema:
    return {"description": description, "content": json_of(name)}
