"""Who may know whom: import contracts, empty `__init__` files, light help, bare workers."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("tasks", "pipeline", "analysis")
CONTRACTS = [
    contract["name"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"][
        "importlinter"
    ]["contracts"]
]

# What help must not wait for: each takes tenths of seconds to import, some take seconds.
HEAVY = {"torch", "ray", "mlflow", "sklearn", "pandas", "pyarrow", "optuna", "matplotlib", "scipy"}

# Machines with a GPU may have torch, numpy and scipy and nothing else of ours.
MAY_BE_MISSING = (
    *("pydantic", "pandas", "pyarrow", "omegaconf", "optuna", "ray", "mlflow", "sqlalchemy"),
    *("sklearn", "seaborn", "matplotlib", "typer", "click", "rich", "pooch", "safetensors"),
    *("requests", "yaml"),
)
BARE = (
    *("tasks", "pipeline.dynamics", "pipeline.diagnostics", "pipeline.regularisers"),
    *("pipeline.train", "pipeline.worker"),
)

# Found nowhere, as if not installed: torch asks for some of them and goes on without.
WITHOUT_THE_REST = f"""
import importlib.machinery
import sys


class Bare(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] not in {MAY_BE_MISSING!r}:
            return super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Bare
"""


def python(code, *, folder=ROOT, path=None):
    """What a fresh process prints; its errors are the test's."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def lint_imports(folder):
    """Exit code and report of lint-imports on the packages in `folder`."""
    code = (
        "import sys; from importlinter import cli;"
        "sys.exit(cli.lint_imports(no_cache=True, no_logo=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_import_contracts_hold():
    code, report = lint_imports(ROOT)
    assert code == 0, report
    for name in CONTRACTS:
        assert re.search(rf"{re.escape(name)}\s+KEPT", report), report


def test_every_contract_would_notice_a_breach(tmp_path):
    """One forbidden import for each contract, in a copy."""
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    breaches = {
        "analysis > pipeline > tasks": ("tasks/upward.py", "import pipeline.plan"),
        "tasks stand alone": ("tasks/heavy.py", "import pandas"),
        "pipeline.dynamics is mathematics": ("pipeline/dynamics/nosy.py", "import tasks.base"),
        "analysis reads": ("analysis/busy.py", "import pipeline.train"),
        "workers know no store": ("pipeline/diagnostics/nosy.py", "import mlflow"),
    }
    for path, line in breaches.values():
        (tmp_path / path).write_text(f"{line}\n")
    code, report = lint_imports(tmp_path)
    assert code != 0
    for name in CONTRACTS:
        assert any(name.startswith(start) for start in breaches), f"no breach tried for {name!r}"
        assert re.search(rf"{re.escape(name)}\s+BROKEN", report), report


@pytest.mark.parametrize("package", PACKAGES)
def test_init_files_hold_a_docstring_and_nothing_else(package):
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert folders
    for folder in folders:
        tree = ast.parse((folder / "__init__.py").read_text("utf-8"))
        assert ast.get_docstring(tree), f"{folder}/__init__.py has no docstring"
        assert len(tree.body) == 1, f"{folder}/__init__.py holds more than a docstring"


def test_help_of_every_command_is_light_and_shows_an_example():
    code = f"""
import contextlib, io, json, sys
import typer
from pipeline import cli

def commands(command, path):
    yield path
    for name, child in getattr(command, "commands", {{}}).items():
        yield from commands(child, [*path, name])

def help_of(path):
    sys.argv = ["lyapsweep", *path, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            cli.main()
        except SystemExit as done:
            assert done.code in (0, None), (path, done.code)
    return out.getvalue()

help_of([])  # which also adds the commands of other layers
found = {{}}
for path in commands(typer.main.get_command(cli.app), []):
    text = help_of(path)
    loaded = sorted({HEAVY!r} & set(sys.modules))
    found[" ".join(path)] = [loaded, text]
print(json.dumps(found))
"""
    found = json.loads(python(code))
    expected = {"", "sweep", "plan", "resume", "status", "trial", "list", "data", "ui", "report"}
    assert expected | {"data list", "data fetch", "data verify"} <= set(found)
    for command, (loaded, text) in found.items():
        assert not loaded, f"`lyapsweep {command} --help` imports {', '.join(loaded)}"
        assert "Example" in text, f"`lyapsweep {command} --help` shows no example:\n{text}"


def test_what_a_worker_needs_imports_with_torch_numpy_and_scipy_alone():
    code = f"""{WITHOUT_THE_REST}
import importlib
import pkgutil

for name in {BARE!r}:
    module = importlib.import_module(name)
    print(name)
    if hasattr(module, "__path__"):
        for found in pkgutil.walk_packages(module.__path__, name + "."):
            importlib.import_module(found.name)
            print(found.name)
"""
    imported = set(python(code).split())
    assert {"tasks.networks.lstm", "pipeline.dynamics.spectrum", "pipeline.worker"} <= imported


def test_the_blocker_blocks():
    """Otherwise the test above would pass whatever was imported."""
    code = f"{WITHOUT_THE_REST}\ntry:\n import pipeline.config\nexcept ImportError as e: print(e)"
    assert re.fullmatch(r"No module named '(yaml|omegaconf|pydantic)'\n", python(code))


@pytest.mark.parametrize("network", ["lstm", "mlp"])
def test_a_worker_trains_and_measures_with_torch_numpy_and_scipy_alone(network):
    setting = {
        "lstm": (
            "char_text",
            "text='pydoc', characters=4000, batch_size=8, seq_len=16",
            "units=4",
            "lyapunov_spectrum",
            "k=2, sequences=2, steps=8, warmup=2",
        ),
        "mlp": ("planar", "points=100", "width=4", "ftle", "probes=8"),
    }
    task, task_settings, network_settings, diagnostic, diagnostic_settings = setting[network]
    code = f"""{WITHOUT_THE_REST}
from pipeline import catalog
from pipeline.optim import Trainer
from pipeline.plan import Choice, Cohort, TrialSpec
from pipeline.worker import Worker

def choice(kind, name, **settings):
    return Choice(name, catalog.load(kind, name).Config(**settings))

spec = TrialSpec(
    number=0,
    seed=1,
    task=choice("tasks", {task!r}, {task_settings}),
    network=choice("networks", {network!r}, {network_settings}),
    trainer=Trainer(epochs=1, learning_rate=1e-3),
)
measure = (choice("diagnostics", {diagnostic!r}, {diagnostic_settings}),)
worker = Worker()
rung = worker.start(Cohort(sweep_seed=1, trials=(spec,), measure=measure))
print(rung.epoch, *sorted(row.quantity for row in rung.rows[0]))
rung = worker.advance()
print(rung.epoch, rung.is_last, rung.val_loss[0])
"""
    before, after = python(code).splitlines()
    assert diagnostic.split("_")[0] in before
    assert "val_loss" in before.split()
    epoch, is_last, loss = after.split()
    assert (epoch, is_last) == ("1", "True")
    assert 0 < float(loss) < 10
