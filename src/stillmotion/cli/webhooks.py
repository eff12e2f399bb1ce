"""`stillmotion webhooks`: see deliveries, send one again, rotate the signing key."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from stillmotion.cli.admin import perform
from stillmotion.cli.tables import moment, print_table
from stillmotion.settings import Settings


def show(settings: Settings, delivered: bool) -> None:
    table = Table("request", "receiver", "tries", "state", "last problem", box=None, pad_edge=False)
    for one in perform(settings, "webhooks.list", {"all": delivered})["webhooks"]:
        # What stands in the query may be a secret of the receiver.
        receiver = one["url"].partition("?")[0]
        table.add_row(
            one["request"], escape(receiver), str(one["tries"]), _state(one), one["last_error"] or "–"
        )
    print_table(table)


def redeliver(settings: Settings, request_id: str) -> None:
    perform(settings, "webhooks.redeliver", {"id": request_id})
    print(f"The webhook of {request_id} is due now; a running server sends it within seconds.")


def rotate_key(settings: Settings, at_once: bool) -> None:
    told = perform(
        settings, "webhooks.rotate-key", {"data_dir": str(settings.data_dir.absolute()), "at_once": at_once}
    )
    if at_once:
        print("The new key signs from now on and is the only one published.")
        print("Receivers that keep the old list refuse it until they fetch the list again, up to a day.")
    else:
        print(f"{told['published']} keys are published; the new one signs from {moment(told['signs_from'])}.")


def _state(one: dict[str, Any]) -> str:
    if one["delivered"] is not None:
        return f"delivered {moment(one['delivered'])}"
    if one["parked"] is not None:
        return f"parked {moment(one['parked'])}"
    return "being sent" if one["sending"] else f"due {moment(one['due'])}"
