"""What the server says of itself: fal's OpenAPI per endpoint, our own for all routes, llms.txt, `/`."""

import re
from collections.abc import Iterator
from html import unescape
from typing import Any

import httpx
import pytest
from starlette.routing import Match, Route

from stillmotion.endpoints import ENDPOINTS
from stillmotion.http.documents.operations import Operation, operations
from tests.http.house import HQ, ROCKET, TEXT, TURBO, House

pytestmark = pytest.mark.anyio

#: Parts of a path that stand for a value, filled with one that fits.
VALUES = {
    "request_id": "01890000-0000-7000-8000-000000000000",
    "file_id": "0" * 32,
    "upload_id": "0" * 32,
    "number": "1",
    "name": "a.png",
}


async def read(house: House, path: str, base: str = "http://127.0.0.1:8000") -> httpx.Response:
    async with house.client(None, base=base) as client:
        return await client.get(path)


async def endpoint_document(house: House, endpoint: str, base: str = "http://127.0.0.1:8000") -> Any:
    answer = await read(house, f"/api/openapi/queue/openapi.json?endpoint_id={endpoint}", base)
    assert answer.status_code == 200
    return answer.json()


def references(part: Any) -> Iterator[str]:
    """Find every name a document refers to."""
    if isinstance(part, dict):
        for key, value in part.items():  # pyright: ignore[reportUnknownVariableType]
            if key == "$ref":
                yield str(value).rpartition("/")[2]  # pyright: ignore[reportUnknownArgumentType]
            yield from references(value)
    elif isinstance(part, list):
        for entry in part:  # pyright: ignore[reportUnknownVariableType]
            yield from references(entry)


def route_of(house: House, operation: Operation) -> Route | None:
    """Find the route that a call of `operation` reaches."""
    path = re.sub(r"\{(\w+)\}", lambda part: VALUES[part[1]], operation.path)
    scope = {"type": "http", "method": operation.method, "path": path, "headers": []}
    for route in house.app.routes:
        if route.matches(scope)[0] is Match.FULL:
            assert isinstance(route, Route)
            return route
    return None


async def test_every_route_is_documented_and_every_operation_has_a_route(house: House) -> None:
    reached = {operation.id: route_of(house, operation) for operation in operations()}
    assert not [name for name, route in reached.items() if route is None], "operations without a route"
    # By fal's own name of its web site, the documents are reached under /site.
    paths = {route.path.removeprefix("/site") for route in house.app.routes if isinstance(route, Route)}
    silent = paths - {route.path for route in reached.values() if route is not None}
    assert not silent, "routes that /openapi.json does not know"


async def test_operations_have_names_of_their_own() -> None:
    named = [operation.id for operation in operations()]
    assert len(set(named)) == len(named)


async def test_the_whole_document_names_its_server_and_holds_what_it_refers_to(house: House) -> None:
    document = (await read(house, "/openapi.json")).json()
    assert (document["openapi"], document["servers"]) == ("3.1.0", [{"url": "http://127.0.0.1:8000"}])
    assert set(references(document)) <= document["components"]["schemas"].keys()
    assert document["paths"]["/healthz"]["get"]["security"] == []


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [(TEXT, "FastSvdLcmTextToVideo"), (TURBO, "FastSvdLcm"), (HQ, "StableVideo")],
)
async def test_an_endpoint_is_described_in_fals_shape(house: House, endpoint: str, name: str) -> None:
    document = await endpoint_document(house, endpoint)
    one = f"/{endpoint}/requests/{{request_id}}"
    assert document["openapi"] == "3.0.4"
    assert document["info"]["title"] == f"Queue OpenAPI for {endpoint}"
    assert document["info"]["x-fal-metadata"]["endpointId"] == endpoint
    assert document["info"]["x-fal-metadata"]["category"] == ENDPOINTS[endpoint].category
    assert list(document["paths"]) == [f"{one}/status", f"{one}/cancel", f"/{endpoint}", one]
    schemas = document["components"]["schemas"]
    assert {f"{name}Input", f"{name}Output", "File", "QueueStatus"} <= schemas.keys()
    assert set(references(document)) <= schemas.keys()
    assert all(schema["x-fal-order-properties"] == list(schema["properties"]) for schema in schemas.values())
    assert "'null'" not in str(document), "OpenAPI 3.0 knows no type null"


async def test_ranges_defaults_and_order_are_those_of_the_validation(house: House) -> None:
    schemas = (await endpoint_document(house, TEXT))["components"]["schemas"]
    given = schemas["FastSvdLcmTextToVideoInput"]
    order = ["prompt", "motion_bucket_id", "cond_aug", "seed", "steps", "fps", "video_size"]
    assert (given["x-fal-order-properties"], given["required"]) == (order, ["prompt"])
    steps = given["properties"]["steps"]
    assert (steps["default"], steps["minimum"], steps["maximum"]) == (4, 1, 20)
    assert all(field["title"] and field["description"] for field in given["properties"].values())
    size = given["properties"]["video_size"]
    assert (size["default"], size["anyOf"][0]["$ref"]) == ("landscape_16_9", "#/components/schemas/ImageSize")
    assert size["anyOf"][1]["enum"][0] == "square_hd"
    for wrong in (steps["minimum"] - 1, steps["maximum"] + 1):
        async with house.client() as client:
            answer = await client.post(f"/queue/{TEXT}", json={**ROCKET, "steps": wrong})
        assert answer.status_code == 422


@pytest.mark.parametrize(
    ("base", "server"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/queue"),
        ("https://fal.ai", "https://queue.fal.run"),
        ("https://fal.ai:8443", "https://queue.fal.run:8443"),
    ],
)
async def test_the_server_is_the_queue_of_the_door_it_was_asked_at(
    house: House, base: str, server: str
) -> None:
    assert (await endpoint_document(house, HQ, base))["servers"] == [{"url": server}]


async def test_an_unknown_endpoint_has_the_document_null(house: House) -> None:
    for query in ("?endpoint_id=fal-ai/no-such-model", ""):
        answer = await read(house, f"/api/openapi/queue/openapi.json{query}")
        assert (answer.status_code, answer.content) == (404, b"null")


async def test_llms_txt_lists_every_field_with_its_limits(house: House) -> None:
    answer = await read(house, f"/models/{TEXT}/llms.txt")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    page = answer.text
    assert f"`http://127.0.0.1:8000/queue/{TEXT}`" in page
    assert "- **`prompt`** (`string`, _required_):" in page
    assert "Range: `1` to `255`" in page
    assert '`"landscape_16_9"`' in page
    assert (await read(house, "/models/fal-ai/no-such-model/llms.txt")).status_code == 404


async def test_llms_txt_at_fals_own_name_names_fals_addresses(house: House) -> None:
    page = (await read(house, f"/models/{HQ}/llms.txt", "https://fal.ai")).text
    assert f"`https://queue.fal.run/{HQ}`" in page


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
async def test_llms_txt_leads_python_to_the_https_port_of_the_same_host(house: House, host: str) -> None:
    house.rebuild(tls_port=8443)
    page = (await read(house, f"/models/{HQ}/llms.txt", f"http://{host}:8000")).text
    assert f'os.environ["FAL_RUN_HOST"] = "{host}:8443/run"' in page


async def test_the_front_page_names_every_field_and_leads_to_documents_that_are_there(house: House) -> None:
    page = (await read(house, "/")).text
    for field in ENDPOINTS[TEXT].Input.model_fields:
        assert f"<dt><code>{field}</code></dt>" in page
    assert "default 127; 1 to 255" in page and "required" in page and "random by default" in page
    links = [unescape(link) for link in re.findall(r'href="([^"]+)"', page)]
    assert len(links) == 2 * len(ENDPOINTS)
    for link in links:
        assert (await read(house, link)).status_code == 200, link
