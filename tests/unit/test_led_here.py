"""What `stillmotion run` sets, and the one program it refuses to start."""

from pathlib import Path

import pytest

from stillmotion.cli.datadir import Announcement, announce
from stillmotion.cli.env import Lead, show
from stillmotion.cli.run import check_node, led_here, run
from stillmotion.errors import UserError
from stillmotion.http.ways.doors import FAL_HOSTS
from stillmotion.settings import Settings

TOLD = Announcement(pid=1, http="http://127.0.0.1:8000", https=None, ca="ca.pem", admin="admin.sock")
LEAD = Lead(TOLD, "id:secret", Path("/data/tls/ca.pem"), Path("/data/tls/bundle.pem"))
LOCAL = "localhost,127.0.0.1,::1"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", LOCAL),
        ("*", LOCAL),
        ("internal.example, .example.org", f"{LOCAL},internal.example,.example.org"),
        (",".join(FAL_HOSTS), LOCAL),
        (".run FAL.ai:443,*.fal.media,com,..", LOCAL),
        ("fal.run.example.com,10.0.0.0/8,[::2]:443", f"{LOCAL},fal.run.example.com,10.0.0.0/8,[::2]:443"),
    ],
)
def test_no_entry_of_no_proxy_lets_a_fal_name_past(before: str, after: str) -> None:
    env = led_here(LEAD, {"NO_PROXY": before, "no_proxy": before})
    assert env["NO_PROXY"] == env["no_proxy"] == after


def test_what_env_cannot_set_is_told_where_eval_does_not_swallow_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A terminal was shown the first key, so no file has it; and nothing listens for HTTPS.
    announce(tmp_path, TOLD)
    show(Settings(data_dir=tmp_path), {})
    told = capsys.readouterr()
    assert "export SSL_CERT_FILE=" in told.out
    assert "export FAL_" not in told.out
    assert "stillmotion keys create" in told.err and "--tls-port" in told.err


def test_what_is_set_already_gives_way_and_the_rest_stays() -> None:
    env = led_here(
        LEAD, {"https_proxy": "http://proxy.example", "FAL_RUN_HOST": "x", "FAL_KEY": "y", "A": "b"}
    )
    assert env["https_proxy"] == env["HTTPS_PROXY"] == TOLD.http
    assert (env["FAL_KEY"], env["A"]) == ("id:secret", "b")
    assert "FAL_RUN_HOST" not in env
    assert env["SSL_CERT_FILE"] == "/data/tls/bundle.pem"
    assert env["NODE_EXTRA_CA_CERTS"] == "/data/tls/ca.pem"


@pytest.mark.parametrize(
    ("version", "reads"),
    [
        ("v20.20.2", False),
        ("v22.20.0", False),
        ("v23.11.1", False),
        ("v22.21.0", True),
        ("v24.0.0", True),
        ("v26.1.0", True),
    ],
)
def test_a_node_that_would_ignore_the_proxy_is_refused(tmp_path: Path, version: str, reads: bool) -> None:
    node = tmp_path / "node"
    node.write_text(f"#!/bin/sh\necho {version}\n")
    node.chmod(0o755)
    if reads:
        check_node(str(node))
    else:
        with pytest.raises(UserError, match=f"{version} ignores HTTPS_PROXY"):
            check_node(str(node))


@pytest.mark.parametrize("program", ["node", "npm", "npx", "pnpm", "yarn", "tsx"])
def test_programs_that_start_such_a_node_are_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    node = tmp_path / "node"
    node.write_text("#!/bin/sh\necho v20.20.2\n")
    node.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    announce(tmp_path, TOLD)
    with pytest.raises(UserError, match=r"v20\.20\.2 ignores HTTPS_PROXY"):
        run(Settings(data_dir=tmp_path), [program, "app"], {"PATH": str(tmp_path)})
