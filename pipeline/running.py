"""A sweep run from a terminal: on which executor, until its end or Ctrl-C, and what to do then."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import typer

from pipeline.exits import FAILED, INTERRUPTED

if TYPE_CHECKING:
    from pipeline.accounting import Progress
    from pipeline.config import SweepConfig
    from pipeline.executors.base import Executor
    from pipeline.home import Home
    from pipeline.store import Store, SweepInfo
    from pipeline.sweep import Driver, Outcome


def with_executor(settings: list[str] | None, executor: str | None) -> list[str]:
    """The overrides, `--executor` among them."""
    found = list(settings or ())
    return [*found, f"execution.executor={executor}"] if executor else found


def executor_kind(config: "SweepConfig", address: str | None) -> str:
    """process, ray or inline: what `auto` means here."""
    asked = config.execution.executor
    if address is not None and asked not in ("auto", "ray"):
        raise typer.BadParameter(f"--address goes with --executor ray, not {asked}")
    if asked != "auto":
        return asked
    return "ray" if address or os.environ.get("RAY_ADDRESS") else "process"


def begun(store: "Store", name: str, settings: list[str] | None) -> "SweepInfo":
    """A sweep that was begun. A server that is not there yet is waited for.

    After a power cut everything starts at the same time. Raises NoSuchSweepError, StoreError;
    StoreAwayError after `execution.patience` seconds.
    """
    from pipeline.config import Execution
    from pipeline.mlflow_once import asked_once
    from pipeline.retrying import Retry
    from pipeline.store import StoreAwayError

    patience, retry = Execution().patience, Retry()
    for setting in settings or ():
        # Known only once there is a sweep; what is no number is refused then.
        if setting.startswith("execution.patience="):
            with suppress(ValueError):
                patience = float(setting.partition("=")[2])
    while True:
        try:
            with asked_once():
                return store.sweep(name)
        except StoreAwayError as error:
            retry.failed()
            if retry.seconds + retry.wait > patience:
                raise
            if retry.num == 1:
                typer.echo(f"{error}; asking again for {patience:.0f} s", err=True)
            time.sleep(retry.wait)


def drive(
    config: "SweepConfig", info: "SweepInfo", store: "Store", home: "Home", executor: "Executor"
) -> None:
    """Runs a driver to its end under Ctrl-C, and says what to do next."""
    from pipeline.metrics import served
    from pipeline.progress import duration, epochs, summary, view_for
    from pipeline.sweep import Driver

    started = time.monotonic()
    try:
        port = config.execution.metrics_port
        with view_for(info.name) as view, served(port, info.name, home) as tell:

            def listen(progress: "Progress") -> None:
                tell(progress)
                view.show(progress)

            driver = Driver(config, info, store, home, executor, listen)
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
def starting(
    kind: str, config: "SweepConfig", address: str | None
) -> "Iterator[Callable[[], Executor]]":
    """Starts an executor in the background; calling what this yields waits for it."""
    with ThreadPoolExecutor(1) as background:
        submitted = background.submit(_executor, kind, config, address)
        try:
            yield submitted.result
        finally:
            with suppress(Exception):  # One that did not start needs no end; why is known.
                submitted.result().close()


def _executor(kind: str, config: "SweepConfig", address: str | None) -> "Executor":
    if kind == "inline":
        from pipeline.executors.inline import InlineExecutor

        return InlineExecutor()
    from pipeline.preflight import typical_cohort

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
        gpus=execution.gpus or (1.0 if execution.device.startswith("cuda") else 0.0),
        warm=typical_cohort(config),
    )


@contextmanager
def _stopping_on_interrupt(driver: "Driver") -> Iterator[None]:
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
