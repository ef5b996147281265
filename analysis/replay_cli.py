"""The command `lyapsweep replay`. What is heavy is imported when it runs."""

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from analysis.options import FormatOption, StoreOption

if TYPE_CHECKING:
    import pandas as pd

    from analysis.recording import Recording

Shown = Literal["pruners", "budget", "curve"]
# The curve has several strengths of each pruner, at each of these.
_MOST_ORDERS = 10


def replay(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a sweep run unpruned.")],
    pruner: Annotated[
        list[str] | None,
        typer.Option(
            "--pruner",
            metavar="PRUNER",
            help="median, median:warmup=2, '{name: median, n_warmup_steps: 2}' or a YAML file; "
            "may be repeated. [default: all of `lyapsweep list pruners`]",
        ),
    ] = None,
    orders: Annotated[
        int, typer.Option(min=0, help="Orders of the trials that intervals are taken over.")
    ] = 20,
    top: Annotated[
        float, typer.Option(min=0.001, max=1, help="Share of the best whose recall is shown.")
    ] = 0.1,
    cohort_size: Annotated[
        int | None,
        typer.Option(min=1, help="Trials judged together.", show_default="the sweep's"),
    ] = None,
    lag: Annotated[
        int | None,
        typer.Option(min=1, help="Cohorts that train at a time.", show_default="the sweep's"),
    ] = None,
    show: Annotated[
        Shown | None,
        typer.Option(
            "--show",
            help="pruners: what each does; budget: what can be saved while regret stays below "
            "0.5 % and 1 % of the spread of final losses; curve: what that is read from.",
            show_default="pruners and budget; pruners in csv",
        ),
    ] = None,
    format: FormatOption = "table",
    store: StoreOption = None,
) -> None:
    """Compare pruners on a stored sweep: what each would have saved, and lost. Trains nothing.

    Example: lyapsweep replay demo --pruner median:warmup=2 --pruner spectrum
    """
    from analysis import contenders
    from analysis.frame import SweepFrame
    from analysis.recording import recording
    from analysis.trade_off import budget_at_regret, comparison, trade_off
    from pipeline.store import open_store

    frame = SweepFrame.from_store(open_store(store), name)
    sweep = recording(frame, cohort_size=cohort_size, lag=lag)
    choices = contenders.all_choices(sweep.epochs, frame.measured_epochs)
    if pruner:
        given = [contenders.choice_of(contenders.parse(p), sweep.epochs, p) for p in pruner]
        choices = {contenders.label_of(choice): choice for choice in given}
    wanted = ("pruners",) if format == "csv" or orders < 2 else ("pruners", "budget")
    if show is not None:
        wanted = (show,)
    if orders < 2 and wanted != ("pruners",):
        raise typer.BadParameter(f"{show} is read from several orders; give --orders 20")
    tables: dict[str, pd.DataFrame] = {}
    if "pruners" in wanted:
        tables["pruners"] = comparison(sweep, choices, num_orders=orders, top=top)
    if "budget" in wanted or "curve" in wanted:
        curve = trade_off(sweep, choices, num_orders=min(orders, _MOST_ORDERS))
        tables |= {"curve": curve} if "curve" in wanted else {}
        tables |= {"budget": budget_at_regret(curve)} if "budget" in wanted else {}
    if format == "json":
        found = {key: json.loads(t.to_json(orient="records")) for key, t in tables.items()}
        typer.echo(json.dumps({"sweep": name, "notes": sweep.notes, **found}, indent=1))
    elif format == "csv":
        typer.echo(tables[wanted[0]].to_csv(index=False), nl=False)
    else:
        _print(sweep, tables, top)


def _print(sweep: "Recording", tables: "dict[str, pd.DataFrame]", top: float) -> None:
    from analysis import words

    trials, epochs = len(sweep.numbers), sweep.epochs_whole
    typer.echo(
        f"{sweep.frame.info.name}: {words.count(trials, 'trial')}, {epochs:,} epochs without a "
        f"pruner; best final loss {words.significant(sweep.final.min())}, "
        f"spread {words.significant(sweep.spread)}; lag {sweep.lag}"
    )
    for note in sweep.notes:
        typer.echo(f"note: {note}")
    if "pruners" in tables:
        table = tables["pruners"]
        typer.echo(
            "\nIn the sweep's own order of trials [middle 95 % of "
            f"{words.count(int(table['orders'].iloc[0]), 'other order')}]. net: with the time of "
            "measuring what is looked at.\nregret: of the spread; kept: of the best "
            f"{words.percent(top)}; rank: of the best kept.\n"
        )
        header = ("pruner", "epochs", "saved", "net", "regret", "kept", "rank")
        typer.echo(_aligned([header, *(_line(r) for r in table.to_dict("records"))]))
        for row in table.to_dict("records"):
            if row["note"]:
                typer.echo(f"{row['pruner']}: {row['note']}")
    if "budget" in tables:
        typer.echo("\nMost that is saved while the mean regret stays below a limit, over orders:\n")
        titles = ("pruner", "regret below", "saved", "net", "regret", "settings")
        rows = tables["budget"].to_dict("records")
        typer.echo(_aligned([titles, *(_budget_line(r) for r in rows)]))
    if "curve" in tables:
        means = (
            tables["curve"]
            .groupby(["pruner", "settings"], sort=False)[["saved", "net", "regret", "recall"]]
            .mean()
        )
        typer.echo("\nMeans over orders:\n")
        typer.echo(_aligned([
            ("pruner", "settings", "saved", "net", "regret", "kept"),
            *((*map(str, key), *map(_share, values)) for key, values in
              zip(means.index, means.to_numpy().tolist(), strict=True)),
        ]))  # fmt: skip


def _line(row: dict[Any, Any]) -> tuple[str, ...]:
    def known(name: str, shape: str) -> str:
        ends = f" [{row[f'{name}_low']:{shape}}, {row[f'{name}_high']:{shape}}]"
        is_known = row[f"{name}_low"] == row[f"{name}_low"]
        return f"{row[name]:{shape}}" + (ends if is_known else "")

    shares = (known(name, ".1%") for name in ("saved", "net", "regret", "recall"))
    return (str(row["pruner"]), known("epochs", ".0f"), *shares, known("rank", ".0f"))


def _budget_line(row: dict[Any, Any]) -> tuple[str, ...]:
    saved, net = (
        f"{row[n]:.1%} [{row[f'{n}_low']:.1%}, {row[f'{n}_high']:.1%}]" for n in ("saved", "net")
    )
    limit = f"{row['limit']:.1%}"
    return str(row["pruner"]), limit, saved, net, _share(row["regret"]), str(row["settings"])


def _share(value: float) -> str:
    return "–" if value != value else f"{value:.1%}"


def _aligned(rows: "list[tuple[str, ...]]") -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
