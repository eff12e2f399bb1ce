"""Real server processes: start, drain, stop, being killed, and coming back."""

import os
import socket
import ssl
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from stillmotion.cli.datadir import ADMIN_SOCKET, ANNOUNCEMENT
from stillmotion.store.open import open_store
from tests.acceptance.calls import (
    ENDPOINT,
    all_gone,
    children,
    film,
    result,
    status,
    steps_told,
    submit,
    wait_for,
)
from tests.server import TIMED_ENGINE, Server, ask_readiness, run_cli, wait_until
from tests.store import asks

#: Long enough to be met while it runs, short enough to wait for.
SLOW = "steps=30 pause=0.1"
#: Ends only when it is stopped.
ENDLESS = "steps=100000 pause=0.05"


def test_server_makes_a_film_and_leaves_nothing_running(tmp_path: Path) -> None:
    with Server(tmp_path / "data", engine=TIMED_ENGINE) as server:
        ticket = submit(server, "a rocket")
        wait_for(server, ticket, "COMPLETED")
        assert film(server, ticket)[4:8] == b"ftyp"
        runners = children(server)
        server.terminate()
        assert server.wait() == 0
    assert all_gone(runners)
    assert not (server.data_dir / ANNOUNCEMENT).exists()
    assert "Traceback" not in server.output()


def test_start_block_says_url_directory_profile_device_readiness_and_what_waits_in_vain(
    tmp_path: Path,
) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    store = open_store(f"sqlite:///{data_dir / 'stillmotion.db'}")
    asks.submit(store, asks.ask(profile="svd"))
    store.close_now()
    with Server(data_dir, engine=TIMED_ENGINE) as server:
        wait_until(lambda: "ready in" in server.output(), "the start block")
        block = server.output()
    waits = "note     requests that wait for profile svd: 1."
    for fact in (server.log.stem, "URL", "profile  pocket", "device   cpu", "first-key", waits):
        assert fact in block


def test_first_key_is_the_owners_alone_and_survives_a_restart(tmp_path: Path) -> None:
    with Server(tmp_path / "data", engine=TIMED_ENGINE) as server:
        key = server.key
        assert stat.S_IMODE(os.stat(server.data_dir / "first-key").st_mode) == 0o600
        server.terminate()
        server.wait()
        server.restart()
        assert server.key == key
        assert key not in server.output()
        assert submit(server, "a rocket")["request_id"]


def test_sigterm_finishes_what_runs_and_answers_polls_meanwhile(tmp_path: Path) -> None:
    with Server(tmp_path / "data", engine=TIMED_ENGINE) as server:
        running = submit(server, SLOW)
        wait_for(server, running, "IN_PROGRESS")
        waiting = submit(server, "a rocket")
        server.terminate()
        wait_until(lambda: "worker drains" in server.output(), "the drain")
        assert status(server, running)["status"] == "IN_PROGRESS"
        assert ask_readiness(server.url).status_code == 503
        assert server.wait() == 0
        server.restart()
        told = wait_for(server, running, "COMPLETED")
        assert steps_told(told) == [f"step {step}/30" for step in range(1, 31)]
        wait_for(server, waiting, "COMPLETED")


def test_second_sigterm_stops_at_once_and_the_request_keeps_its_place(tmp_path: Path) -> None:
    with Server(tmp_path / "data", engine=TIMED_ENGINE) as server:
        ticket = submit(server, ENDLESS)
        wait_for(server, ticket, "IN_PROGRESS")
        runners = children(server)
        server.terminate()
        wait_until(lambda: "worker drains" in server.output(), "the drain")
        server.terminate()
        server.wait(timeout_s=10)
        assert all_gone(runners)
        server.restart()
        wait_for(server, ticket, "IN_PROGRESS")
        with server.client() as client:
            client.put(httpx.URL(ticket["cancel_url"]).path)
        wait_for(server, ticket, "COMPLETED")
        assert result(server, ticket).status_code >= 400


def test_killed_server_leaves_no_child_and_its_request_runs_again_to_one_end(tmp_path: Path) -> None:
    # Re-queued because the lock is free, not because a lease lapses: this one outlives the test.
    env = {"STILLMOTION_LEASE_S": "600"}
    with Server(tmp_path / "data", engine=TIMED_ENGINE, env=env) as server:
        ticket = submit(server, SLOW)
        wait_until(lambda: steps_told(status(server, ticket)), "the first step")
        runners = children(server)
        assert runners
        server.kill()
        wait_until(lambda: all_gone(runners), "the runner to end", timeout_s=2)
        server.restart()
        told = wait_for(server, ticket, "COMPLETED")
        assert steps_told(told).count("step 1/30") == 2
        assert steps_told(told).count("step 30/30") == 1
        assert film(server, ticket)[4:8] == b"ftyp"


def test_sync_call_cut_off_by_a_kill_is_cancelled_and_not_made_again(tmp_path: Path) -> None:
    with Server(tmp_path / "data", engine=TIMED_ENGINE) as server, ThreadPoolExecutor(1) as threads:
        with server.client() as client:
            calling = threads.submit(client.post, f"/run/{ENDPOINT}", json={"prompt": ENDLESS})
            wait_until(lambda: "started attempt=1" in server.output(), "the run")
            server.kill()
            with pytest.raises(httpx.TransportError):
                calling.result()
        server.restart()
        # Made again, it would hold the only runner for ever.
        wait_for(server, submit(server, "a rocket"), "COMPLETED")
        assert "cancelled: its caller's connection went with the server" in server.output()


def test_q08_sync_client_that_hangs_up_frees_the_runner_for_the_next(server: Server) -> None:
    with server.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"/run/{ENDPOINT}", json={"prompt": ENDLESS}, timeout=1)
    wait_for(server, submit(server, "a rocket"), "COMPLETED")


@pytest.mark.parametrize("fault", ["crash_at=2", "garbage_at=2", "exit_at=2"])
def test_request_whose_runner_dies_once_is_made_by_the_next_one(server: Server, fault: str) -> None:
    ticket = submit(server, f"steps=4 {fault} until=1")
    told = wait_for(server, ticket, "COMPLETED")
    assert steps_told(told)[-1] == "step 4/4"
    assert film(server, ticket)[4:8] == b"ftyp"


def test_second_server_on_the_same_directory_is_refused_by_name(server: Server) -> None:
    refused = run_cli("serve", "--port", "0", "--data-dir", str(server.data_dir), "--engine", TIMED_ENGINE)
    assert refused.returncode == 1
    assert f"in use by process {server.process.pid}" in refused.stderr
    assert "--data-dir" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert submit(server, "still answers")["request_id"]


def test_port_in_use_is_refused_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = run_cli("serve", "--port", port, "--data-dir", str(tmp_path), "--engine", TIMED_ENGINE)
    assert refused.returncode == 1
    assert f"Cannot listen on 127.0.0.1:{port}" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_f15_a_corrupt_database_is_refused_in_one_line_and_no_socket_stays(tmp_path: Path) -> None:
    (tmp_path / "stillmotion.db").write_bytes(b"not a database, but somebody's letters " * 200)
    refused = run_cli("serve", "--port", "0", "--data-dir", str(tmp_path), "--engine", TIMED_ENGINE)
    assert refused.returncode == 1
    assert "is not a whole SQLite database" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / ADMIN_SOCKET).exists()


def test_https_answers_under_fals_names_with_our_authority(tmp_path: Path) -> None:
    with (
        Server(tmp_path / "data", engine=TIMED_ENGINE, tls=True) as server,
        socket.create_connection(("127.0.0.1", server.tls_port)) as plain,
    ):
        context = ssl.create_default_context(cafile=server.announcement.ca)
        with context.wrap_socket(plain, server_hostname="queue.fal.run") as secure:
            secure.sendall(b"GET /healthz HTTP/1.1\r\nHost: queue.fal.run\r\nConnection: close\r\n\r\n")
            assert secure.recv(64).startswith(b"HTTP/1.1 ")
