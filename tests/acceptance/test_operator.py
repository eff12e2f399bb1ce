"""The operator's commands beside a running server, and those that need none."""

import signal
import stat
import subprocess
from pathlib import Path

import httpx

from stillmotion.video import read_frames
from tests.acceptance.calls import film, submit, wait_for
from tests.server import NO_ROOTS, ROOT, TIMED_ENGINE, Server, command, environment, run_cli, wait_until


def create_key(server: Server, name: str) -> str:
    made = run_cli("keys", "create", name, "--data-dir", str(server.data_dir))
    assert made.returncode == 0, made.stderr
    return made.stdout.splitlines()[-1]


def answer_to(server: Server, key: str) -> int:
    """The status of asking for an unknown request: 404 with a good key, 401 with a bad one."""
    url = f"{server.url}/queue/fal-ai/stable-video/requests/01890000-0000-7000-8000-000000000000/status"
    told = {"Authorization": f"Key {key}"}
    return httpx.get(url, headers=told, trust_env=False, verify=NO_ROOTS).status_code


def test_key_made_beside_a_running_server_works_at_once(server: Server) -> None:
    assert answer_to(server, create_key(server, "laptop")) == 404


def test_revoked_key_is_refused_within_five_seconds(server: Server) -> None:
    key = create_key(server, "lost")
    assert answer_to(server, key) == 404
    revoked = run_cli("keys", "revoke", key, "--data-dir", str(server.data_dir))
    assert revoked.returncode == 0, revoked.stderr
    wait_until(lambda: answer_to(server, key) == 401, "the key to be refused", timeout_s=5.5)
    assert "revoked" in run_cli("keys", "list", "--data-dir", str(server.data_dir)).stdout


def test_listed_keys_show_no_secret(server: Server) -> None:
    key = create_key(server, "shown")
    listed = run_cli("keys", "list", "--data-dir", str(server.data_dir)).stdout
    assert key.partition(":")[0] in listed
    assert key.partition(":")[2] not in listed


def test_unknown_key_is_refused_with_what_to_do(server: Server) -> None:
    refused = run_cli("keys", "revoke", "nobody", "--data-dir", str(server.data_dir))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "'nobody'" in refused.stderr and "keys list" in refused.stderr


def test_admin_socket_is_the_owners_alone(server: Server) -> None:
    assert stat.S_IMODE((server.data_dir / "admin.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700


def test_backup_of_a_running_server_starts_as_another(server: Server, tmp_path: Path) -> None:
    ticket = submit(server, "a rocket")
    wait_for(server, ticket, "COMPLETED")
    copy, own = tmp_path / "copy", server.data_dir / "profiles" / "svd.toml"
    own.parent.mkdir()
    own.write_text("samplers.euler.steps = 30\n")
    made = run_cli("backup", str(copy), "--media", "--data-dir", str(server.data_dir))
    assert made.returncode == 0, made.stderr
    assert (copy / "profiles" / own.name).read_bytes() == own.read_bytes()
    with Server(copy, engine=TIMED_ENGINE) as restored:
        path = httpx.URL(ticket["response_url"]).path
        with httpx.Client(base_url=restored.url, headers=server.headers, trust_env=False) as client:
            url = client.get(path).json()["video"]["url"]
            assert client.get(httpx.URL(url).path).content == film(server, ticket)


def test_doctor_beside_a_running_server_names_it(server: Server) -> None:
    told = run_cli("doctor", "--data-dir", str(server.data_dir))
    assert server.url in told.stdout
    for topic in ("python", "torch", "device", "memory", "disk", "sqlite"):
        assert f"ok   {topic}" in told.stdout


def test_doctor_finds_nothing_to_mend_here(tmp_path: Path) -> None:
    told = run_cli("doctor", "--data-dir", str(tmp_path), env={"STILLMOTION_PORT": "0"})
    assert (told.returncode, told.stdout.splitlines()[-1]) == (0, "All is well."), told.stdout


def test_doctor_exits_1_and_says_what_to_mend(tmp_path: Path) -> None:
    told = run_cli("doctor", "--data-dir", str(tmp_path), "--profile", "svd")
    assert told.returncode == 1
    assert "mend weights" in told.stdout and "CUDA" in told.stdout
    assert told.stdout.splitlines()[-1].endswith("to mend.")


def test_profile_that_cannot_run_here_is_refused_with_the_reason(tmp_path: Path) -> None:
    refused = run_cli("serve", "--data-dir", str(tmp_path), "--profile", "svd", "--devices", "cpu")
    assert refused.returncode == 1
    assert "CUDA" in refused.stderr and "Traceback" not in refused.stderr


def test_generate_makes_a_film_with_the_pocket_weights(tmp_path: Path) -> None:
    output = tmp_path / "rocket.mp4"
    words = ("generate", "a red rocket", "-o", str(output), "--seed", "7", "--video-size", "512x288")
    made = run_cli(*words, env={"STILLMOTION_DATA_DIR": str(tmp_path / "data")})
    assert made.returncode == 0, made.stderr
    assert made.stdout == f"{output}\n"
    assert read_frames(output).shape == (25, 288, 512, 3)
    assert not (tmp_path / "data").exists()


def test_interrupted_generate_writes_nothing_and_exits_130(tmp_path: Path) -> None:
    words = ("generate", "steps=100000 pause=0.05", "-o", str(tmp_path / "out.mp4"), "--engine", TIMED_ENGINE)
    log = tmp_path / "log"
    with log.open("wb") as told:
        process = subprocess.Popen(command(*words), stderr=told, env=environment(), cwd=ROOT)
        try:
            wait_until(lambda: "step 2/" in log.read_text(), "the second step")
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
        finally:
            process.kill()
    assert not (tmp_path / "out.mp4").exists()
