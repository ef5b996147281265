"""Runs drivers that kill themselves where told, each in a fork of a process that has all imports.

One JSON line in: {conf, name, store, home, kill}, one JSON line out: {killed, state, error, ops}.
`kill` is null, {"call": "publish", "when": "before", "nth": 1}, or {"operation": 17}: before the
17th thing that lasts (rename, fsync, unlink, database commit).
"""

import contextlib
import importlib
import json
import os
import signal
import sqlite3
import sys
import traceback
from pathlib import Path

import optuna
import sqlalchemy
import torch
from mlflow.tracking import MlflowClient

from pipeline import catalog, config, creating, records, sampling, sweep
from pipeline.executors.inline import InlineExecutor
from pipeline.folder_store import FolderStore
from pipeline.home import Home
from pipeline.ledger import Ledger
from pipeline.mlflow_store import MlflowStore
from pipeline.store import NoSuchSweepError, open_store

STORES = (FolderStore, MlflowStore)
CALLS = {
    "create_sweep": [(s, "create_sweep") for s in STORES],
    "set_state": [(s, "set_state") for s in STORES],
    "ask": [(optuna.Study, "ask")],
    "suggest": [(sampling, "suggest")],
    "suggest_float": [(optuna.trial.Trial, "suggest_float")],
    "ask_ledger": [(Ledger, "ask")],
    "create_trial": [(optuna.storages.RDBStorage, "create_new_trial")],
    "attempt": [(Ledger, "note")],
    "begin": [(s, "begin_trial") for s in STORES],
    "submit": [(InlineExecutor, "submit")],
    "train": [(InlineExecutor, "poll")],
    "spool": [(records, "write")],
    "rename": [(os, "replace")],
    "publish": [(s, "publish") for s in STORES],
    "create_run": [(MlflowClient, "create_run")],
    "log_batch": [(MlflowClient, "log_batch")],
    "log_artifact": [(MlflowClient, "log_artifact")],
    "set_terminated": [(MlflowClient, "set_terminated")],
    "tell": [(Ledger, "tell")],
    "unlink": [(Path, "unlink")],
}


@sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
def _without_waiting_for_the_disk(connection, _):
    """Drivers are killed here, not the power: what the kernel has is safe, and faster."""
    if type(connection).__module__.startswith("sqlite3"):
        with contextlib.suppress(sqlite3.DatabaseError):  # Not a database: not ours to say.
            connection.execute("PRAGMA synchronous=OFF")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kill):
    """Patches what is to kill; returns the counter of operations."""
    counter = {"calls": 0, "operations": 0}
    if kill is None or "operation" in kill:
        last = -1 if kill is None else kill["operation"]

        def count(*_):
            counter["operations"] += 1
            if counter["operations"] == last:
                die()

        for owner, name in ((os, "replace"), (os, "fsync"), (Path, "unlink")):
            _before(owner, name, count)
        sqlalchemy.event.listen(sqlalchemy.Engine, "commit", count)
        return counter

    def count_call(*_):
        counter["calls"] += 1
        if counter["calls"] == kill["nth"]:
            die()

    for owner, name in CALLS[kill["call"]]:
        (_before if kill["when"] == "before" else _after)(owner, name, count_call)
    return counter


def _before(owner, name, act):
    genuine = getattr(owner, name)

    def inner(*args, **kwargs):
        act()
        return genuine(*args, **kwargs)

    setattr(owner, name, inner)


def _after(owner, name, act):
    genuine = getattr(owner, name)

    def inner(*args, **kwargs):
        found = genuine(*args, **kwargs)
        act()
        return found

    setattr(owner, name, inner)


def drive(job):
    """What `lyapsweep sweep` and `lyapsweep resume` do."""
    checked = config.check(job["conf"])
    store = open_store(job["store"])
    store.prepare()
    try:
        info = store.sweep(job["name"])
    except NoSuchSweepError:
        info = creating.create(checked, job["name"], store)
    again = creating.stored_config(info)
    home = Home(Path(job["home"]), job["name"])
    executor = InlineExecutor()
    outcome = sweep.Driver(again, info, store, home, executor).run()
    executor.close()
    return outcome.state


def child(job, channel):
    torch.set_num_threads(1)
    os.chdir(job["cwd"])
    counter = arm(job["kill"])
    before = set(sys.modules)
    answer = {"killed": False}
    try:
        answer["state"] = drive(job)
    except BaseException:  # noqa: BLE001 - whatever it is, the test shall see it
        answer["error"] = traceback.format_exc()
    answer["operations"] = counter["operations"]
    answer["modules"] = sorted(set(sys.modules) - before)
    os.write(channel, json.dumps(answer).encode())
    os._exit(0)


def serve():
    for kind, name in (("tasks", "planar"), ("networks", "mlp"), ("diagnostics", "gradient_norm")):
        catalog.load(kind, name)
    for line in sys.stdin:
        job = json.loads(line)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            child(job, writing)
        os.close(writing)
        with os.fdopen(reading, "rb") as channel:
            text = channel.read()
        _, status = os.waitpid(pid, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        answer = {"killed": True} if killed else json.loads(text)
        for module in answer.pop("modules", ()):
            # What a driver imports late need not be imported anew in every child.
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
