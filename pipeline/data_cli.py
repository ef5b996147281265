"""The commands `lyapsweep data list|fetch|verify`. What is heavy is imported when they run."""

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from pipeline.exits import FAILED
from pipeline.terminal import print_table, size

app = typer.Typer(
    help="Named data sets: what there is, fetch, verify.\n\nExample: lyapsweep data fetch mnist",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command(name="list")
def list_() -> None:
    """List the data sets, where they come from, their terms, and whether they are here.

    Example: lyapsweep data list
    """
    from pipeline import fetch

    rows = [(o.name, o.state, size(o.size), o.summary, o.terms) for o in fetch.overview()]
    print_table(("data set", "state", "size", "what it is", "terms"), rows)


@app.command(name="fetch")
def fetch_(
    name: Annotated[str, typer.Argument(metavar="SET", help="Name of a data set.")],
    folder: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this form on every version we admit
        typer.Option("--folder", help="Where to. [default: $LYAPSWEEP_DATA or the user's cache]"),
    ] = None,
) -> None:
    """Download a data set: resumed if interrupted, checked against its sha256.

    Example: lyapsweep data fetch war_and_peace
    """
    from pipeline import fetch

    def report(file: str, here: int, total: int) -> None:
        if sys.stderr.isatty():
            typer.echo(f"\r{file}: {size(here)} of {size(total)}   ", err=True, nl=False)

    paths = fetch.fetch(name, folder=folder, progress=report)
    if sys.stderr.isatty():
        typer.echo("", err=True)
    for path in paths:
        typer.echo(path)


@app.command()
def verify(
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="[SET]", help="One set; without it, all that are here."),
    ] = None,
) -> None:
    """Check the files of data sets against their sha256.

    Example: lyapsweep data verify mnist
    """
    from pipeline import fetch

    names = [name] if name else [o.name for o in fetch.overview() if o.state != "missing"]
    checks = [check for one in names for check in fetch.verify(one)]
    print_table(
        ("file", "", "result"), [(c.file, "ok" if c.ok else "!", c.message) for c in checks]
    )
    if not all(c.ok for c in checks):
        raise typer.Exit(FAILED)
