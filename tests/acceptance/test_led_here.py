"""`stillmotion env` and `stillmotion run` beside a real server: what they print, set, pass on and refuse."""

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stillmotion.http.ways.doors import FAL_HOSTS
from tests.server import ROOT, TIMED_ENGINE, Server, command, environment, run_cli

#: Prints what a program under `run` sees of its environment.
SHOW = "import json, os; print(json.dumps(dict(os.environ)))"


def led(server: Server, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return run_cli("run", "--data-dir", str(server.data_dir), "--", *words, env=env)


def exports(server: Server, **env: str) -> tuple[dict[str, str], str]:
    """Return what a shell knows after the printed lines, and all that was said."""
    done = run_cli("env", "--data-dir", str(server.data_dir), env=env)
    assert done.returncode == 0, done.stderr
    shell = subprocess.run(
        ["env", "-i", "sh", "-euc", f'{done.stdout}\n{shlex.quote(sys.executable)} -c "$0"', SHOW],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(shell.stdout), done.stdout + done.stderr


def test_env_leads_to_the_https_listener_and_names_what_it_leaves_out(tmp_path: Path) -> None:
    with Server(tmp_path / "it's data", engine=TIMED_ENGINE, tls=True) as server:
        known, lines = exports(server)
        assert known["FAL_RUN_HOST"] == f"127.0.0.1:{server.tls_port}/run"
        assert known["FAL_QUEUE_RUN_HOST"] == f"127.0.0.1:{server.tls_port}/queue"
        assert known["FAL_KEY"] == server.key
        assert Path(known["SSL_CERT_FILE"]).read_bytes() == server.ca_bundle.read_bytes()
        assert Path(known["NODE_EXTRA_CA_CERTS"]).name == "ca.pem"
    assert f"# 127.0.0.1 {' '.join(FAL_HOSTS)}" in lines
    assert "upload_file" in lines and "stillmotion run" in lines


def test_env_without_https_names_no_host_and_prefers_a_key_that_is_this_servers(server: Server) -> None:
    made = run_cli("keys", "create", "mine", "--data-dir", str(server.data_dir)).stdout.splitlines()[-1]
    known, lines = exports(server, FAL_KEY=made)
    assert known["FAL_KEY"] == made
    assert "FAL_RUN_HOST" not in known and "--tls-port" in lines
    # A key of fal's own is left behind.
    assert exports(server, FAL_KEY="0000:of-another-server")[0]["FAL_KEY"] == server.key


def test_run_passes_on_words_and_exit_status(server: Server) -> None:
    done = led(server, sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(7)", "--port", "a b")
    assert (done.returncode, done.stdout) == (7, "['--port', 'a b']\n")
    assert led(server, "nothing-like-it").returncode == 127
    assert led(server, str(ROOT)).returncode == 126


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_passes_on_signals(server: Server, number: signal.Signals) -> None:
    waiting = (
        f"import signal; signal.signal({int(number)}, lambda *_: exit(5)); print(flush=True); signal.pause()"
    )
    words = command("run", "--data-dir", str(server.data_dir), "--", sys.executable, "-c", waiting)
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment(), cwd=ROOT) as process:
        assert process.stdout is not None and process.stdout.readline()
        process.send_signal(number)
        assert process.wait(30) == 5


def test_run_leaves_no_way_past_the_server(server: Server) -> None:
    set_before = {
        "https_proxy": "http://proxy.example:3128",
        "NO_PROXY": "internal.example, *, fal.run,.fal.ai media:443 .example.org",
        "FAL_RUN_HOST": "localhost:1/run",
        "FAL_KEY": "0000:of-another-server",
    }
    seen = json.loads(led(server, sys.executable, "-c", SHOW, env=set_before).stdout)
    assert seen["https_proxy"] == seen["HTTPS_PROXY"] == server.url
    assert seen["no_proxy"] == seen["NO_PROXY"] == "localhost,127.0.0.1,::1,internal.example,.example.org"
    assert "FAL_RUN_HOST" not in seen
    assert seen["FAL_KEY"] == server.key


def test_curl_reaches_fals_names_here_and_nothing_else(server: Server) -> None:
    got = led(
        server, "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "https://v3.fal.media/files/x/y"
    )
    assert (got.returncode, got.stdout) == (0, "404")
    refused = led(server, "curl", "-sSv", "https://example.com/")
    assert refused.returncode == 56
    assert "403" in refused.stderr


def test_without_a_server_both_say_what_to_do(tmp_path: Path) -> None:
    for words in (["env"], ["run"]):
        done = run_cli(*words, "--data-dir", str(tmp_path), *(["--", "true"] if words == ["run"] else []))
        assert done.returncode == 1
        assert "stillmotion serve" in done.stderr


def test_a_server_that_was_killed_is_not_mistaken_for_one_that_answers(tmp_path: Path) -> None:
    with Server(tmp_path / "data", engine=TIMED_ENGINE) as server:
        server.kill()
        done = led(server, "true")
    assert done.returncode == 1
    assert "does not answer" in done.stderr


#: Kills the server, then calls it; ends after some lookups of names and prints them.
CALL_THE_DEAD = """
import os, signal, socket, sys
asked, real = [], socket.getaddrinfo
def getaddrinfo(host, *rest, **more):
    asked.append(host)
    if len(asked) == 6:
        print(sorted(set(asked)), flush=True)
        os._exit(0)
    return real(host, *rest, **more)
socket.getaddrinfo = getaddrinfo
import fal_client
os.kill(int(sys.argv[1]), signal.SIGKILL)
fal_client.SyncClient().submit("fal-ai/stable-video", arguments={})
"""


def test_when_the_server_is_gone_calls_go_nowhere_not_to_the_backup_domains(tmp_path: Path) -> None:
    with Server(tmp_path / "data", engine=TIMED_ENGINE) as server:
        done = led(server, sys.executable, "-c", CALL_THE_DEAD, str(server.process.pid))
        server.wait()
    assert done.stdout == "['127.0.0.1']\n", done.stderr
