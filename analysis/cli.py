"""The command `lyapsweep report`. What is heavy is imported when it runs."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    name: Annotated[str, typer.Argument(help="Name of the sweep.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the report.", show_default="reports/NAME"),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(help="Where the sweep is kept: folder:PATH or an MLflow tracking URI."),
    ] = None,
) -> None:
    """Write what a sweep found as one HTML page, tables and pictures beside it.

    Example: lyapsweep report demo --out reports/demo
    """
    from analysis.frame import SweepFrame
    from analysis.report import write_report
    from analysis.verdict import verdict
    from pipeline.store import StoreError, open_store

    kept = open_store(store)
    frame = SweepFrame.from_store(kept, name)
    page = write_report(frame, out if out is not None else Path("reports") / name)
    try:
        kept.attach(name, page.parent, "report")
    except (StoreError, OSError) as error:
        typer.echo(f"warning: the report was not attached to the sweep ({error})", err=True)
    typer.echo(verdict(frame).headline)
    typer.echo(str(page))
