"""The command `lyapsweep doctor`. What is heavy is imported when it runs."""

import collections
import sys
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from pipeline.exits import FAILED

if TYPE_CHECKING:
    from pipeline.doctor import Examination
    from pipeline.home import Home
    from pipeline.store import Store

_MOST_LISTED = 40


def doctor(
    name: Annotated[str, typer.Argument(help="Name of a sweep.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what can be; nothing measured is deleted.")
    ] = False,
    store: Annotated[
        Optional[str],  # noqa: UP045 - typer reads this form on every version we admit
        typer.Option(help="Where sweeps are kept: folder:PATH or an MLflow tracking URI."),
    ] = None,
) -> None:
    """Check that everything a sweep has measured is on record, once, and readable.

    Reads every record and compares store, spool and Optuna. Ends with 0 if nothing is left to
    complain of, else with 1.

    Example: lyapsweep doctor demo --repair
    """
    from pipeline import doctor as doctors
    from pipeline.home import Home
    from pipeline.store import check_name, open_store

    opened, home = open_store(store), Home.of(check_name(name))
    found = doctors.examine(opened, name, home, _show)
    _print(found)
    if repair and not found.is_running and any(f.action for f in found.findings):
        acted = doctors.mend(found, opened, home, lambda: _reconcile(name, opened, home))
        typer.echo(f"{len(acted)} of {len(found.findings)} mended; looking again")
        found = doctors.examine(opened, name, home, _show)
        _print(found)
    elif not repair and any(f.action for f in found.findings) and not found.is_running:
        typer.echo(f"mend with: lyapsweep doctor {name} --repair")
    if not found.is_sound:
        raise typer.Exit(FAILED)


def _reconcile(name: str, store: "Store", home: "Home") -> None:
    """What a driver does before it trains, and no more."""
    from pipeline.creating import stored_config
    from pipeline.executors.inline import InlineExecutor
    from pipeline.sweep import Driver

    info = store.sweep(name)
    driver = Driver(stored_config(info), info, store, home, InlineExecutor())
    driver.request_stop()
    driver.run()


def _print(found: "Examination") -> None:
    info = found.info
    ends = collections.Counter(found.ends.values())
    told = ", ".join(f"{count} {state}" for state, count in ends.most_common())
    typer.echo(
        f"{info.name}: {len(found.ends)} of {info.num_trials} trials on record"
        + (f" ({told})" if told else "")
        + f", {found.num_rows:,} rows read, {len(found.waiting)} in the spool"
    )
    for line in found.unchecked:
        typer.echo(f"not checked: {line}")
    for finding in found.findings[:_MOST_LISTED]:
        where = "sweep" if finding.trial is None else f"trial {finding.trial}"
        remedy = f" [{finding.remedy}]" if finding.remedy else ""
        typer.echo(f"{finding.kind}: {where}: {finding.what}{remedy}")
    if len(found.findings) > _MOST_LISTED:
        typer.echo(f"… and {len(found.findings) - _MOST_LISTED} more")
    if found.is_sound:
        typer.echo("nothing lost, nothing twice, nothing half done")


def _show(done: int, total: int) -> None:
    if sys.stderr.isatty():
        typer.echo(f"\r{done} of {total} trials ", err=True, nl=done == total)
