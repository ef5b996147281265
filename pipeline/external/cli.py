"""The command `lyapsweep import-spectra`. What is heavy is imported when it runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from pipeline.external.tables import Tables

_MOST_LISTED = 5


def import_spectra(
    spectra: Annotated[
        Path,
        typer.Option("--spectra", help="Parquet: a line a network, epoch and exponent."),
    ],
    losses: Annotated[Path, typer.Option("--losses", help="Parquet: a line a network and epoch.")],
    name: Annotated[str, typer.Option("--name", help="What to call the sweep.")],
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads this form on every version we admit
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Overrides of the mapping: exponents.unit=nats/step"
        ),
    ] = None,
    mapping: Annotated[
        str,
        typer.Option(
            "--mapping",
            metavar="FILE",
            help="YAML that says which columns hold what, or the name of one that we ship.",
        ),
    ] = "vogt2022",
    store: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Where to keep the sweep: folder:PATH or an MLflow tracking URI."),
    ] = None,
) -> None:
    """Make a sweep of spectra and losses that others published, for the same analysis as ours.

    Both tables are checked whole before anything is written. An import that was broken off goes on
    when the command is repeated.

    Example: lyapsweep import-spectra --spectra S.parquet --losses L.parquet --name published
    """
    from pipeline.external import mapping as mappings
    from pipeline.external.sweep import check_free, import_sweep
    from pipeline.external.tables import read
    from pipeline.home import Home
    from pipeline.store import check_name, open_store

    chosen = check_name(name)
    described = mappings.load(mappings.find(mapping), settings or ())
    tables = read(described, spectra, losses)
    opened = open_store(store)
    check_free(tables, described, chosen, opened)
    opened.prepare()
    number = import_sweep(tables, described, chosen, opened, Home.of(chosen))
    for line in summary(tables, chosen, number):
        typer.echo(line)


def summary(tables: "Tables", name: str, number: int) -> list[str]:
    """What was imported, in a few lines; `number` networks of it just now."""
    networks = tables.networks
    epochs = sorted({epoch for network in networks for epoch in network.spectra})
    counts = sorted({len(s.exponents) for n in networks for s in n.spectra.values()})
    bare = sum(not n.spectra for n in networks)
    before = len(networks) - number
    diverged = [f"{n.name} at epoch {n.diverged_at}" for n in networks if n.diverged_at is not None]
    if len(diverged) > _MOST_LISTED:
        diverged[_MOST_LISTED:] = [f"… {len(diverged)} in all"]
    return [
        f"{name}: {len(networks)} networks" + (f", {before} of them before" if before else ""),
        f"spectra: {' or '.join(map(str, counts))} exponents at epochs "
        f"{', '.join(map(str, epochs))}, from {tables.units['exponents']} to nats/step"
        + (f"; {bare} networks have none" if bare else ""),
        f"losses: epochs {min(min(n.losses) for n in networks)} to "
        f"{max(max(n.losses) for n in networks)}, from {tables.units['losses']}",
        f"diverged: {', '.join(diverged) or 'none'}",
        f"report: lyapsweep report {name}",
    ]
