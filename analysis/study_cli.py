"""The command `reproduce`: the papers' experiments by name, and their gallery."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from analysis.options import StoreOption
from pipeline.exits import FAILED

if TYPE_CHECKING:
    from analysis.studies.settings import Settings
    from pipeline.store import Store

_ALL = "all"


def reproduce(
    study: Annotated[
        str,
        typer.Argument(metavar="STUDY", help="Name of a study, the first letters of some, or all."),
    ],
    scale: Annotated[
        Literal["small", "paper"],
        typer.Option(help="small: minutes on two cores. paper: the published settings."),
    ] = "small",
    seeds: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Networks of each kind.", show_default="the study's"),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the gallery.")] = Path("gallery"),
    only_plan: Annotated[
        bool,
        typer.Option("--plan", help="Show the settings and what they would cost; run nothing."),
    ] = False,
    costs: Annotated[
        Path | None,
        typer.Option(help="With --plan: a Markdown file for the costs of all sweeps in one table."),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Carry out experiments of published papers and say of each claim whether it holds here.

    Trains through sweeps that are kept like any other; run again, it finds what it has trained.
    Ends with code 1 if a study could not be carried out, not if a claim fails.

    Example: lyapsweep reproduce poole_circle && lyapsweep list studies
    """
    from analysis.studies import settings as studies

    if costs is not None and not only_plan:
        raise typer.BadParameter("is for --plan", param_hint="--costs")
    chosen = [studies.load(name, scale, seeds) for name in _chosen(study)]
    if only_plan:
        _plan(study, scale, chosen, costs)
        return
    from analysis import gallery
    from pipeline.store import open_store
    from tasks.base import MissingDataError

    kept = open_store(store)
    failed: list[str] = []
    skipped: list[str] = []
    for settings in chosen:
        try:
            if not _carry_out(settings, kept, out):
                failed.append(settings.name)
        except MissingDataError as error:
            typer.echo(f"{settings.name}: {error}", err=True)
            skipped.append(settings.name)
        if gallery.studies_in(out):
            gallery.write_index(out)
    if gallery.studies_in(out):
        typer.echo(str(out / "index.html"))
    if skipped:
        typer.echo(f"left out for want of data: {', '.join(skipped)}", err=True)
    if failed or len(skipped) == len(chosen):
        typer.echo(f"not carried out: {', '.join(failed or skipped)}", err=True)
        raise typer.Exit(FAILED)


def _chosen(study: str) -> list[str]:
    """Names of the studies that a word means."""
    from pipeline import catalog

    known = list(catalog.entries("studies"))
    if study in known:
        return [study]
    found = known if study == _ALL else [name for name in known if name.startswith(study)]
    if not found:
        raise catalog.UnknownNameError(
            f"no study {study!r}; there are {', '.join(known)}, and all for all of them"
        )
    return found


def _carry_out(settings: "Settings", store: "Store", out: Path) -> bool:
    """One study, its page and its verdicts; False where it could not be carried out.

    Raises MissingDataError.
    """
    from analysis import gallery
    from analysis.frame import AnalysisError
    from analysis.studies.outcome import carry_out
    from analysis.words import count
    from pipeline.progress import duration
    from pipeline.store import StoreError
    from tasks.base import UnsuitableError

    typer.echo(f"{settings.name}: {settings.scale} scale, {count(settings.seeds, 'seed')}")
    try:
        done = carry_out(settings, store)
    except (AnalysisError, UnsuitableError) as error:
        typer.echo(f"{settings.name}: {error}", err=True)
        return False
    page = gallery.add(done, out)
    for sweep in done.outcome.sweeps:
        try:
            store.attach(sweep, page.parent, "study")
        except (StoreError, OSError) as error:
            typer.echo(f"warning: not attached to sweep {sweep} ({error})", err=True)
    for finding in done.outcome.findings:
        typer.echo(f"  {finding.verdict}: {finding.claim}: {finding.found}")
    typer.echo(f"  in {duration(done.outcome.seconds)}: {page}")
    return True


def _plan(word: str, scale: str, chosen: Sequence["Settings"], file: Path | None) -> None:
    """Shows settings and costs; what is not to be had is said, and ends with code 1."""
    from dataclasses import asdict

    from analysis.studies.costs import PartCosts, costs_of, table
    from analysis.words import count

    if file is not None and not file.parent.is_dir():
        raise typer.BadParameter(
            f"must lie in a folder that is there; {file.parent} is not", param_hint="--costs"
        )
    found: list[PartCosts] = []
    for settings in chosen:
        typer.echo(f"{settings.name}: {settings.scale} scale, {count(settings.seeds, 'seed')}")
        for key, value in asdict(settings.config).items():
            typer.echo(f"  {key}: {value}")
        if not settings.sweeps:
            typer.echo("  trains nothing")
        for part in settings.sweeps:
            typer.echo(f"{settings.name}, sweep {part}:")
            found.append(costs_of(settings, part, lambda line: typer.echo(f"  {line}")))
            if found[-1].costs is None:
                typer.echo(f"{settings.name}, sweep {part}: {found[-1].why}", err=True)
    if file is not None:
        file.write_text(table(word, scale, chosen, found), encoding="utf-8")
        typer.echo(str(file))
    unplanned = dict.fromkeys(part.study for part in found if part.costs is None)
    if unplanned:
        typer.echo(f"not planned whole: {', '.join(unplanned)}", err=True)
        raise typer.Exit(FAILED)
