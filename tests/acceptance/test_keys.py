"""Keys and their limits on a running server: made, used up, rotated, expired."""

import time
from pathlib import Path

import httpx

from tests.acceptance.calls import ENDPOINT, Ticket, wait_for
from tests.acceptance.test_operator import answer_to
from tests.server import NO_ROOTS, TIMED_ENGINE, Server, run_cli, wait_until

ENDLESS = "steps=100000 pause=0.05"


def keys(server: Server, *words: str) -> str:
    done = run_cli("keys", *words, "--data-dir", str(server.data_dir))
    assert done.returncode == 0, done.stderr
    return done.stdout


def create(server: Server, name: str, *words: str) -> str:
    return keys(server, "create", name, *words).splitlines()[-1]


def client(server: Server, key: str) -> httpx.Client:
    headers = {"Authorization": f"Key {key}"}
    return httpx.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False, verify=NO_ROOTS)


def submit(caller: httpx.Client, prompt: str, **headers: str) -> httpx.Response:
    body = {"prompt": prompt, "video_size": "square"}
    return caller.post(f"/queue/{ENDPOINT}", json=body, headers=headers)


def test_limits_are_listed_and_kept(server: Server) -> None:
    limits = ("--submits-per-minute", "2", "--upload-bytes-per-day", "1000", "--expires", "2099-01-01")
    key = create(server, "narrow", "--concurrency", "3", *limits, "--scope", "admin")
    line = next(line for line in keys(server, "list").splitlines() if line.startswith(key.partition(":")[0]))
    for word in ("narrow", "admin", "0 of 3", " 2 ", " 1000 ", "in force until 2099-01-01"):
        assert word in line
    with client(server, key) as caller:
        assert [submit(caller, "steps=1").status_code for _ in range(3)] == [200, 200, 429]
        initiate = "/rest/storage/upload/initiate"
        url = caller.post(initiate, json={}).json()["upload_url"]
        assert caller.put(url, content=b"x" * 1001).status_code == 403
        assert caller.put(url, content=b"x" * 1000).status_code == 200
        assert caller.get("/admin/webhooks").status_code == 200


def test_a_key_at_its_concurrency_waits_in_order_and_blocks_no_one_else(server: Server) -> None:
    key = create(server, "one", "--concurrency", "1")
    with client(server, key) as caller:

        def status(ticket: Ticket) -> dict[str, object]:
            return caller.get(httpx.URL(ticket["status_url"]).path).json()

        mine = [submit(caller, prompt).json() for prompt in (ENDLESS, "steps=1", "steps=1")]
        wait_until(lambda: status(mine[0])["status"] == "IN_PROGRESS", "the first to run")
        with server.client() as other:
            theirs = submit(other, "steps=1").json()
        assert [status(one)["status"] for one in mine[1:]] == ["IN_QUEUE"] * 2
        assert caller.put(httpx.URL(mine[0]["cancel_url"]).path).status_code == 202
        done: list[str] = []
        left = {one["request_id"]: one for one in mine[1:]}
        while left:
            found = wait_until(
                lambda: [each for each, one in left.items() if status(one)["status"] == "COMPLETED"], "an end"
            )
            done += sorted(found)
            for request_id in found:
                del left[request_id]
        assert done == [one["request_id"] for one in mine[1:]]
        wait_for(server, theirs, "COMPLETED")


def test_rotated_key_works_with_both_secrets_and_keeps_its_requests(server: Server) -> None:
    old = create(server, "turning")
    with client(server, old) as caller:
        ticket = submit(caller, "steps=1").json()
    new = keys(server, "rotate", old).splitlines()[-1]
    assert new.partition(":")[0] == old.partition(":")[0]
    assert [answer_to(server, key) for key in (old, new)] == [404, 404]
    with client(server, new) as caller:
        assert caller.get(httpx.URL(ticket["status_url"]).path).status_code in (200, 202)
    last = keys(server, "rotate", new, "--overlap", "0").splitlines()[-1]
    wait_until(lambda: answer_to(server, new) == 401, "the old secret to be refused", timeout_s=5.5)
    assert answer_to(server, last) == 404


def test_expired_key_is_refused_within_five_seconds(server: Server) -> None:
    ends = time.time() + 3
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ends + 1))
    key = create(server, "brief", "--expires", moment)
    assert answer_to(server, key) == 404
    wait_until(
        lambda: answer_to(server, key) == 401, "the key to be refused", timeout_s=ends + 7 - time.time()
    )


def test_f02_a_replay_after_a_kill_is_the_same_request(tmp_path: Path) -> None:
    with Server(tmp_path / "data", engine=TIMED_ENGINE) as server:
        key = server.key
        with client(server, key) as caller:
            first = submit(caller, "steps=1", **{"Idempotency-Key": "mine"}).json()
        server.kill()
        server.restart()
        with client(server, key) as caller:
            again = submit(caller, "steps=1", **{"Idempotency-Key": "mine"})
            assert again.json()["request_id"] == first["request_id"]
            assert submit(caller, "steps=2", **{"Idempotency-Key": "mine"}).status_code == 422
        wait_for(server, first, "COMPLETED")
