"""`stillmotion keys`: make, list, rotate and revoke API keys."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime

from rich.markup import escape
from rich.table import Table

from stillmotion.cli.admin import perform
from stillmotion.cli.tables import moment, print_table
from stillmotion.errors import UserError
from stillmotion.settings import DAY_S, MOST_DAYS, Settings

_SECONDS = {"m": 60, "h": 3600, "d": DAY_S}
_DURATION = re.compile(r"(\d{1,6})([mhd])")


def create(
    settings: Settings, name: str, limits: Mapping[str, int | None], expires: str | None, scope: str
) -> None:
    if not name.strip() or not name.isprintable():
        raise UserError(f"{name!r} is no name for a key: write in plain characters what it is for.")
    until = None if expires is None else read_expiry(expires, datetime.now(UTC).timestamp())
    wanted = {"name": name, "expires": until, "admin": scope == "admin", **limits}
    made = perform(settings, "keys.create", wanted)
    print(f"Key {name!r}; keep it now, it is not shown again:")
    print(made["key"])


def show(settings: Settings) -> None:
    columns = ("id", "name", "scope", "made", "at once", "a minute", "bytes a day", "state")
    table = Table(*columns, box=None, pad_edge=False)
    now = datetime.now(UTC).timestamp()
    for key in perform(settings, "keys.list", {})["keys"]:
        if key["revoked"] is not None:
            state = f"revoked {moment(key['revoked'])}"
        elif key["expires"] is None:
            state = "in force"
        else:
            state = f"{'expired' if key['expires'] <= now else 'in force until'} {moment(key['expires'])}"
        at_once = key["concurrency"] and f"{key['active']} of {key['concurrency']}"
        limits = (at_once, key["submits_per_minute"], key["upload_bytes_per_day"])
        table.add_row(
            key["id"],
            escape(key["name"]),
            "admin" if key["admin"] else "api",
            moment(key["created"]),
            *("–" if limit is None else str(limit) for limit in limits),
            state,
        )
    print_table(table)


def rotate(settings: Settings, key: str, overlap: str) -> None:
    key_id = _id_of(key)
    overlap_s = _duration(overlap)
    if overlap_s is None:
        raise UserError(f"An overlap is a length such as 30m, 12h or 1d, or 0 for none, not {overlap!r}.")
    made = perform(settings, "keys.rotate", {"id": key_id, "overlap_s": overlap_s})
    ends = "is refused from now on" if overlap_s == 0 else f"works for another {overlap}"
    print(f"Key {key_id} has a new secret; the one before {ends}. Keep it now, it is not shown again:")
    print(made["key"])


def revoke(settings: Settings, key: str) -> None:
    key_id = _id_of(key)
    perform(settings, "keys.revoke", {"id": key_id})
    print(f"Key {key_id} is revoked; a running server refuses it within {settings.key_cache_s:g} s.")


def read_expiry(text: str, now: float) -> float:
    """Read a length from now (30d) or a date or time (2027-01-01, UTC unless it says otherwise)."""
    length = _duration(text)
    if length is not None:
        until = now + length
    else:
        try:
            named = datetime.fromisoformat(text)
        except ValueError:
            raise UserError(
                f"An expiry is a length such as 12h or 30d, or a date such as 2027-01-01, not {text!r}."
            ) from None
        until = (named if named.tzinfo is not None else named.replace(tzinfo=UTC)).timestamp()
    if until <= now:
        raise UserError(f"The expiry {text!r} is past; name a later one.")
    if until > now + MOST_DAYS * DAY_S:
        raise UserError(f"The expiry {text!r} is over a hundred years away; a key without one never ends.")
    return until


def _duration(text: str) -> int | None:
    match = _DURATION.fullmatch(text)
    if match is None:
        return 0 if text == "0" else None
    return int(match[1]) * _SECONDS[match[2]]


def _id_of(key: str) -> str:
    """People paste the whole key; only the part before the colon names it."""
    return key.partition(":")[0]
