"""The command `lyapsweep`. Light at the top: help answers without torch, ray or mlflow.

Progress and errors go to standard error; what codes it ends with, see `pipeline.exits`.
"""

import atexit
import gc
import os
import sys
import time
from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from pipeline import data_cli
from pipeline.exits import FAILED, finish
from pipeline.terminal import print_table

if TYPE_CHECKING:
    pass

app = typer.Typer(
    name="lyapsweep",
    help="Train populations of networks, measure their Lyapunov spectra while they learn, "
    "and report what the spectra tell about performance.\n\n"
    "Example: lyapsweep sweep demo && lyapsweep list networks",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_cli.app, name="data")

StoreOption = Annotated[
    Optional[str],  # noqa: UP045 - typer reads this form on every version we admit
    typer.Option(
        "--store",
        metavar="URI",
        help="Where sweeps are kept: an MLflow tracking URI, or folder:PATH. "
        "[default: $LYAPSWEEP_STORE, $MLFLOW_TRACKING_URI or sqlite:///mlflow.db]",
    ),
]
ConfArgument = Annotated[
    str,
    typer.Argument(
        metavar="CONF",
        help="A YAML file, or the name of a conf we ship: demo, planar, digits, recall, resnet, "
        "charlm or charlm_small.",
    ),
]
SettingsArgument = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides: network.units=128"),
]
ExecutionArgument = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(metavar="[KEY=VALUE]...", help="Of `execution` alone: execution.workers=4"),
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of a sweep.")]
ExecutorOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--executor", metavar="process|ray|inline", help="Where to train. [default: of the conf]"
    ),
]
AddressOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--address", help="A running Ray cluster: auto, HOST:6379 or ray://HOST:10001."),
]


@app.command()
def sweep(
    conf: ConfArgument,
    settings: SettingsArgument = None,
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--name", help="Name of the sweep. [default: the conf's, with the time]"),
    ] = None,
    executor: ExecutorOption = None,
    address: AddressOption = None,
    store: StoreOption = None,
) -> None:
    """Run a sweep: sample, train, measure, record.

    Ctrl-C stops at the next epoch; `lyapsweep resume` goes on.

    Example: lyapsweep sweep demo network.units=128 trials=32 --name wide
    """
    from pipeline import conf_file, creating
    from pipeline.home import Home
    from pipeline.preflight import preflight
    from pipeline.running import drive, executor_kind, starting, with_executor
    from pipeline.sizing import settled
    from pipeline.store import check_name, open_store, store_uri

    path = conf_file.find(conf)
    chosen = check_name(name or f"{path.stem}-{time.strftime('%Y%m%d-%H%M%S')}")
    config = conf_file.load(path, with_executor(settings, executor))
    kind = executor_kind(config, address)
    preflight(config, executor=kind)
    # Before the workers start: what it measures they would disturb.
    config = settled(config)
    # Absolute from here on: while Ray starts, the working folder is another.
    uri, home = store_uri(store), Home.of(chosen)
    with starting(kind, config, address) as executor_ready:
        opened = open_store(uri)
        opened.prepare()
        home.create()
        creating.check_free(chosen, opened)
        # Before the sweep is made known: one that cannot start should not take the name.
        ready = executor_ready()
        drive(config, creating.create(config, chosen, opened), opened, home, ready)


@app.command()
def resume(
    name: NameArgument,
    settings: ExecutionArgument = None,
    executor: ExecutorOption = None,
    address: AddressOption = None,
    store: StoreOption = None,
) -> None:
    """Go on with a sweep that was interrupted, in whatever way. No trial is lost or run twice.

    Only settings of `execution` can be changed: workers, max_failed_share, …

    Example: lyapsweep resume demo-20260101-120000 execution.workers=4
    """
    from pipeline import conf_file
    from pipeline.creating import stored_config
    from pipeline.home import Home
    from pipeline.preflight import preflight
    from pipeline.running import begun, drive, executor_kind, starting, with_executor
    from pipeline.store import check_name, open_store

    opened = open_store(store)
    info = begun(opened, check_name(name), settings)
    config = conf_file.with_execution(stored_config(info), with_executor(settings, executor))
    kind = executor_kind(config, address)
    preflight(config, executor=kind)
    home = Home.of(name)
    with starting(kind, config, address) as executor_ready:
        opened.prepare()
        drive(config, info, opened, home, executor_ready())


@app.command()
def plan(
    conf: ConfArgument,
    settings: SettingsArgument = None,
    calibrate: Annotated[
        bool, typer.Option(help="Rehearse the sweep for some seconds to foretell its cost.")
    ] = True,
) -> None:
    """Show what a sweep would do: the space, the cohorts, epochs and cost. Nothing is kept.

    Example: lyapsweep plan demo trials=128
    """
    from pipeline import conf_file, planning

    config = conf_file.load(conf_file.find(conf), settings or ())
    for line in planning.describe(config, calibrate=calibrate):
        typer.echo(line)


@app.command()
def status(
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="[NAME]", help="One sweep in detail; without it, all of them."),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Show the sweeps in the store, or how far one of them is.

    Example: lyapsweep status demo-20260101-120000
    """
    from collections import Counter

    from pipeline.home import Home
    from pipeline.records import FINISHED
    from pipeline.store import check_name, open_store

    opened = open_store(store)
    infos = [opened.sweep(check_name(name))] if name else opened.sweeps()
    if not infos:
        typer.echo("no sweeps yet; `lyapsweep sweep demo` runs one")
        return
    rows = []
    for info in infos:
        counts = Counter(opened.states(info.name).values())
        done = sum(counts[s] for s in FINISHED)
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.created_ms / 1000))
        counted = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
        state = info.state
        if state == "running" and not Home.of(info.name).is_locked():
            # The driver died without a word, or runs on another machine.
            state = "no driver here"
        rows.append((info.name, state, f"{done}/{info.num_trials}", created, counted))
    print_table(("sweep", "state", "done", "created", "trials"), rows)
    if name:
        from pipeline.status import details

        for line in details(infos[0], opened, Home.of(name)):
            typer.echo(line)


@app.command()
def trial(
    name: NameArgument,
    number: Annotated[int, typer.Argument(metavar="NUMBER", min=0, help="Number of the trial.")],
    store: StoreOption = None,
) -> None:
    """Run one trial again, alone, and compare it with its stored records.

    Ends with code 1 where they differ by more than the precision allows.

    Example: lyapsweep trial demo-20260101-120000 7
    """
    from pipeline import compare
    from pipeline.creating import stored_config
    from pipeline.store import NoSuchSweepError, check_name, open_store

    opened = open_store(store)
    info = opened.sweep(check_name(name))
    config = stored_config(info)
    try:
        record = opened.record(name, number)
    except KeyError as error:
        raise NoSuchSweepError(str(error.args[0])) from None
    typer.echo(f"trial {number} of {name}, {record.header.state}: training it again, alone")
    tolerance = compare.TOLERANCE[record.header.params["trainer.dtype"]]
    found = list(compare.differences(record.table, compare.rerun(config, record)))
    print_table(
        ("quantity", "numbers", "largest difference", ""),
        [
            (d.quantity, str(d.values), f"{d.largest:.3g}", "" if d.largest <= tolerance else "!")
            for d in found
        ],
    )
    worst = max((d.largest for d in found), default=0.0)
    if worst > tolerance:
        typer.echo(f"differs: {worst:.3g} is more than {tolerance:g}", err=True)
        raise typer.Exit(FAILED)
    verdict = "identical" if worst == 0 else f"equal within {tolerance:g}"
    typer.echo(f"{verdict} ({sum(d.values for d in found)} numbers)")


@app.command(name="list")
def list_(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="tasks, networks, diagnostics, regularisers, sections, ranges, samplers, "
            "pruners, data, predictors, figures or studies.",
        ),
    ],
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="[NAME]", help="One of them: its settings and their defaults."),
    ] = None,
) -> None:
    """List what can be named in a conf, and what the report draws.

    Example: lyapsweep list networks lstm
    """
    from pipeline import catalog
    from pipeline.space import SAMPLERS, WORDS

    words = {"samplers": SAMPLERS, "ranges": WORDS}
    named = {"pruners": _list_pruners, "sections": _list_sections}
    if kind == "data":
        data_cli.list_()
        return
    if kind in words:
        print_table((kind.removesuffix("s"), "what it is"), list(words[kind].items()))
        return
    if kind in named:
        named[kind](name)
        return
    if kind not in catalog.kinds():
        known = sorted({*catalog.kinds(), *words, *named, "data"})
        raise typer.BadParameter(f"no kind {kind!r}; there are {', '.join(known)}")
    if name is not None:
        _print_settings(catalog.load(kind, name).Config)
        return
    entries = catalog.entries(kind).values()
    print_table((catalog.singular(kind), "what it is"), [(e.name, e.summary) for e in entries])


def _list_pruners(name: str | None) -> None:
    from pipeline import catalog, pruning

    if name is None:
        print_table(("pruner", "what it is"), list(pruning.summaries().items()))
        return
    if name not in pruning.names():
        known = ", ".join(pruning.names())
        raise catalog.UnknownNameError(f"no pruner {name!r}; there are {known}")
    if name != pruning.NONE:
        _print_settings(pruning.pruner_type(name).Config)


def _list_sections(name: str | None) -> None:
    from pipeline import catalog
    from pipeline.config import SETTINGS

    if name is None:
        rows = [(one, (config.__doc__ or "").splitlines()[0]) for one, config in SETTINGS.items()]
        print_table(("section", "what it is"), rows)
        return
    if name not in SETTINGS:
        raise catalog.UnknownNameError(f"no section {name!r}; there are {', '.join(SETTINGS)}")
    _print_settings(SETTINGS[name])


def _print_settings(config: Any) -> None:
    from pipeline.listing import settings_of

    print_table(("setting", "default", "what it may be"), settings_of(config))


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
    store: StoreOption = None,
) -> None:
    """Open the MLflow UI on the right store, on 127.0.0.1 only. Ctrl-C ends it.

    Example: lyapsweep ui --port 5001
    """
    import socket

    from pipeline.mlflow_place import is_server
    from pipeline.store import StoreError, hide_password, store_uri

    uri = store_uri(store)
    if is_server(uri):
        typer.echo(f"the store is served already: {hide_password(uri)}")
        return
    if uri.startswith("folder:"):
        raise StoreError(f"{uri} is a plain folder; the MLflow UI needs an MLflow store")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise StoreError(f"port {port} is taken; try --port {port + 1}") from None
    # One worker: several make every call five times slower (uvicorn#3149), and the jobs
    # MLflow starts beside its server are of no use here.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    typer.echo(f"MLflow on http://127.0.0.1:{port}", err=True)
    server = ["server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    options = ["--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-P", "-m", "mlflow", *server, *options])


@app.command(name="version")
def version_() -> None:
    """Print the version.

    Example: lyapsweep version
    """
    typer.echo(f"lyapsweep {version('lyapsweep')}")


def main() -> None:
    """Entry point of the console script: runs a command, turns faults into one line each."""
    _add_commands()
    # At the exit Python looks through all objects for cycles: half a second after torch, for
    # nothing.
    atexit.register(gc.freeze)
    command = typer.main.get_command(app)
    finish(lambda: command.main(standalone_mode=False))


def _add_commands() -> None:
    """Commands of other layers, by entry point: no upward import."""
    have = {c.name for c in app.registered_commands}
    for entry in sorted(entry_points(group="lyapsweep.commands"), key=lambda e: e.name):
        if entry.name not in have:
            app.command(name=entry.name)(entry.load())
