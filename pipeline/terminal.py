"""What commands print: tables for people and for pipes, sizes in the unit that fits."""

import sys
from collections.abc import Sequence

import typer


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns on a terminal as wide as it is; tab-separated, without a header, in a pipe."""
    if not sys.stdout.isatty():
        for row in rows:
            typer.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def size(num_bytes: int) -> str:
    """Bytes as B, KiB or MiB."""
    if num_bytes < 1024:
        return f"{num_bytes} B"
    if num_bytes < 1024**2:
        return f"{num_bytes / 1024:.0f} KiB"
    return f"{num_bytes / 1024**2:.1f} MiB"
