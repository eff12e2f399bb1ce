"""`/models/{endpoint}/llms.txt`: one endpoint on one page, for programs that write programs."""

import json

from stillmotion.endpoints import Endpoint
from stillmotion.http.documents.schema import Schema, forms, input_name, model_schemas, output_name
from stillmotion.http.documents.snippets import base_urls, snippets
from stillmotion.http.ways.doors import Door

_FENCES = {"curl": "bash", "JavaScript": "javascript", "Python": "python"}


def llms_page(endpoint: Endpoint, door: Door, tls_port: int | None) -> str:
    schemas, bases = model_schemas(endpoint), base_urls(door)
    calls = "\n\n".join(
        f"### {name}\n\n```{_FENCES[name]}\n{snippet}\n```"
        for name, snippet in snippets(endpoint, door, tls_port).items()
    )
    return f"""\
# {endpoint.title}

> {endpoint.description}

## Overview

- **Endpoint**: `{bases["run"]}/{endpoint.id}`
- **Queue**: `{bases["queue"]}/{endpoint.id}`
- **Model ID**: `{endpoint.id}`
- **Category**: {endpoint.category}
- **OpenAPI**: `{door.origin}/api/openapi/queue/openapi.json?endpoint_id={endpoint.id}`

Calls need the header `Authorization: Key <key_id>:<key_secret>`. The sync endpoint answers with the output;
the queue answers with a ticket whose `status_url` says COMPLETED when `response_url` has the output.

### Input Schema

{_fields(schemas[input_name(endpoint)], schemas)}

**Required Parameters Example**:

```json
{json.dumps(endpoint.example, indent=2)}
```

### Output Schema

{_fields(schemas[output_name(endpoint)], schemas)}

## Usage Examples

{calls}
"""


def _fields(schema: Schema, schemas: dict[str, Schema]) -> str:
    required = schema.get("required", [])
    lines: list[str] = []
    for name, field in schema["properties"].items():
        need = "required" if name in required else "optional"
        lines.append(f"- **`{name}`** (`{_type(field)}`, _{need}_):")
        lines.append(f"  {field['description']}")
        lines += [f"  - {fact}" for fact in _facts(field)]
        for form in forms(field):
            if "$ref" in form:
                inner = schemas[_target(form)]["properties"]
                lines += [f"  - `{part}` (`{_type(of)}`): {of['description']}" for part, of in inner.items()]
    return "\n".join(lines)


def _facts(field: Schema) -> list[str]:
    facts: list[str] = []
    if field.get("default") is not None:
        facts.append(f"Default: `{json.dumps(field['default'])}`")
    for form in forms(field):
        if "enum" in form:
            facts.append(f"Options: {', '.join(f'`{json.dumps(option)}`' for option in form['enum'])}")
        if "minimum" in form and "maximum" in form:
            facts.append(f"Range: `{form['minimum']}` to `{form['maximum']}`")
    if "examples" in field:
        facts.append(f"Examples: {', '.join(json.dumps(example) for example in field['examples'])}")
    return facts


def _type(field: Schema) -> str:
    return " | ".join(
        _target(form) if "$ref" in form else "Enum" if "enum" in form else form["type"]
        for form in forms(field)
        if form.get("type") != "null"
    )


def _target(form: Schema) -> str:
    return form["$ref"].rpartition("/")[2]
