"""The commands `lyapsweep export`, `import`, `compact`. What is heavy is imported when they run."""

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from pipeline.terminal import size

StoreOption = Annotated[
    Optional[str],  # noqa: UP045 - typer reads this form on every version we admit
    typer.Option(help="Where sweeps are kept: folder:PATH or an MLflow tracking URI."),
]


def export(
    name: Annotated[str, typer.Argument(help="Name of a sweep.")],
    folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    store: StoreOption = None,
) -> None:
    """Copy a whole sweep into a folder: records, weights, plan and reports, with checksums.

    Of a sweep that is not done, what it has measured by now.

    Example: lyapsweep export demo exported/demo
    """
    from pipeline.store import open_store
    from pipeline.transfer import export_sweep

    parcel = export_sweep(open_store(store), name, folder, _show)
    typer.echo(
        f"{name}: {len(parcel.trials)} of {parcel.info.num_trials} trials and "
        f"{len(parcel.attached)} attached files, {size(parcel.num_bytes)}, in {folder}"
    )


def import_(
    folder: Annotated[Path, typer.Argument(help="What `lyapsweep export` wrote.")],
    store: StoreOption = None,
) -> None:
    """Take an exported sweep into a store, after checking all of it against its checksums.

    An import that broke off goes on when repeated. To train on where the sweep stopped, `resume`
    needs the folder in which it was started, too.

    Example: lyapsweep import exported/demo --store sqlite:///elsewhere.db
    """
    from pipeline.home import Home
    from pipeline.store import open_store
    from pipeline.transfer import check_export, check_free, import_sweep

    parcel = check_export(folder)
    opened = open_store(store)
    check_free(parcel, opened)
    opened.prepare()
    parcel, new = import_sweep(folder, opened, Home.of(parcel.info.name), _show)
    there = len(parcel.trials) - new
    typer.echo(
        f"{parcel.info.name}: {new} trials imported"
        + (f", {there} were there already" if there else "")
        + f"; report: lyapsweep report {parcel.info.name}"
    )


def compact(
    name: Annotated[str, typer.Argument(help="Name of a sweep.")], store: StoreOption = None
) -> None:
    """Put all records of a sweep into a few files beside its trials, for quick reading.

    Nothing is removed. Trials that end later are read from their own files until it is done again.

    Example: lyapsweep compact demo
    """
    from pipeline.compaction import compact as compacted
    from pipeline.store import open_store

    made = compacted(open_store(store), name, _show)
    typer.echo(
        f"{name}: {made.num_trials} trials in {made.num_files} files, {size(made.num_bytes)}"
    )


def _show(done: int, total: int) -> None:
    if sys.stderr.isatty():
        typer.echo(f"\r{done} of {total} trials ", err=True, nl=done == total)
