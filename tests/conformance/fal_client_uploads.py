"""What fal_client does by its fixed hosts, from a program that knows nothing of this server.

Prints one JSON line per action named on argv; the first word is the picture to upload.
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

import fal_client
import httpx

PICTURE = Path(sys.argv[1])
HQ = "fal-ai/stable-video"
#: Above this fal_client sends a file in parts of 10 MiB.
LARGE_BYTES = 101 * 1024 * 1024


def is_same(url: str, path: Path) -> bool:
    return httpx.get(url, timeout=60).content == path.read_bytes()


def film(url: str) -> object:
    output = fal_client.subscribe(HQ, arguments={"image_url": url})
    data = httpx.get(output["video"]["url"]).content
    return {"whole": len(data) == output["video"]["file_size"], "box": data[4:8].decode()}


def upload_file() -> object:
    url = fal_client.upload_file(PICTURE)
    return {"url": url, "same": is_same(url, PICTURE), "film": film(url)}


def upload_async() -> object:
    url = asyncio.run(fal_client.upload_file_async(PICTURE))
    return {"url": url, "same": is_same(url, PICTURE), "film": film(url)}


def upload_large() -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.bin"
        path.write_bytes(bytes(range(251)) * (LARGE_BYTES // 251 + 1))
        url = fal_client.upload_file(path)
        return {"url": url, "same": is_same(url, path)}


for name in sys.argv[2:]:
    print(json.dumps({"action": name, "value": globals()[name]()}), flush=True)
