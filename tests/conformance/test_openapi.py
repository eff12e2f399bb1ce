"""schemathesis calls every operation of /openapi.json on a real server, with good, odd and broken input."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server import Server

HERE = Path(__file__).parent
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
)
#: Per operation and phase; the whole takes about half a minute.
EXAMPLES = 5
#: A sentence goes through every door, a picture through the queue; the others run the same lines once more.
SAME_CODE = "fal-ai/stable-video|/run/fal-ai/fast-svd-lcm(/stream)?$"
BRIEF_ENGINE = "tests.timed_engine:open_brief"


def test_every_answer_is_the_documented_one_and_none_is_a_server_error(tmp_path: Path) -> None:
    env = {
        # A deadline that has passed is noticed by the sweep; many of these calls set a very short one.
        "STILLMOTION_SWEEP_S": "0.05",
        "STILLMOTION_FETCH_TIMEOUT_S": "1",
        "STILLMOTION_BAD_KEYS_PER_MINUTE": "100000",
    }
    with Server(tmp_path / "data", engine=BRIEF_ENGINE, env=env, program="tests.offline") as server:
        done = subprocess.run(
            [
                Path(sys.executable).with_name("schemathesis"),
                "--config-file",
                HERE / "schemathesis.toml",
                "run",
                f"{server.url}/openapi.json",
                "--header",
                f"Authorization: Key {server.key}",
                "--checks",
                ",".join(CHECKS),
                "--exclude-path-regex",
                SAME_CODE,
                "--max-examples",
                str(EXAMPLES),
                "--generation-deterministic",
                "--continue-on-failure",
                "--no-color",
            ],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd=tmp_path,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path),
            },
        )
        if done.returncode:
            pytest.fail(done.stdout + done.stderr, pytrace=False)
    assert "Traceback" not in server.output(), server.output()
