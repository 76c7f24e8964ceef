"""Tables as another program's console prints them."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table


def printed(table: Table, width: int = 400) -> str:
    """The text of a table on a console of somebody else's, on which markup is on."""
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]
