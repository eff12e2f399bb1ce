"""An upload URL opens one door, for one file, for a while; nothing about it can be changed."""

from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import pytest

from stillmotion.errors import DataRefused
from stillmotion.media.signing import UploadGrant, UploadSigner, UploadWay, load_secret

NOW = 1_700_000_000.0
SIGNER = UploadSigner(b"s" * 32)
QUERY = SIGNER.sign("file1", "image/svg+xml; a=b&c", 5_000, NOW + 60)


def test_signed_query_gives_back_what_was_granted() -> None:
    grant = SIGNER.check("file1", QUERY, NOW)
    assert grant == UploadGrant(UploadWay.WHOLE, "file1", "image/svg+xml; a=b&c", 5_000, int(NOW + 60))


def test_grant_ends_at_its_expiry() -> None:
    assert SIGNER.check("file1", QUERY, NOW + 59.9) is not None
    assert SIGNER.check("file1", QUERY, NOW + 60) is None


def test_grant_is_for_its_way_of_uploading() -> None:
    assert SIGNER.check("file1", QUERY, NOW, UploadWay.PARTS) is None
    query = SIGNER.sign("file1", "image/png", 5, NOW + 60, UploadWay.PARTS)
    assert SIGNER.check("file1", query, NOW) is None
    granted = SIGNER.check("file1", query, NOW, UploadWay.PARTS)
    assert granted is not None and granted.way is UploadWay.PARTS


def test_grant_is_for_its_file_and_its_server_only() -> None:
    assert SIGNER.check("file2", QUERY, NOW) is None
    assert UploadSigner(b"t" * 32).check("file1", QUERY, NOW) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("type", "image/png"),
        ("max", "5001"),
        ("max", "05000"),
        ("max", "-1"),
        ("max", "٥٠٠٠"),
        ("expires", "1800000000"),
        ("expires", "9" * 5000),
        ("expires", "1e9"),
        ("expires", ""),
        ("signature", ""),
        ("signature", "0" * 64),
        ("signature", "é"),
    ],
)
def test_any_changed_field_voids_the_url(field: str, value: str) -> None:
    fields = dict(parse_qsl(QUERY))
    fields[field] = value
    granted = SIGNER.check("file1", urlencode(fields), NOW)
    # 05000 is 5000: the number is what is signed.
    assert granted is None or granted.max_bytes == 5_000


@pytest.mark.parametrize(
    "query",
    [
        "",
        "&&&",
        "a=b",
        QUERY + "&max=9999",
        QUERY + "&x=1",
        "max=9999&" + QUERY,
        QUERY.partition("&")[2],
        "%ff=%00",
    ],
)
def test_missing_doubled_and_foreign_fields_void_the_url(query: str) -> None:
    assert SIGNER.check("file1", query, NOW) is None


def test_facts_cannot_be_moved_from_one_field_to_another() -> None:
    moved = SIGNER.sign("file", "1image/png", 5_000, NOW + 60)
    signature = dict(parse_qsl(moved))["signature"]
    forged = urlencode({"type": "image/png", "max": 5_000, "expires": int(NOW + 60), "signature": signature})
    assert SIGNER.check("file1", forged, NOW) is None


def test_secret_is_made_once_and_private(tmp_path: Path) -> None:
    made = load_secret(tmp_path / "data")
    assert load_secret(tmp_path / "data") == made and len(made) == 32
    assert (tmp_path / "data" / "secret").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["secret"]


def test_secret_of_the_wrong_length_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(DataRefused, match="5 bytes instead of 32"):
        load_secret(tmp_path)
