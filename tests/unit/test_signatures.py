"""Signing keys: whose file, which key signs when, and fal's own verification of what they sign."""

import runpy
import stat
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from stillmotion.clock import SystemClock
from stillmotion.errors import DataRefused
from stillmotion.http import wire
from stillmotion.signatures import FILE, KEPT_S, Seal, SigningKeys
from tests.receiver import verify

NOW = 1_700_000_000.0
BODY = b'{"request_id":"r"}'


def seal(keys: SigningKeys, now: float = NOW) -> Seal:
    return keys.seal("r", "caller", BODY, now)


def verifies(keys: SigningKeys, sealed: Seal, now: float = NOW, body: bytes = BODY) -> bool:
    return verify(wire.webhook_headers(sealed), body, wire.jwks(keys.published()), now)


def test_the_first_key_is_the_owners_alone_and_stays(tmp_path: Path) -> None:
    keys = SigningKeys(tmp_path / "data", NOW)
    assert stat.S_IMODE((tmp_path / "data" / FILE).stat().st_mode) == 0o600
    assert SigningKeys(tmp_path / "data", NOW + 9).published() == keys.published()
    assert len(keys.published()) == 1


def test_a_seal_verifies_by_fals_steps(tmp_path: Path) -> None:
    keys = SigningKeys(tmp_path, NOW)
    sealed = seal(keys)
    assert verifies(keys, sealed)
    assert len(bytes.fromhex(sealed.signature)) == 64
    assert sealed.signature == sealed.signature.lower()
    assert all(len(key["x"]) == 44 and key["x"].endswith("=") for key in wire.jwks(keys.published())["keys"])


def test_the_documented_receiver_takes_what_we_sign_and_nothing_else(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
    sample = tmp_path / "sample.py"
    sample.write_text(page.partition("```python\n")[2].partition("```")[0])
    is_genuine = runpy.run_path(str(sample))["is_genuine"]
    now = SystemClock().now()
    keys, stranger = SigningKeys(tmp_path / "ours", now), SigningKeys(tmp_path / "theirs", now)
    jwks = wire.jwks(keys.published())
    assert is_genuine(wire.webhook_headers(seal(keys, now)), BODY, jwks)
    assert not is_genuine(wire.webhook_headers(seal(keys, now)), BODY + b" ", jwks)
    assert not is_genuine(wire.webhook_headers(seal(keys, now - 301)), BODY, jwks)
    assert not is_genuine(wire.webhook_headers(seal(stranger, now)), BODY, jwks)


@pytest.mark.parametrize("field", ["request_id", "user_id", "timestamp", "signature"])
def test_one_changed_header_fails(tmp_path: Path, field: str) -> None:
    keys = SigningKeys(tmp_path, NOW)
    facts: dict[str, Any] = asdict(seal(keys))
    facts[field] = (
        facts[field] + 1 if field == "timestamp" else "00" + facts[field][2:] + "0" * (field != "signature")
    )
    assert not verifies(keys, Seal(**facts))


def test_one_changed_byte_a_stale_time_and_a_swapped_key_fail(tmp_path: Path) -> None:
    keys, strangers = SigningKeys(tmp_path / "ours", NOW), SigningKeys(tmp_path / "theirs", NOW)
    sealed = seal(keys)
    for position in range(len(BODY)):
        changed = bytearray(BODY)
        changed[position] ^= 1
        assert not verifies(keys, sealed, body=bytes(changed))
    assert verifies(keys, sealed, NOW + 300) and not verifies(keys, sealed, NOW + 301)
    assert verifies(keys, sealed, NOW - 299) and not verifies(keys, sealed, NOW - 301)
    assert not verifies(strangers, sealed)


def test_a_new_key_is_published_a_day_before_it_signs(tmp_path: Path) -> None:
    keys = SigningKeys(tmp_path, NOW)
    old = keys.published()
    fresh = keys.rotate(NOW, at_once=False)
    assert keys.published() == [*old, fresh.public]

    def signed_by(public: bytes, now: float) -> bool:
        return verify(wire.webhook_headers(seal(keys, now)), BODY, wire.jwks([public]), now)

    assert signed_by(old[0], NOW + KEPT_S - 1)
    assert signed_by(fresh.public, NOW + KEPT_S)
    assert signed_by(old[0], NOW - 9), "a clock set back"


def test_a_succeeded_key_is_dropped_once_no_receiver_needs_it(tmp_path: Path) -> None:
    keys = SigningKeys(tmp_path, NOW)
    first = keys.published()[0]
    second = keys.rotate(NOW, at_once=False).public
    third = keys.rotate(NOW + KEPT_S + 1, at_once=False).public
    assert keys.published() == [first, second, third]
    fourth = keys.rotate(NOW + 3 * KEPT_S + 1, at_once=False).public
    assert keys.published() == [third, fourth]


def test_rotation_at_once_leaves_the_new_key_alone(tmp_path: Path) -> None:
    keys, reader = SigningKeys(tmp_path, NOW), SigningKeys(tmp_path, NOW)
    leaked = seal(keys)
    fresh = keys.rotate(NOW, at_once=True)
    assert reader.published() == [fresh.public], "a running server sees it"
    assert not verifies(reader, leaked)
    assert verifies(reader, seal(reader))
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '[{"seed": "00", "signs_from": 1}]', '[{"seed": "zz"}]', "[1]"]
)
def test_a_damaged_file_is_refused_with_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(DataRefused, match=r"webhook-keys cannot be read .* delete it and restart"):
        SigningKeys(tmp_path, NOW)
