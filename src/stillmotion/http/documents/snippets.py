"""One call of an endpoint in each client, with the address it was asked at: for the page and llms.txt."""

import json

from stillmotion.endpoints import Endpoint
from stillmotion.http.ways.doors import PLANES, Door

_PYTHON = """\
# fal_client always speaks HTTPS: start the server with --tls-port.
# It reads FAL_KEY, and SSL_CERT_FILE for our certificate: tls/bundle.pem in the server's data directory.
import os
os.environ["FAL_QUEUE_RUN_HOST"] = "{secure_queue}"
os.environ["FAL_RUN_HOST"] = "{secure_run}"
import fal_client

result = fal_client.subscribe("{endpoint}", arguments={example}, with_logs=True)
print(result["video"]["url"])"""

_JAVASCRIPT = """\
import {{ fal }} from "@fal-ai/client";

fal.config({{
  credentials: process.env.FAL_KEY,
  requestMiddleware: async (request) => ({{
    ...request,
    url: request.url
      .replace("https://queue.fal.run", "{queue}")
      .replace("https://fal.run", "{run}")
      .replace("https://rest.fal.ai", "{rest}"),
  }}),
}});
const {{ data }} = await fal.subscribe("{endpoint}", {{ input: {example}, logs: true }});
console.log(data.video.url);"""

_CURL = """\
# answers at once with a status_url and a response_url
curl {queue}/{endpoint} \\
  -H "Authorization: Key $FAL_KEY" -H "Content-Type: application/json" \\
  -d '{example}'

# waits for the film
curl {run}/{endpoint} \\
  -H "Authorization: Key $FAL_KEY" -H "Content-Type: application/json" \\
  -d '{example}'"""


def base_urls(door: Door) -> dict[str, str]:
    """Return what stands for fal's hosts at this door: its own paths, or fal's own names."""
    queue = door.bases.queue
    if door.host not in PLANES:
        return {plane: f"{door.origin}/{plane}" for plane in ("run", "queue", "rest")}
    names = {"run": "fal.run", "queue": "queue.fal.run", "rest": "rest.fal.ai"}
    return {plane: queue.replace("queue.fal.run", name) for plane, name in names.items()}


def snippets(endpoint: Endpoint, door: Door, tls_port: int | None) -> dict[str, str]:
    """Return the programs by the name of their language."""
    bases = base_urls(door)
    secure: dict[str, str] = {}
    host = f"[{door.host}]" if ":" in door.host else door.host
    for plane in ("run", "queue"):
        scheme, _, rest = bases[plane].partition("://")
        if scheme == "http":
            rest = f"{host}:{tls_port or 'TLS_PORT'}/{plane}"
        secure[f"secure_{plane}"] = rest
    facts = {**bases, **secure, "endpoint": endpoint.id, "example": json.dumps(endpoint.example)}
    templates = {"curl": _CURL, "JavaScript": _JAVASCRIPT, "Python": _PYTHON}
    return {name: template.format(**facts) for name, template in templates.items()}
