"""`stillmotion settings`: every setting, its value and where that came from."""

import json
from dataclasses import asdict, replace

from rich.table import Table

from stillmotion.cli.tables import print_table
from stillmotion.settings import Origin, describe_settings, load_settings, without_password


def show(as_json: bool) -> None:
    rows = [_without_secret(row) for row in describe_settings(load_settings({}), {})]
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    table = Table("setting", "value", "from", "meaning", box=None, pad_edge=False)
    for row in rows:
        meaning = f"{row.description} ({row.unit}; default {row.default or 'unset'})"
        table.add_row(row.name, row.value, row.source, meaning)
    print_table(table)


def _without_secret(row: Origin) -> Origin:
    """Hide the password of a database URL and the secret of a key: this output lands in bug reports."""
    if row.unit == "key" and row.value:
        return replace(row, value=f"{row.value.partition(':')[0]}:***")
    return replace(row, value=without_password(row.value))
