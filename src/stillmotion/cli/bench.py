"""`stillmotion bench`: films a running server makes in a time, what each takes, and what it costs."""

import asyncio
import base64
import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from stillmotion.cli.env import find_server
from stillmotion.endpoints import ENDPOINTS, Endpoint
from stillmotion.errors import UserError
from stillmotion.settings import Settings, shell_environment

POLL_S = 0.1
ANSWER_S = 60


@dataclass
class Tally:
    """What came back."""

    #: Seconds from submit to COMPLETED, and those the film had its device, one per film.
    latencies: list[float] = field(default_factory=list[float])
    device: list[float] = field(default_factory=list[float])
    failed: list[str] = field(default_factory=list[str])


def bench(
    settings: Settings, endpoint_id: str, duration_s: float, concurrency: int, price: float | None
) -> int:
    """Keep `concurrency` requests in the queue for a time; return the process's exit status."""
    endpoint = ENDPOINTS.get(endpoint_id)
    if endpoint is None:
        raise UserError(f"There is no endpoint {endpoint_id!r}; there are {', '.join(ENDPOINTS)}.")
    lead = find_server(settings, shell_environment())
    if lead.key is None:
        raise UserError("No key of this server is known here; set FAL_KEY to one.")
    tally, elapsed = asyncio.run(_load(lead.told.http, lead.key, endpoint, duration_s, concurrency))
    _print(tally, elapsed, endpoint, concurrency, price)
    return 1 if tally.failed or not tally.latencies else 0


async def _load(
    url: str, key: str, endpoint: Endpoint, duration_s: float, concurrency: int
) -> tuple[Tally, float]:
    tally = Tally()
    given = sample_input(endpoint)
    headers = {"Authorization": f"Key {key}"}
    async with httpx.AsyncClient(
        base_url=f"{url}/queue", headers=headers, timeout=ANSWER_S, trust_env=False
    ) as client:
        begun = time.monotonic()

        async def keep_busy(first_seed: int) -> None:
            seed = first_seed
            while time.monotonic() - begun < duration_s:
                await _make_one(client, endpoint, {**given, "seed": seed}, tally)
                seed += concurrency

        try:
            async with asyncio.TaskGroup() as group:
                for first_seed in range(concurrency):
                    group.create_task(keep_busy(first_seed))
        except* httpx.HTTPError as errors:
            raise UserError(f"The server at {url} stopped answering: {errors.exceptions[0]}.") from None
        return tally, time.monotonic() - begun


async def _make_one(
    client: httpx.AsyncClient, endpoint: Endpoint, given: dict[str, Any], tally: Tally
) -> None:
    sent = time.monotonic()
    answer = await client.post(f"/{endpoint.id}", json=given)
    answer.raise_for_status()
    ticket = answer.json()
    status_url = ticket["status_url"]
    while (status := (await client.get(status_url)).raise_for_status().json())["status"] != "COMPLETED":
        await asyncio.sleep(POLL_S)
    if "error" in status:
        tally.failed.append(str(status["error"]))
        return
    tally.latencies.append(time.monotonic() - sent)
    result = (await client.get(ticket["response_url"])).raise_for_status()
    tally.device.append(float(result.headers["x-stillmotion-device-seconds"]))


def sample_input(endpoint: Endpoint) -> dict[str, Any]:
    if "image_url" not in endpoint.Input.model_fields:
        return endpoint.example
    # The schema's example lies on the internet.
    from PIL import Image

    drawn = io.BytesIO()
    Image.linear_gradient("L").resize((1024, 576)).convert("RGB").save(drawn, "JPEG")
    return {"image_url": f"data:image/jpeg;base64,{base64.b64encode(drawn.getvalue()).decode()}"}


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank: always a value that was measured."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def _print(tally: Tally, elapsed: float, endpoint: Endpoint, concurrency: int, price: float | None) -> None:
    made = len(tally.latencies)
    print(
        f"{endpoint.id}, {concurrency} at once: {made} films in {elapsed:.1f} s, {len(tally.failed)} failed"
    )
    for reason in dict.fromkeys(tally.failed):
        print(f"  failed: {reason}")
    if not made:
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("films per minute", f"{made / elapsed * 60:.1f}")
    busy = sum(tally.device)
    table.add_row("device seconds per film, mean", f"{busy / made:.2f}")
    table.add_row("devices busy, mean", f"{busy / elapsed:.2f}")
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        table.add_row(f"submit to completed, {name}", f"{percentile(tally.latencies, share):.2f} s")
    if price is not None:
        table.add_row(f"cost per film at {price:g} an hour", f"{price * elapsed / 3600 / made:.5f}")
    Console().print(table)
