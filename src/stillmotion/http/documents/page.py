"""The front page: what runs here and how to call it, generated from the endpoints themselves."""

from html import escape

from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from stillmotion.endpoints import ENDPOINTS, Endpoint
from stillmotion.http.documents.schema import Schema, forms, input_name, model_schemas
from stillmotion.http.documents.snippets import snippets
from stillmotion.http.site import Site
from stillmotion.http.ways.doors import Door, door_of

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --accent: #c2410c; }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 56rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { margin: 0; font-size: 1.7rem; } h2 { margin: 2.5rem 0 .25rem; font-size: 1.15rem; }
p { margin: .4rem 0; } code, pre { font: .86rem/1.5 ui-monospace, monospace; }
pre { background: var(--soft); border-radius: 8px; padding: .8rem 1rem; overflow-x: auto; }
.state { display: inline-block; border: 1px solid var(--line); border-radius: 99px; padding: .1rem .7rem; }
.state::before { content: "●"; margin-right: .4rem; color: var(--accent); }
.ready::before { color: #16a34a; }
dl { display: grid; grid-template-columns: 11rem 1fr; font-size: .92rem; margin: .6rem 0; }
dt, dd { margin: 0; padding: .35rem 0; border-top: 1px solid var(--line); }
small { display: block; font-size: .86rem; opacity: .75; overflow-wrap: anywhere; }
summary { cursor: pointer; margin-top: 1rem; } a { color: var(--accent); }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; } dd { border: 0; padding-top: 0; } }
@media (prefers-color-scheme: dark) { :root { --accent: #fb923c; } }
"""


class PageRoutes:
    def __init__(self, site: Site) -> None:
        self.site = site
        self.routes = [Route("/", self.page)]

    async def page(self, call: HttpRequest) -> Response:
        readiness = self.site.readiness()
        state = "ready" if readiness.ready else "starting"
        text = "ready" if readiness.ready else f"not ready: {readiness.reason}"
        html = (
            '<!doctype html><html lang="en"><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>Stillmotion</title><style>{_STYLE}</style>"
            "<h1>Stillmotion</h1>"
            "<p>Short films from a sentence or a picture, behind fal.ai's HTTP contract.</p>"
            f'<p><span class="state {state}">{escape(text)}</span> profile '
            f"<b>{escape(self.site.profile)}</b>, version {escape(self.site.version)}</p>"
            "<p>Calls need a key: <code>stillmotion keys create NAME</code> makes one.</p>"
            f"{_snippets(door_of(call), self.site.settings.tls_port)}"
            f"{''.join(_endpoint(endpoint) for endpoint in ENDPOINTS.values())}</html>"
        )
        return HTMLResponse(
            html,
            headers={
                "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
                "x-content-type-options": "nosniff",
            },
        )


def _snippets(door: Door, tls_port: int | None) -> str:
    endpoint = next(iter(ENDPOINTS.values()))
    return "".join(
        f"<details{' open' if name == 'curl' else ''}><summary>{name}</summary>"
        f"<pre>{escape(snippet)}</pre></details>"
        for name, snippet in snippets(endpoint, door, tls_port).items()
    )


def _endpoint(endpoint: Endpoint) -> str:
    schema = model_schemas(endpoint)[input_name(endpoint)]
    fields = "".join(
        f"<dt><code>{escape(name)}</code></dt><dd>{escape(field['description'])}"
        f"<small>{escape(_facts(field, name in schema['required']))}</small></dd>"
        for name, field in schema["properties"].items()
    )
    openapi = f"/api/openapi/queue/openapi.json?endpoint_id={endpoint.id}"
    return (
        f"<h2>{escape(endpoint.title)}</h2><p><code>{escape(endpoint.id)}</code>: "
        f"{escape(endpoint.description)}</p><dl>{fields}</dl>"
        f'<p><a href="/models/{endpoint.id}/llms.txt">As text</a>, '
        f'<a href="{openapi}">OpenAPI</a></p>'
    )


def _facts(field: Schema, required: bool) -> str:
    default = field.get("default")
    facts = ["required" if required else "random by default" if default is None else f"default {default}"]
    for form in forms(field):
        if "enum" in form:
            facts.append(f"one of {', '.join(form['enum'])}")
        if "minimum" in form:
            facts.append(f"{form['minimum']} to {form['maximum']}")
    return "; ".join(facts)
