"""K08 on a real server: everything secret is used once, then nothing of it is in any line it wrote.

Right and wrong uses alike: what is refused is logged too, and by other code.
"""

import base64
import re
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.acceptance.calls import submit, wait_for
from tests.http.house import HQ, TEXT, TURBO, png
from tests.receiver import Receiver, status
from tests.server import TIMED_ENGINE, Server, run_cli

PROMPT = "a hush-hush prompt"
#: What callers put into addresses of theirs.
HOOK_SECRETS = ("hook-path-token", "hook-query-token")
PICTURE_SECRETS = ("picture-path-token", "picture-query-token")


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> tuple[Server, dict[str, str]]:
    """A server that has ended, and the secrets that were used on it by name."""
    data_dir = tmp_path_factory.mktemp("secrets") / "data"
    env = {
        "STILLMOTION_WEBHOOK_ALLOW": "127.0.0.1",
        "STILLMOTION_WEBHOOK_RETRY_BASE_S": "0.01",
        "STILLMOTION_PROXY_KEY": "0123456789abcdef:lent-key-secret",
    }
    with (
        Receiver(status(500), status(200)) as receiver,
        Server(data_dir, engine=TIMED_ENGINE, tls=True, env=env) as server,
    ):
        secrets = use_keys(server)
        with server.client() as client:
            secrets |= use_uploads(client) | use_tokens(client)
            use_prompts(client, receiver)
            use_lent_key(client)
        for fault in ("raise_at=1", "crash_at=1 until=1", "refuse_at=1", "print=flood"):
            wait_for(server, submit(server, f"{PROMPT} steps=1 {fault}"), "COMPLETED")
        wait_for(server, submit(server, f"{PROMPT} steps=2"), "COMPLETED")
        secrets["webhook signing seed"] = re.findall(
            r'"seed": "(\w+)"', (data_dir / "webhook-keys").read_text()
        )[0]
        secrets["signing secret"] = (data_dir / "secret").read_bytes().hex()
        secrets["TLS key"] = next((data_dir / "tls").glob("*key*")).read_text().splitlines()[1]
    names = [*HOOK_SECRETS, *PICTURE_SECRETS, PROMPT, "hush-hush"]
    return server, secrets | {name: name for name in names} | {"lent key": "lent-key-secret"}


def use_keys(server: Server) -> dict[str, str]:
    first = server.key.partition(":")[2]
    data_dir = ["--data-dir", str(server.data_dir)]
    made = run_cli("keys", "create", "second", *data_dir).stdout.splitlines()[-1]
    rotated = run_cli("keys", "rotate", made.partition(":")[0], *data_dir).stdout.splitlines()[-1]
    path = f"{server.url}/queue/{TURBO}/requests/x/status"
    damaged = made[:-1] + ("0" if made[-1] != "0" else "1")
    for value in (f"Key {made}", f"Bearer {rotated}", f"Key {damaged}", f"Basic {rotated}", rotated):
        httpx.get(path, headers={"Authorization": value}, trust_env=False)
    httpx.get(path, params={"key": rotated}, trust_env=False)
    run_cli("keys", "revoke", made.partition(":")[0], *data_dir)
    httpx.get(path, headers={"Authorization": f"Key {rotated}"}, trust_env=False)
    return {"first key": first, "key": made.partition(":")[2], "rotated key": rotated.partition(":")[2]}


def use_uploads(client: httpx.Client) -> dict[str, str]:
    urls = client.post("/rest/storage/upload/initiate", json={"file_name": "a.png"}).json()
    for _ in range(2):
        client.put(urls["upload_url"], content=png())
    client.put(f"{urls['upload_url']}x", content=png())
    token = client.post("/rest/storage/auth/token").json()["token"]
    client.post(
        "/cdn/files/upload",
        content=png(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "image/png"},
    )
    client.post("/cdn/files/upload", content=b"x", headers={"Authorization": f"Bearer {token}x"})
    signature = re.findall(r"signature=(\w+)", urls["upload_url"])[0]
    return {"upload signature": signature, "upload token": token.rpartition(".")[2]}


def use_tokens(client: httpx.Client) -> dict[str, str]:
    token: str = client.post("/rest/tokens", json={"allowed_apps": ["fast-svd-lcm"]}).json()
    for sent in (token, f"{token}x"):
        params = {"fal_jwt_token": sent, "prompt": f"{PROMPT} steps=1"}
        httpx.get(client.base_url.join(f"/run/{TEXT}/stream"), params=params, trust_env=False)
    return {"stream token": token.rpartition(".")[2]}


def use_prompts(client: httpx.Client, receiver: Receiver) -> None:
    hook = f"{receiver.url}/{HOOK_SECRETS[0]}?key={HOOK_SECRETS[1]}"
    client.post(f"/queue/{TEXT}", json={"prompt": f"{PROMPT} steps=1"}, params={"fal_webhook": hook})
    assert receiver.next() and receiver.next(), "one delivery failed, the next was taken"
    client.post(f"/queue/{TEXT}", json={"prompt": PROMPT}, params={"fal_webhook": f"{hook}\\@x"})
    client.post(f"/run/{TEXT}", json={"prompt": f"{PROMPT} steps=1"})
    client.get(f"/run/{TEXT}", params={"prompt": PROMPT, "steps": "99"})
    client.post(f"/run/{TEXT}", content=f'{{"prompt": "{PROMPT}", broken')
    uri = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    for picture in (uri, f"{uri}!", f"http://127.0.0.1:9/{PICTURE_SECRETS[0]}?sig={PICTURE_SECRETS[1]}"):
        client.post(f"/run/{HQ}", json={"image_url": picture, "steps": 1})


def use_lent_key(client: httpx.Client) -> None:
    target = {"x-fal-target-url": f"https://fal.run/{TEXT}"}
    origin = {"Origin": f"http://{urlsplit(str(client.base_url)).netloc}", "Authorization": ""}
    httpx.post(client.base_url.join("/api/fal/proxy"), headers=target | origin, json={}, trust_env=False)


def test_k08_no_secret_is_in_any_line_the_server_wrote(aftermath: tuple[Server, dict[str, str]]) -> None:
    server, secrets = aftermath
    output = server.output()
    assert [name for name, secret in secrets.items() if secret in output] == []
    assert "data:image" not in output and base64.b64encode(png()).decode()[:60] not in output
    assert output.count(" method=") > 20, "there was something to search"
    assert "webhook" in output and "runner" in output


def test_k08_no_key_is_kept_in_clear(aftermath: tuple[Server, dict[str, str]]) -> None:
    server, secrets = aftermath
    kept = {"signing secret", "webhook signing seed", "TLS key", *HOOK_SECRETS, *PICTURE_SECRETS}
    kept |= {PROMPT, "hush-hush"}  # parts of requests
    own = {"first-key"}
    for path in files(server.data_dir):
        if path.name in own:
            continue
        data = path.read_bytes()
        assert [name for name in secrets.keys() - kept if secrets[name].encode() in data] == [], path


def test_what_lies_in_the_data_directory_is_its_owners_alone(
    aftermath: tuple[Server, dict[str, str]],
) -> None:
    server, _ = aftermath
    for path in files(server.data_dir):
        private = path.name in ("secret", "first-key", "webhook-keys", "admin.sock") or "key" in path.name
        assert not private or not path.stat().st_mode & 0o077, path


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
