"""The command `lyapsweep published-grid`. What is heavy is imported when it runs."""

from typing import Annotated

import typer

from analysis.options import StoreOption


def published_grid(
    name: Annotated[str, typer.Argument(help="Name of the imported sweep.")],
    store: StoreOption = None,
) -> None:
    """Print every number of the re-analysis of the published grid, for the networks that are here.

    Import with `diverged_rise=null` for the numbers over all networks, diverged ones among them.

    Example: lyapsweep published-grid published
    """
    from analysis import words
    from analysis.frame import SweepFrame
    from analysis.published_grid import numbers
    from pipeline.store import open_store

    table = numbers(SweepFrame.from_store(open_store(store), name))
    for section, part in table.groupby("section", sort=False):
        typer.echo(f"\n{section}")
        for line in part.to_dict("records"):
            digits = 0 if "RMSE" in line["what"] else 3
            shown = [words.number(line[end], digits) for end in ("value", "low", "high")]
            interval = "" if shown[1] == "–" else f" [{shown[1]}, {shown[2]}]"
            p = f"  p {words.p_value(line['p'])}" if line["p"] == line["p"] else ""
            if line["p_holm"] == line["p_holm"]:
                p += f" (Holm {words.p_value(line['p_holm'])})"
            note = f"  {line['note']}" if line["note"] else ""
            typer.echo(f"  {line['what']:<58} {shown[0]}{interval}{p}  n {line['n']}{note}")
