"""Documents for programs: our own OpenAPI, fal's per endpoint, llms.txt. Open to everyone, as fal's are."""

from functools import cache

from pydantic import BaseModel
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from stillmotion.endpoints import ENDPOINTS
from stillmotion.http.answers import Json, unknown_path
from stillmotion.http.documents import schema as shapes
from stillmotion.http.documents.llms import llms_page
from stillmotion.http.documents.operations import operations
from stillmotion.http.documents.schema import REF, Schema, record, text
from stillmotion.http.site import Site
from stillmotion.http.storage.multipart import Completion
from stillmotion.http.storage.uploads import Description
from stillmotion.http.tokens import Wanted
from stillmotion.http.ways.doors import Plane, door_of

_VALIDATION_ERROR = record(
    "ValidationError",
    {
        "loc": {"type": "array", "items": {"type": ["string", "integer"]}, "description": "Where it is."},
        "msg": text("What is wrong."),
        "type": text("The same, for programs."),
        "url": text("Where the type is explained.", format="uri"),
        "ctx": {"type": "object", "description": "The limits that were crossed."},
        "input": {"description": "The value, when it is short."},
    },
    optional=("ctx", "input"),
)
_SCHEMAS: dict[str, Schema] = {
    "QueueStatus": shapes.QUEUE_STATUS,
    "LogEntry": shapes.LOG_ENTRY,
    "CancelAnswer": shapes.CANCELLED,
    "NotFound": record("NotFound", {"status": text("Always the same.", enum=["NOT_FOUND"])}),
    "Error": record(
        "Error", {"detail": text("What is wrong."), "error_type": text("The same, for programs.")}
    ),
    "ValidationError": _VALIDATION_ERROR,
    "ValidationErrors": record(
        "ValidationErrors", {"detail": {"type": "array", "items": {"$ref": f"{REF}ValidationError"}}}
    ),
    #: A model's own failure is a list, as an input error is; all others are a text.
    "WorkFailed": {"anyOf": [{"$ref": f"{REF}Error"}, {"$ref": f"{REF}ValidationErrors"}]},
    "Upload": record(
        "Upload",
        {
            "upload_url": text("Takes one PUT of the bytes; needs no key.", format="uri"),
            "file_url": text("Where the file is read afterwards.", format="uri"),
        },
    ),
    "Uploaded": record("Uploaded", {"access_url": text("Where the file is read.", format="uri")}),
    "MultipartUpload": record(
        "MultipartUpload",
        {
            "access_url": text("Where the file will be; parts go below it.", format="uri"),
            "uploadId": text("Names the upload in the addresses of its parts."),
        },
    ),
    "UploadPart": record(
        "UploadPart",
        {
            "partNumber": {"type": "integer", "minimum": 1},
            "etag": text("To be listed when completing; also a header."),
        },
    ),
    "UploadToken": record(
        "UploadToken",
        {
            "token": text("Sent as `Authorization: Bearer …`."),
            "token_type": text("Always the same.", enum=["Bearer"]),
            "base_url": text("Of the host that takes the uploads.", format="uri"),
            "expires_at": text("When it ends.", format="date-time"),
        },
    ),
    "Health": record(
        "Health", {"status": text("Always ok.", enum=["ok"]), "version": text("Of this server.")}
    ),
    "Readiness": record(
        "Readiness",
        {
            "ready": {"type": "boolean", "description": "A runner can take work."},
            "reason": text("Why, or why not."),
            "profile": text("Whose weights run here."),
            "runners": {
                "type": "array",
                "description": "Those that can take work.",
                "items": record(
                    "Runner",
                    {
                        "device": text("What it runs on."),
                        "warm": {
                            "type": "integer",
                            "description": "Video sizes that take no longer the first time.",
                        },
                        "sizes": {"type": "integer", "description": "Video sizes it will have warmed."},
                    },
                ),
            },
        },
    ),
    "Webhooks": record("Webhooks", {"webhooks": {"type": "array", "items": {"type": "object"}}}),
    "Redelivery": record("Redelivery", {"status": text("Always the same.", enum=["DUE"])}),
    "Jwks": record(
        "Jwks",
        {
            "keys": {
                "type": "array",
                "items": record(
                    "Jwk",
                    {
                        "kty": text("Key type.", enum=["OKP"]),
                        "crv": text("Curve.", enum=["Ed25519"]),
                        "x": text("The public key, base64url with padding."),
                    },
                ),
            }
        },
    ),
}


#: What other calls take, by the models that validate it.
_BODIES: dict[str, type[BaseModel]] = {
    "UploadDescription": Description,
    "Completion": Completion,
    "TokenRequest": Wanted,
}


class DocumentRoutes:
    def __init__(self, site: Site) -> None:
        self.site = site
        self.routes = [
            Route("/openapi.json", self.whole),
            *(
                Route(prefix + path, page)
                for prefix in ("", f"/{Plane.SITE}")
                for path, page in (
                    ("/api/openapi/queue/openapi.json", self.one),
                    ("/models/{path:path}/llms.txt", self.page),
                )
            ),
        ]

    async def whole(self, call: HttpRequest) -> Response:
        return Json(whole_document(door_of(call).origin, self.site.version))

    async def one(self, call: HttpRequest) -> Response:
        endpoint = ENDPOINTS.get(call.query_params.get("endpoint_id", ""))
        if endpoint is None:
            return Json(None, 404)
        return Json(shapes.endpoint_document(endpoint, door_of(call)))

    async def page(self, call: HttpRequest) -> Response:
        endpoint = ENDPOINTS.get(call.path_params["path"])
        if endpoint is None:
            raise unknown_path(call.scope["path"])
        return PlainTextResponse(llms_page(endpoint, door_of(call), self.site.settings.tls_port))


def whole_document(origin: str, version: str) -> Schema:
    """Return the document of every door reached by path; fal's host names lead to the same operations."""
    return {**_document(version), "servers": [{"url": origin}]}


@cache
def _document(version: str) -> Schema:
    # Made once: it takes 10 ms, and whoever asks needs no key.
    schemas = dict(_SCHEMAS)
    for endpoint in ENDPOINTS.values():
        schemas |= shapes.model_schemas(endpoint)
    for name, model in _BODIES.items():
        schema = model.model_json_schema(ref_template=REF + "{model}")
        schemas |= schema.pop("$defs", {})
        schemas[name] = {**schema, "title": name}
    paths: dict[str, Schema] = {}
    for operation in operations():
        paths.setdefault(operation.path, {})[operation.method.lower()] = operation.item()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Stillmotion",
            "version": version,
            "description": "Short films from a sentence or a picture, behind fal.ai's HTTP contract.",
        },
        "security": [{"apiKeyAuth": []}],
        "paths": paths,
        "components": {"securitySchemes": {"apiKeyAuth": shapes.API_KEY}, "schemas": schemas},
    }
