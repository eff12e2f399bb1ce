"""`stillmotion keys`: make, list and revoke API keys."""

from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from stillmotion.cli.admin import perform
from stillmotion.errors import UserError
from stillmotion.settings import Settings


def create(settings: Settings, name: str, concurrency: int | None, days: float | None) -> None:
    if not name.strip():
        raise UserError("A key needs a name, so that you know later what it is for.")
    made = perform(settings, "keys.create", {"name": name, "concurrency": concurrency, "days": days})
    print(f"Key {name!r}; keep it now, it is not shown again:")
    print(made["key"])


def show(settings: Settings) -> None:
    table = Table("id", "name", "made", "limit", "state", box=None, pad_edge=False)
    now = datetime.now(UTC).timestamp()
    for key in perform(settings, "keys.list", {})["keys"]:
        if key["revoked"] is not None:
            state = f"revoked {_day(key['revoked'])}"
        elif key["expires"] is None:
            state = "in force"
        else:
            state = f"{'expired' if key['expires'] <= now else 'in force until'} {_day(key['expires'])}"
        limit = "–" if key["concurrency"] is None else str(key["concurrency"])
        table.add_row(key["id"], key["name"], _day(key["created"]), limit, state)
    Console().print(table)


def revoke(settings: Settings, key_id: str) -> None:
    # People paste the whole key; only the part before the colon names it.
    key_id = key_id.partition(":")[0]
    perform(settings, "keys.revoke", {"id": key_id})
    print(f"Key {key_id} is revoked; a running server refuses it within {settings.key_cache_s:g} s.")


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
