"""The pages that promise something name the tests that hold it: each is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
NAMED = re.compile(r"`(tests/[\w/]+(?:\.py)?)(?:::(\w+))?`")


@pytest.mark.parametrize("page", ["SECURITY.md", "README.md", "docs/reliability.md"])
def test_every_test_a_page_names_exists(page: str) -> None:
    named = NAMED.findall((ROOT / page).read_text())
    assert named
    for path, name in named:
        assert (ROOT / path).exists(), path
        if name:
            assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), name


def test_every_bad_input_of_doors_uploads_and_keys_has_its_row() -> None:
    rows = re.findall(r"^\| ([DUK]\d\d) \|.*`tests/", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    assert {*rows} == {f"{letter}{number:02}" for letter in "DUK" for number in range(1, 9)}
