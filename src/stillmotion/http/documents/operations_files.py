"""The operations that take files in and give them out."""

from stillmotion.http.documents.operation import Operation, header, in_path, query
from stillmotion.http.documents.schema import Schema, answer, json_of, text
from stillmotion.http.storage.multipart import MAX_PARTS

_LIFECYCLE = header(
    "X-Fal-Object-Lifecycle",
    text("JSON: `expiration_duration_seconds` and `initial_acl`.", contentMediaType="application/json"),
)
_FILE_NAME = header("X-Fal-File-Name", text("Its name; drawn from its type when absent."))
_FILE_ID = in_path("file_id", text("Of the file's address.", pattern="^[0-9a-f]{32}$"))
_NAME = in_path("name", text("Its name; the id alone decides."))
_ANYTHING: Schema = {"*/*": {"schema": {}}}


#: How any upload may be refused.
_LIMITS = (403, 413, 422, 507)


def storage_operations() -> list[Operation]:
    """Return the ways to upload: announced in one piece, straight, or in parts."""
    return [*_announced(), *_straight(), *(one for way in _PART_WAYS for one in _parts(*way))]


def _announced() -> list[Operation]:
    return [
        *(
            Operation(
                method="POST",
                path=f"/rest/storage/upload/{way}",
                tag="storage",
                id=name,
                summary=summary,
                answers={200: answer("Where to send it, and where it will be.", "Upload")},
                refusals=_LIMITS,
                parameters=(query("storage_type", text("Accepted and ignored.")), _LIFECYCLE),
                body=json_of("UploadDescription"),
            )
            for way, name, summary in (
                ("initiate", "initiateUpload", "Announce a file that comes in one PUT"),
                ("initiate-multipart", "initiateParts", "Announce a file that comes in parts"),
            )
        ),
        Operation(
            method="POST",
            path="/rest/storage/auth/token",
            tag="storage",
            id="uploadToken",
            summary="A token that stands for the key at /cdn/files/upload",
            answers={200: answer("The token.", "UploadToken")},
            parameters=(query("storage_type", text("Accepted and ignored.")),),
        ),
        Operation(
            method="PUT",
            path="/cdn/uploads/{file_id}",
            tag="storage",
            id="upload",
            summary="Send the bytes to an `upload_url`, once; its query is the permission",
            answers={200: {"description": "It is kept; `etag` is the SHA-256 of the bytes."}},
            refusals=_LIMITS,
            parameters=(_FILE_ID,),
            body=_ANYTHING,
            needs_key=False,
        ),
    ]


def _straight() -> list[Operation]:
    return [
        Operation(
            method="POST",
            path="/cdn/files/upload",
            tag="storage",
            id="uploadFile",
            summary="Send a file whose headers describe it",
            answers={200: answer("Where it is.", "Uploaded")},
            refusals=_LIMITS,
            parameters=(_FILE_NAME, _LIFECYCLE),
            body=_ANYTHING,
        ),
        Operation(
            method="POST",
            path="/cdn/files/upload/multipart",
            tag="storage",
            id="beginParts",
            summary="Announce a file that comes in parts, described by headers",
            answers={200: answer("Where the parts go.", "MultipartUpload")},
            refusals=_LIMITS,
            parameters=(_FILE_NAME, _LIFECYCLE),
        ),
    ]


_PART_WAYS = (
    ("/cdn/uploads/{file_id}", "Signed", (_FILE_ID,), False),
    (
        "/cdn/files/{file_id}/{name}/multipart/{upload_id}",
        "Owned",
        (_FILE_ID, _NAME, in_path("upload_id", text("As it was answered."))),
        True,
    ),
)


def _parts(base: str, which: str, place: tuple[Schema, ...], needs_key: bool) -> list[Operation]:
    number = in_path("number", {"type": "integer", "minimum": 1, "maximum": MAX_PARTS})
    return [
        Operation(
            method="PUT",
            path=f"{base}/{{number}}",
            tag="storage",
            id=f"put{which}Part",
            summary="Send one part, in any order; again replaces it",
            answers={200: answer("It is kept.", "UploadPart")},
            refusals=(403, 404, 413, 507),
            parameters=(*place, number),
            body=_ANYTHING,
            needs_key=needs_key,
        ),
        Operation(
            method="POST",
            path=f"{base}/complete",
            tag="storage",
            id=f"complete{which}Parts",
            summary="Join the parts; a missing or empty one is named",
            answers={200: answer("Where the file is.", "Uploaded")},
            refusals=(403, 404, 413, 422, 507),
            parameters=place,
            body=json_of("Completion"),
            needs_key=needs_key,
        ),
    ]


def file_operations() -> list[Operation]:
    return [
        Operation(
            method=method,
            path="/cdn/files/{file_id}/{name}",
            tag="files",
            id=f"{verb}File",
            summary=summary,
            answers={
                200: {"description": "The file.", "content": _ANYTHING},
                206: {"description": "The range asked for.", "content": _ANYTHING},
                304: {"description": "It is the one named by If-None-Match."},
            },
            refusals=(403, 404, 416),
            parameters=(
                _FILE_ID,
                _NAME,
                header("Range", text("One range of bytes, `bytes=0-99`.")),
                header("If-None-Match", text("ETags.")),
            ),
            needs_key=False,
        )
        for method, verb, summary in (("GET", "get", "Download a file"), ("HEAD", "head", "Describe a file"))
    ]
