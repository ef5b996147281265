"""The command `lyapsweep`. Light at the top: help answers without torch, ray or mlflow.

Exit codes: 0 done; 2 bad usage or configuration, nothing was started; 1 something failed;
130 interrupted, `lyapsweep resume` goes on. Progress and errors go to standard error.
"""

import atexit
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from pipeline.config import SweepConfig
    from pipeline.executors.base import Executor
    from pipeline.store import Store, SweepInfo
    from pipeline.sweep import Outcome

# typer brings its own copy of click; this is the base of what it raises for bad usage.
_ClickException: type[Exception] = typer.BadParameter.__mro__[2]

OK, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130

# Faults of what the user asked for, by class name so that nothing heavy is imported for them.
_BAD_USAGE = {
    "ConfigError",
    "UnknownNameError",
    "UnsuitableError",
    "MissingDataError",
    "CorruptDataError",
    "TableError",
    "NameInUseError",
    "NoSuchSweepError",
    "BadNameError",
}
_OURS = ("pipeline.", "tasks.", "analysis.")

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
data_app = typer.Typer(
    help="Named data sets: what there is, fetch, verify.\n\nExample: lyapsweep data fetch mnist",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")

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
    str, typer.Argument(metavar="CONF", help="A YAML file, or the name of a conf we ship: demo.")
]
SettingsArgument = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides: network.units=128"),
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
    typer.Option("--address", help="A running Ray cluster: auto or ray://host:10001."),
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
    from pipeline import config as configs
    from pipeline import sweep as sweeps
    from pipeline.home import Home
    from pipeline.sizing import settled
    from pipeline.store import check_name, open_store, store_uri

    path = configs.find(conf)
    chosen = check_name(name or f"{path.stem}-{time.strftime('%Y%m%d-%H%M%S')}")
    config = configs.load(path, _with_executor(settings, executor))
    kind = _executor_kind(config, address)
    sweeps.preflight(config, executor=kind)
    # Before the workers start: what it measures they would disturb.
    config = settled(config)
    # Absolute from here on: while Ray starts, the working folder is another.
    uri, home = store_uri(store), Home.of(chosen)
    with _starting(kind, config, address) as executor_ready:
        opened = open_store(uri)
        opened.prepare()
        home.create()
        sweeps.check_free(chosen, opened)
        # Before the sweep is made known: one that cannot start should not take the name.
        ready = executor_ready()
        _drive(config, sweeps.create(config, chosen, opened), opened, home, ready)


@app.command()
def resume(
    name: NameArgument,
    settings: SettingsArgument = None,
    executor: ExecutorOption = None,
    address: AddressOption = None,
    store: StoreOption = None,
) -> None:
    """Go on with a sweep that was interrupted, in whatever way. No trial is lost or run twice.

    Only settings of `execution` can be changed: workers, max_failed_share, …

    Example: lyapsweep resume demo-20260101-120000 execution.workers=4
    """
    from pipeline import config as configs
    from pipeline import sweep as sweeps
    from pipeline.home import Home
    from pipeline.store import check_name, open_store

    opened = open_store(store)
    info = opened.sweep(check_name(name))
    config = configs.with_execution(sweeps.stored_config(info), _with_executor(settings, executor))
    kind = _executor_kind(config, address)
    sweeps.preflight(config, executor=kind)
    home = Home.of(name)
    with _starting(kind, config, address) as executor_ready:
        opened.prepare()
        _drive(config, info, opened, home, executor_ready())


@app.command()
def plan(
    conf: ConfArgument,
    settings: SettingsArgument = None,
    calibrate: Annotated[
        bool, typer.Option(help="Time a few updates of each shape to estimate the cost.")
    ] = True,
) -> None:
    """Show what a sweep would do: the space, the cohorts, epochs and cost. Nothing is kept.

    Example: lyapsweep plan demo trials=128
    """
    from pipeline import config as configs
    from pipeline import planning

    config = configs.load(configs.find(conf), settings or ())
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
    from pipeline.store import check_name, open_store

    opened = open_store(store)
    infos = [opened.sweep(check_name(name))] if name else opened.sweeps()
    if not infos:
        typer.echo("no sweeps yet; `lyapsweep sweep demo` runs one")
        return
    rows = []
    for info in infos:
        counts = Counter(opened.states(info.name).values())
        done = sum(counts[s] for s in ("complete", "diverged", "pruned", "failed"))
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.created_ms / 1000))
        counted = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
        state = info.state
        if state == "running" and not Home.of(info.name).is_locked():
            # The driver died without a word, or runs on another machine.
            state = "no driver here"
        rows.append((info.name, state, f"{done}/{info.num_trials}", created, counted))
    _table(("sweep", "state", "done", "created", "trials"), rows)
    if name:
        _status_details(infos[0], opened, Home.of(name))


def _status_details(info: "SweepInfo", store: "Store", home: Any) -> None:
    from pipeline.accounting import epochs_of
    from pipeline.progress import epochs

    headers = [record.header for record in store.records(info.name)]
    counted = epochs_of(headers, home)
    if counted.planned:
        typer.echo(f"trained: {epochs(counted.spent, counted.planned, counted.again)}")
    finished = [
        (h.value, h.trial) for h in headers if h.state == "complete" and h.value is not None
    ]
    if finished:
        loss, number = min(finished)
        typer.echo(f"best: val_loss {loss:.5f} (trial {number})")
    waiting = len(list(home.spool.glob("trial-*.parquet"))) if home.spool.is_dir() else 0
    if waiting:
        typer.echo(f"waiting on disk to be published: {waiting} (lyapsweep resume {info.name})")
    if info.state != "complete" and not home.is_locked():
        typer.echo(f"go on with: lyapsweep resume {info.name}")


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
    from pipeline import sweep as sweeps
    from pipeline.store import NoSuchSweepError, check_name, open_store

    opened = open_store(store)
    info = opened.sweep(check_name(name))
    config = sweeps.stored_config(info)
    try:
        record = opened.record(name, number)
    except KeyError as error:
        raise NoSuchSweepError(str(error.args[0])) from None
    typer.echo(f"trial {number} of {name}, {record.header.state}: training it again, alone")
    tolerance = compare.TOLERANCE[record.header.params["trainer.dtype"]]
    found = list(compare.differences(record.table, compare.rerun(config, record)))
    _table(
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
            help="tasks, networks, diagnostics, samplers, pruners, data, predictors or figures.",
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
    from pipeline.space import SAMPLERS

    if kind == "data":
        data_list()
        return
    if kind == "samplers":
        _table(("sampler", "what it is"), list(SAMPLERS.items()))
        return
    if kind == "pruners":
        _list_pruners(name)
        return
    if kind not in catalog.kinds():
        known = sorted({*catalog.kinds(), "samplers", "pruners", "data"})
        raise typer.BadParameter(f"no kind {kind!r}; there are {', '.join(known)}")
    if name is not None:
        from pipeline.planning import settings_of

        _table(("setting", "default", "what it may be"), settings_of(catalog.load(kind, name)))
        return
    entries = catalog.entries(kind).values()
    _table((kind.removesuffix("s"), "what it is"), [(e.name, e.summary) for e in entries])


def _list_pruners(name: str | None) -> None:
    from pipeline import catalog, pruning

    if name is None:
        _table(("pruner", "what it is"), list(pruning.summaries().items()))
        return
    if name not in pruning.names():
        known = ", ".join(pruning.names())
        raise catalog.UnknownNameError(f"no pruner {name!r}; there are {known}")
    if name != pruning.NONE:
        from pipeline.planning import settings_of

        rows = settings_of(pruning.pruner_type(name))
        _table(("setting", "default", "what it may be"), rows)


@data_app.command(name="list")
def data_list() -> None:
    """List the data sets, where they come from, their terms, and whether they are here.

    Example: lyapsweep data list
    """
    from pipeline import fetch

    rows = [(o.name, o.state, _size(o.size), o.summary, o.terms) for o in fetch.overview()]
    _table(("data set", "state", "size", "what it is", "terms"), rows)


@data_app.command(name="fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(metavar="SET", help="Name of a data set.")],
    folder: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--folder", help="Where to. [default: $LYAPSWEEP_DATA or the user's cache]"),
    ] = None,
) -> None:
    """Download a data set: resumed if interrupted, checked against its sha256.

    Example: lyapsweep data fetch war_and_peace
    """
    from pipeline import fetch

    def report(file: str, here: int, size: int) -> None:
        if sys.stderr.isatty():
            typer.echo(f"\r{file}: {_size(here)} of {_size(size)}   ", err=True, nl=False)

    paths = fetch.fetch(name, folder=folder, progress=report)
    if sys.stderr.isatty():
        typer.echo("", err=True)
    for path in paths:
        typer.echo(path)


@data_app.command(name="verify")
def data_verify(
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
    _table(("file", "", "result"), [(c.file, "ok" if c.ok else "!", c.message) for c in checks])
    if not all(c.ok for c in checks):
        raise typer.Exit(FAILED)


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
    store: StoreOption = None,
) -> None:
    """Open the MLflow UI on the right store, on 127.0.0.1 only. Ctrl-C ends it.

    Example: lyapsweep ui --port 5001
    """
    import socket

    from pipeline.store import StoreError, store_uri

    uri = store_uri(store)
    if uri.startswith(("http://", "https://")):
        typer.echo(f"the store is served already: {uri}")
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
    try:
        code = command.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else OK)
    except typer.Abort:
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except _ClickException as error:
        error.show()  # type: ignore[attr-defined]
        sys.exit(BAD_USAGE)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        for line in _message(error).splitlines():
            typer.echo(f"lyapsweep: {line}", err=True)
        sys.exit(code)


def _exit_code(error: Exception) -> int | None:
    """The code for an error of ours or of the system; None for what can only be a bug."""
    kind = type(error)
    if kind.__name__ in _BAD_USAGE:
        return BAD_USAGE
    if kind.__module__.startswith(_OURS) or isinstance(error, OSError):
        return FAILED
    return None


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or ''}: {error.strerror}".lstrip(": ")
    return str(error)


def _add_commands() -> None:
    """Commands of other layers, by entry point: no upward import."""
    have = {c.name for c in app.registered_commands}
    for entry in sorted(entry_points(group="lyapsweep.commands"), key=lambda e: e.name):
        if entry.name not in have:
            app.command(name=entry.name)(entry.load())


def _with_executor(settings: list[str] | None, executor: str | None) -> list[str]:
    found = list(settings or ())
    return [*found, f"execution.executor={executor}"] if executor else found


def _executor_kind(config: "SweepConfig", address: str | None) -> str:
    """process, ray or inline: what `auto` means here."""
    asked = config.execution.executor
    if address is not None and asked not in ("auto", "ray"):
        raise typer.BadParameter(f"--address goes with --executor ray, not {asked}")
    if asked != "auto":
        return asked
    return "ray" if address or os.environ.get("RAY_ADDRESS") else "process"


def _drive(
    config: "SweepConfig", info: "SweepInfo", store: "Store", home: Any, executor: "Executor"
) -> None:
    """Runs a driver to its end under Ctrl-C, and says what to do next."""
    from pipeline.progress import duration, epochs, summary, view_for
    from pipeline.sweep import Driver

    started = time.monotonic()
    try:
        with view_for(info.name) as view:
            driver = Driver(config, info, store, home, executor, view.show)
            with _stopping_on_interrupt(driver):
                outcome = driver.run()
    except BaseException:
        typer.echo(f"go on with: lyapsweep resume {info.name}")
        raise
    took = duration(time.monotonic() - started)
    done = outcome.progress
    typer.echo(f"{info.name}: {summary(done)}, in {took}")
    typer.echo(f"trained: {epochs(done.epochs_spent, done.epochs_planned, done.epochs_again)}")
    _say_next(outcome, info.name)


def _say_next(outcome: "Outcome", name: str) -> None:
    if outcome.state == "complete":
        typer.echo(f"report: lyapsweep report {name}")
        typer.echo("browse: lyapsweep ui")
    elif outcome.state == "failed":
        # Failed trials are not tried again, so the same share would stop it at once.
        typer.echo(f"go on all the same: lyapsweep resume {name} execution.max_failed_share=1")
        typer.echo(f"lyapsweep: {outcome.reason}", err=True)
        raise typer.Exit(FAILED)
    else:
        typer.echo(f"go on with: lyapsweep resume {name}")
        raise typer.Exit(INTERRUPTED)


@contextmanager
def _starting(
    kind: str, config: "SweepConfig", address: str | None
) -> "Iterator[Callable[[], Executor]]":
    """Starts an executor in the background; calling what this yields waits for it."""
    with ThreadPoolExecutor(1) as background:
        starting = background.submit(_executor, kind, config, address)
        try:
            yield starting.result
        finally:
            with suppress(Exception):  # One that did not start needs no end; why is known.
                starting.result().close()


def _executor(kind: str, config: "SweepConfig", address: str | None) -> "Executor":
    if kind == "inline":
        from pipeline.executors.inline import InlineExecutor

        return InlineExecutor()
    from pipeline.sweep import typical_cohort

    execution = config.execution
    if kind == "process":
        from pipeline.executors.process import ProcessExecutor

        return ProcessExecutor(
            workers=execution.workers,
            threads=execution.num_threads,
            device=execution.device,
            warm=typical_cohort(config),
        )
    from pipeline.executors.ray import RayExecutor

    return RayExecutor(
        workers=execution.workers,
        threads=execution.num_threads,
        address=address or os.environ.get("RAY_ADDRESS"),
        gpus=1.0 if execution.device.startswith("cuda") else 0.0,
        warm=typical_cohort(config),
    )


@contextmanager
def _stopping_on_interrupt(driver: Any) -> Iterator[None]:
    """First Ctrl-C (or TERM): stop at the next epoch. Second: at once."""
    asked = False

    def handle(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        driver.request_stop()
        if not sys.stderr.isatty():
            typer.echo("stopping at the next epoch; again to stop at once", err=True)

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns on a terminal as wide as it is; tab-separated, without a header, in a pipe."""
    if not sys.stdout.isatty():
        for row in rows:
            typer.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _size(num_bytes: int) -> str:
    if num_bytes < 1024:
        return f"{num_bytes} B"
    if num_bytes < 1024**2:
        return f"{num_bytes / 1024:.0f} KiB"
    return f"{num_bytes / 1024**2:.1f} MiB"
