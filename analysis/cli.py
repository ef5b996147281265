"""The commands of analysis. What is heavy is imported when they run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from analysis.options import FormatOption, NameArgument, StoreOption

if TYPE_CHECKING:
    from analysis.frame import SweepFrame
    from pipeline.store import Store

_REPORTS = Path("reports")
_LONGEST = 80  # letters of a folder's name, of the 255 that file systems take


def report(
    names: Annotated[list[str], typer.Argument(help="Name of the sweep, or of several.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the report.", show_default="reports/NAME"),
    ] = None,
    form: Annotated[
        Literal["html", "md"],
        typer.Option("--format", help="One HTML page, or Markdown for a code host."),
    ] = "html",
    store: StoreOption = None,
) -> None:
    """Write what a sweep found as one page, tables and pictures beside it.

    Of several sweeps, a page that compares them, with each one's own report beside it. A report of
    one sweep is also kept with it; a comparison is kept nowhere but in its folder.

    Example: lyapsweep report demo --out reports/demo
    """
    if len(names) > 1:
        _compare(names, out, form, store)
        return
    from analysis.report import write_report
    from analysis.verdict import verdict
    from pipeline.store import StoreError, open_store

    (name,) = names
    kept = open_store(store)
    frame = _registered(kept, name)
    page = write_report(frame, out if out is not None else _REPORTS / name, form)
    try:
        kept.attach(name, page.parent, "report")
    except (StoreError, OSError) as error:
        typer.echo(f"warning: the report was not attached to the sweep ({error})", err=True)
    typer.echo(verdict(frame).headline)
    typer.echo(str(page))


def _compare(
    names: Sequence[str], out: Path | None, form: Literal["html", "md"], store: str | None
) -> None:
    from analysis.comparison.page import write_comparison
    from pipeline.store import open_store

    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise typer.BadParameter(
            f"each sweep is compared once, but {', '.join(twice)} is named more often; "
            "`lyapsweep report NAME` is the report of a single one"
        )
    kept = open_store(store)
    for name in names:
        kept.sweep(name)  # a name misspelled is found before the minutes of the others' reports
    folder = out if out is not None else _REPORTS / _joined(names)
    page, headline = write_comparison((_registered(kept, name) for name in names), folder, form)
    typer.echo(headline)
    typer.echo(str(page))


def _joined(names: Sequence[str]) -> str:
    """A name for the folder of a comparison; short, where the names are many."""
    whole = "-and-".join(names)
    return whole if len(whole) <= _LONGEST else f"{names[0]}-and-{len(names) - 1}-more"


def _registered(kept: "Store", name: str) -> "SweepFrame":
    """The sweep with what was planned for it, or the fault that keeps the plan from being read."""
    import dataclasses

    from analysis.frame import SweepFrame
    from analysis.preregistration import PreregistrationError, preregistration_of

    frame = SweepFrame.from_store(kept, name)
    try:
        registration: object = preregistration_of(kept, name)
    except PreregistrationError as error:
        registration = error
    return dataclasses.replace(frame, registration=registration)


def predict(
    name: NameArgument,
    at: Annotated[int, typer.Option("--at", min=0, help="Epoch by whose end trials were seen.")],
    predictor: Annotated[
        str | None,
        typer.Option(help="Name of a predictor, or the words of a variant.", show_default="ridge"),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="OTHER",
            help="Fit on this sweep's trials instead, or load this folder of a saved predictor.",
        ),
    ] = None,
    form: FormatOption = "table",
    save: Annotated[
        bool, typer.Option("--save", help="Keep the predictor with the sweep, as an MLflow model.")
    ] = False,
    store: StoreOption = None,
) -> None:
    """Foretell how trials end from what was seen by one epoch; nothing later enters.

    Trials still on their way are foretold by those that ended, and those that ended by the others.

    Example: lyapsweep predict demo --at 2 --format csv > foretold.csv
    """
    import json
    import tempfile

    from analysis import models
    from analysis import predict as predicting
    from analysis.frame import SweepFrame
    from pipeline.home import Home
    from pipeline.store import open_store

    kept = open_store(store)
    frame = SweepFrame.from_store(kept, name, Home.of(name))
    fitted = None
    if source is not None and (Path(source) / "MLmodel").is_file():
        if predictor is not None:
            raise typer.BadParameter("--predictor: the saved predictor of --from is fitted already")
        fitted = models.load(Path(source))
    elif source is not None:
        other = SweepFrame.from_store(kept, source)
        fitted = predicting.forecaster(other, at, predictor or predicting.DEFAULT)
    outlook = predicting.predict(frame, at, predictor or predicting.DEFAULT, fitted=fitted)
    states = kept.states(name) if frame.info.state == "running" else {}
    training = sum(s == "running" and n not in frame.trials.index for n, s in states.items())
    if form == "csv":
        typer.echo(outlook.table.to_csv(index=False), nl=False)
    elif form == "json":
        typer.echo(json.dumps(predicting.as_json(outlook), indent=1))
    else:
        typer.echo("\n".join(predicting.lines(outlook)))
    for note in outlook.notes if form == "csv" else ():
        typer.echo(note, err=True)
    if training:
        are = "trial is" if training == 1 else "trials are"
        typer.echo(f"{training} {are} in training of which nothing is on record here", err=True)
    if save:
        made = fitted or predicting.forecaster(frame, at, predictor or predicting.DEFAULT)
        with tempfile.TemporaryDirectory(prefix="lyapsweep-") as folder:
            path = Path(folder) / f"{made.name}-at-{made.epoch}-{made.digest[:8]}"
            models.save(made, path)
            kept.attach(name, path, f"predictors/{path.name}")
            typer.echo(f"saved with sweep {name}: predictors/{path.name}", err=True)


def preregister(
    name: NameArgument,
    plan: Annotated[
        Path | None,
        typer.Argument(help="YAML file with the plan.", show_default="what the report asks anyway"),
    ] = None,
    after_the_fact: Annotated[
        bool,
        typer.Option("--after-the-fact", help="Record a plan although the sweep has ended."),
    ] = False,
    store: StoreOption = None,
) -> None:
    """Fix what will be tested before the sweep ends, so that the report may call it confirmatory.

    A plan is fixed once. Keep the hash that is printed somewhere else than in the store.

    Example: lyapsweep preregister demo plan.yaml
    """
    from analysis.hypotheses import default_plan, read_plan
    from analysis.preregistration import register
    from pipeline.store import open_store

    kept = open_store(store)
    chosen = default_plan(kept.sweep(name)) if plan is None else read_plan(plan)
    made, is_new = register(kept, name, chosen, after_the_fact=after_the_fact)
    if not is_new:
        typer.echo(f"this plan was registered already, on {made.when}", err=True)
    for one in made.plan.primary:
        typer.echo(f"primary: {one.words}")
    late = ", after the fact" if made.is_after else ""
    typer.echo(f"{made.when}{late}: {made.num_ended} of {made.num_trials} trials had ended")
    typer.echo(f"sha256 {made.sha256}")
