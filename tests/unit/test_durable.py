"""Small files: private from their first moment, and whole or as they were."""

from pathlib import Path

import pytest

from stillmotion.durable import write_whole
from tests.faults.broken_disk import files_end_at


def test_a_file_that_was_open_to_others_is_closed_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("old")
    path.chmod(0o644)
    write_whole(path, b"new")
    assert (path.stat().st_mode & 0o777, path.read_bytes()) == (0o600, b"new")


def test_a_write_that_fails_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_whole(path, b"old")
    with files_end_at(1), pytest.raises(OSError):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
