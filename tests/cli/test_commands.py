"""The commands as a user types them, in this process and as processes of their own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest
from rich.console import Console

from pipeline import config, exits, records, running
from pipeline.progress import LineView, render, summary
from pipeline.sweep import Progress

Run = Callable[..., Any]
COMMANDS = ["sweep", "resume", "plan", "status", "trial", "list", "ui", "report", "version"]
LYAPSWEEP = [sys.executable, "-P", "-c", "from pipeline.cli import main; main()"]


@pytest.mark.parametrize("command", [[], ["data"], *([c] for c in COMMANDS), ["data", "fetch"]])
def test_help_says_what_and_shows_an_example(run: Run, command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.code == 0
    assert "Usage:" in result.out
    assert "Example: lyapsweep" in result.out
    assert "\x1b[" not in result.out


def test_help_is_light(folder: Path) -> None:
    code = (
        "import sys\nfrom pipeline import cli\nsys.argv = ['lyapsweep', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'ray', 'mlflow', 'optuna', 'pandas', 'sklearn', 'matplotlib'}\n"
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("tasks", "char_text"),
        ("networks", "lstm"),
        ("diagnostics", "lyapunov_spectrum"),
        ("regularisers", "flossing"),
        ("samplers", "qmc"),
        ("sections", "trainer"),
        ("ranges", "log_int"),
        ("data", "war_and_peace"),
        ("predictors", "last_seen_loss"),
        ("figures", "spectra"),
    ],
)
def test_list(run: Run, kind: str, expected: str) -> None:
    result = run("list", kind)
    assert result.code == 0
    assert expected in [line.split("\t")[0] for line in result.out.splitlines()]


def test_list_settings_of_one(run: Run) -> None:
    result = run("list", "networks", "lstm")
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in result.out.splitlines()}
    assert rows["units"] == ["64", "whole number >= 1"]
    assert rows["init"][1] == "uniform | gaussian | orthogonal | glorot"
    assert run("list", "networks", "lstn").code == 2
    assert "learning_rate\t0.001\tnumber > 0 <= 1000" in run("list", "sections", "trainer").out
    assert run("list", "sections", "trainers").code == 2


def test_plan_keeps_nothing(run: Run, folder: Path) -> None:
    before = {p.name for p in folder.iterdir()}
    result = run("plan", "tiny.yaml", "network.layers={choice: [1, 2]}", "trials=10")
    assert result.code == 0
    assert "network.layers: choice of 1, 2" in result.out
    assert "trials    10, sampler qmc (not steered by results)" in result.out
    assert re.search(r"cohorts   4 \(2 of 3, 2 of 2 trials\)", result.out)
    assert re.search(r"cost      about .* here, measuring [\d.]+% of training time", result.out)
    assert {p.name for p in folder.iterdir()} == before


def test_from_sweep_to_report(run: Run, folder: Path) -> None:
    result = run("sweep", "tiny.yaml", "--name", "one", "execution.keep_weights=true")
    assert result.code == 0
    assert "one: 4/4 done" in result.out
    assert "lyapsweep report one" in result.out
    assert "lyapsweep ui" in result.out
    status = run("status")
    assert status.out.split("\t")[:3] == ["one", "complete", "4/4"]
    assert "best: val_loss" in run("status", "one").out
    trial = run("trial", "one", "2")
    assert trial.code == 0
    assert trial.out.splitlines()[-1].startswith(("identical", "equal within"))
    assert len(list(folder.glob("mlruns/**/trial-*.safetensors"))) == 4
    report = run("report", "one", "--out", "here")
    assert report.code == 0
    assert (folder / "here" / "index.html").is_file()
    assert list((folder / "here" / "tables").glob("*.parquet"))


def test_trial_notices_what_does_not_match(run: Run, folder: Path) -> None:
    store = f"folder:{folder}/kept"
    assert run("sweep", "tiny.yaml", "--name", "one", "--store", store).code == 0
    path = next((folder / "kept" / "one" / "trials").glob("*00001.parquet"))
    record = records.read(path)
    rows = record.table.to_pylist()
    index = next(i for i, r in enumerate(rows) if r["quantity"] == "lyapunov.spectrum")
    rows[index]["values"][0] += 1e-3
    table = type(record.table).from_pylist(rows, schema=records.SCHEMA)
    records.write(records.TrialRecord(record.header, table), path)
    result = run("trial", "one", "1", "--store", store)
    assert result.code == 1
    assert "differs" in result.err
    assert [line.split("\t")[0] for line in result.out.splitlines() if line.endswith("!")] == [
        "lyapunov.spectrum"
    ]


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*LYAPSWEEP, *words],
        cwd=folder,
        env={**os.environ, "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def once_everywhere(folder: Path, name: str, trials: int, points: int) -> None:
    """Every trial exactly once in Optuna, MLflow and Parquet; counted without our own code."""
    storage = f"sqlite:///{folder}/.lyapsweep/optuna.db"
    studies = [s for s in optuna.get_all_study_names(storage) if s.startswith(f"{name}-")]
    assert len(studies) == 1
    study = optuna.load_study(study_name=studies[0], storage=storage)
    assert [t.number for t in study.trials] == list(range(trials))
    assert {t.state.name for t in study.trials} == {"COMPLETE"}
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`lyapsweep.kind` = 'trial'")
    assert sorted(int(r.data.tags["lyapsweep.trial_number"]) for r in runs) == list(range(trials))
    assert {r.info.status for r in runs} == {"FINISHED"}
    for run in runs:
        assert len(client.get_metric_history(run.info.run_id, "val_loss")) == points
    files = sorted(p.name for p in folder.glob("mlruns/**/trial-*.parquet"))
    assert files == [f"trial-{n:05d}.parquet" for n in range(trials)]
    assert not list((folder / ".lyapsweep" / "sweeps" / name / "spool").iterdir())


def wait_for_line(process: subprocess.Popen[str], pattern: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if re.search(pattern, line):
            return
    pytest.fail(f"ended without a line like {pattern!r}")


TRIALS, EPOCHS = 4, 30
LONG = [
    f"trials={TRIALS}",
    f"trainer.epochs={EPOCHS}",
    "execution.cohort_size=2",
    f"measure.lyapunov_spectrum.at=[0, {EPOCHS}]",
    "measure.gradient_norm.at=[0]",
]


def test_interrupt_stops_at_the_epoch_and_resume_completes(run: Run, folder: Path) -> None:
    process = start(folder, "sweep", "tiny.yaml", "--name", "stopped", *LONG)
    wait_for_line(process, rf"epoch \d+/{EPOCHS}")
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "go on with: lyapsweep resume stopped" in out
    status = run("status", "stopped").out
    assert status.split("\t")[1] == "interrupted"
    assert "interrupted" in status.split("\t")[4]
    assert run("resume", "stopped").code == 0
    once_everywhere(folder, "stopped", TRIALS, EPOCHS + 1)


@pytest.mark.slow  # tests/cli/test_checkpoints.py kills one every time
@pytest.mark.parametrize("delay", [0.3, 1.5])
def test_killed_driver_and_resume(run: Run, folder: Path, delay: float) -> None:
    process = start(folder, "sweep", "tiny.yaml", "--name", "killed", *LONG)
    wait_for_line(process, r"running")
    time.sleep(delay)
    process.kill()
    process.wait()
    assert "no driver here" in run("status", "killed").out
    assert run("resume", "killed").code == 0
    once_everywhere(folder, "killed", TRIALS, EPOCHS + 1)


def test_resume_changes_how_and_not_what(run: Run, folder: Path) -> None:
    assert run("sweep", "tiny.yaml", "--name", "one").code == 0
    refused = run("resume", "one", "network.units=16")
    assert refused.code == 2
    assert "keeps its settings" in refused.err
    assert run("resume", "one", "execution.threads=2").code == 0


def descendants(pid: int) -> list[tuple[int, str]]:
    listing = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    table = [line.split(None, 2) for line in listing.splitlines()]
    found, wanted = [], {pid}
    for _ in range(6):
        for child, parent, args in table:
            if int(parent) in wanted and int(child) not in wanted:
                wanted.add(int(child))
                found.append((int(child), args))
    return found


@pytest.mark.parametrize(
    ("executor", "of_worker"),
    [
        ("process", "-P -c import json, sys; sys.path"),
        pytest.param("ray", "ray::_Actor", marks=pytest.mark.slow),
    ],
)
def test_killed_worker_needs_no_command(
    run: Run, folder: Path, executor: str, of_worker: str
) -> None:
    process = start(
        folder, "sweep", "tiny.yaml", "--name", "wounded", "--executor", executor, *LONG
    )
    wait_for_line(process, r"epoch (0-)?[1-9]")
    workers = [pid for pid, args in descendants(process.pid) if of_worker in args]
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    once_everywhere(folder, "wounded", TRIALS, EPOCHS + 1)
    left = [pid for pid in workers[1:] if Path(f"/proc/{pid}").exists()]
    assert not left, "workers must end with the sweep"


def test_auto_is_ray_where_an_address_is_given_and_processes_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kind(executor: str, address: str | None) -> str:
        tree = {
            "trials": 1,
            "task": {"name": "planar"},
            "network": {"name": "mlp"},
            "execution": {"executor": executor, "cohort_size": 1},
        }
        return running.executor_kind(config.check(tree), address)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert kind("auto", None) == "process"
    assert kind("auto", "ray://head:10001") == "ray"
    assert kind("ray", None) == "ray"
    assert kind("inline", None) == "inline"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert kind("auto", None) == "ray"
    assert kind("process", None) == "process"


def test_ui_serves_the_right_store(run: Run, folder: Path) -> None:
    assert run("sweep", "tiny.yaml", "--name", "shown").code == 0
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = start(folder, "ui", "--port", str(port))
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                request = urllib.request.Request(
                    f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name"
                    "?experiment_name=shown"
                )
                with urllib.request.urlopen(request, timeout=5) as answer:
                    found = json.load(answer)
                break
            except OSError:
                assert time.monotonic() < deadline, "the UI did not start in a minute"
                assert process.poll() is None
                time.sleep(0.3)
        assert found["experiment"]["name"] == "shown"
        listening = Path(f"/proc/{process.pid}/net/tcp").read_text()
        hexport = f"{port:04X}"
        addresses = re.findall(rf"(\w+):{hexport} 00000000:0000 0A", listening)
        assert addresses == ["0100007F"], "loopback only"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(total=10, epochs_each=5, complete=3, diverged=1, best=(1.25, 2))
    progress.running = {4: 2, 5: 3}
    view = LineView("sweep")
    view.show(progress)
    view.show(progress)
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert shown.startswith("sweep: 4/10 done, 2 running (epoch 2-3/5), 1 diverged")
    assert "best val_loss 1.2500 (trial 2)" in shown


def test_live_view_shows_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress(total=10, epochs_each=5, complete=3, failed=1, best=(1.25, 2))
    progress.running = dict.fromkeys(range(20), 2)
    progress.is_stopping, progress.last = True, "worker lost"
    console = Console(width=100, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(render("sweep", progress))
    text = " ".join(capture.get().split())
    assert "4/10 done, 20 running, 1 failed" in text
    assert "and 8 more" in text
    assert "Ctrl-C again" in text
    assert "worker lost" in text
    assert summary(progress).startswith("4/10 done, 20 running (epoch 2/5), 1 failed")


def test_exit_codes_are_those_of_the_convention() -> None:
    assert (exits.OK, exits.FAILED, exits.BAD_USAGE, exits.INTERRUPTED) == (0, 1, 2, 130)
