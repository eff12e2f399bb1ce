"""Lists on a terminal, and the same lists for other programs."""

from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

PIPED_WIDTH = 400


def print_table(table: Table) -> None:
    """Print a table whose first column names its rows, and so is whole however narrow the terminal."""
    table.columns[0].no_wrap = True
    for column in table.columns:
        column.overflow = "fold"
    console = Console()
    if not console.is_terminal:
        # One line each for other programs; a terminal wraps to its own width.
        console.width = PIPED_WIDTH
    console.print(table)


def moment(at: float) -> str:
    """Write Unix seconds for people, wherever they are."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
