"""Every kind of bad input: one clear line, exit code 2 or 1, nothing left half-written."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import records

Run = Callable[..., Any]


# name: (arguments after `sweep tiny.yaml`, words the one line must have)
CONF = {
    "unknown key": (["network.unit=8"], ["network.unit", "unknown key", "did you mean 'units'"]),
    "unknown section": (["netwrok.units=8"], ["netwrok", "did you mean 'network'"]),
    "wrong type": (["network.units=many"], ["network.units", "whole number", '"many"']),
    "fraction for a count": (["trials=2.5"], ["trials", "whole number", "2.5"]),
    "out of bounds": (["network.units=0"], ["network.units", "at least 1", "got 0"]),
    "reversed range": (
        ["trainer.learning_rate={log_uniform: [1e-1, 1e-3]}"],
        ["trainer.learning_rate", "low end must not exceed the high end"],
    ),
    "log range from zero": (
        ["trainer.learning_rate={log_uniform: [0, 1]}"],
        ["trainer.learning_rate", "above 0"],
    ),
    "bad high end of a range": (
        ["network.dropout={uniform: [0, 1.5]}"],
        ["network.dropout", "below 1", "1.5"],
    ),
    "empty choice": (["network.units={choice: []}"], ["network.units", "at least one value"]),
    "bad member of a choice": (
        ["network.units={choice: [8, -1]}"],
        ["network.units", "at least 1", "-1"],
    ),
    "range where none may stand": (
        ["execution.threads={choice: [1, 2]}"],
        ["execution.threads", "task, network and trainer"],
    ),
    "unknown task": (["task.name=char_tex"], ["task.name", "no task", "char_text"]),
    "unknown network": (["network.name=lstn"], ["network.name", "no network", "lstm"]),
    "unknown measurement": (["measure.ftl={}"], ["measure.ftl", "no diagnostic", "ftle"]),
    "unknown sampler": (["sampler.name=sobol"], ["sampler.name", "'qmc'", '"sobol"']),
    "grid without points": (
        ["sampler.name=grid", "trainer.learning_rate=0.01", "network.dropout=0"],
        ["network.init_scale", "a grid needs `num`"],
    ),
    "no trials": (["trials=0"], ["trials", "from 1", "got 0"]),
    "measured after the end": (
        ["measure.gradient_norm.at=[0, 9]"],
        ["measure.gradient_norm.at", "epoch 9 is after the last epoch, 2"],
    ),
    "measurement that does not fit": (["measure.ftle={}"], ["ftle", "feed-forward", "LSTM"]),
    "more exponents than state": (
        ["measure.lyapunov_spectrum.k=17"],
        ["k must be at most 16", "got 17"],
    ),
    "probe longer than validation": (
        ["measure.lyapunov_spectrum.steps=5000"],
        ["steps of a probe must be at most", "5003"],
    ),
    "network that does not fit": (
        ["network={name: mlp}", "measure={}"],
        ["network mlp takes vector", "char_text gives tokens"],
    ),
    "momentum for adam": (["trainer.momentum=0.9"], ["trainer", "momentum is of sgd"]),
    "text too short": (["task.batch_size=4000"], ["4000"]),
    "missing text": (["task.text=nowhere.txt"], ["nowhere.txt"]),
    "missing data set": (
        ["task.text=war_and_peace"],
        ["war_and_peace", "lyapsweep data fetch war_and_peace"],
    ),
    "override without a value": (["network.units"], ["network.units", "key=value"]),
    "override that is no YAML": (["network={"], ["network={", "not valid YAML"]),
    "epochs that differ": (
        ["trainer.epochs={choice: [1, 2]}"],
        ["trainer.epochs", "must be one value"],
    ),
    "no such device": (["execution.device=banana"], ["execution.device", "'banana'"]),
    "device that is not here": (["execution.device=cuda:63"], ["torch sees", "CUDA devices"]),
    "device number under ray": (
        ["execution.device=cuda:1", "execution.executor=ray"],
        ["every worker its own GPU", "'cuda:1'"],
    ),
    "unknown executor": (["execution.executor=dask"], ["execution.executor", "'ray'"]),
}

FILES = {
    "not YAML": (b"seed: [1\n", ["line 2", "not valid YAML"]),
    "a list": (b"- 1\n- 2\n", ["must be a mapping"]),
    "empty": (b"", ["task", "missing"]),
    "not text": (b"\xff\xfe\x00\x01", ["not UTF-8"]),
    "a key twice": (b"seed: 3\nseed: 4\n", ["not valid YAML", "seed"]),
}


def only_line(text: str) -> str:
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


def tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.mark.parametrize("kind", CONF)
def test_bad_conf_is_one_line_and_leaves_nothing(kind: str, run: Run, folder: Path) -> None:
    settings, words = CONF[kind]
    before = tree(folder)
    result = run("sweep", "tiny.yaml", *settings)
    assert result.code == 2
    line = only_line(result.err)
    assert line.startswith("lyapsweep: ")
    for word in words:
        assert word in line
    assert tree(folder) == before


@pytest.mark.parametrize("kind", FILES)
def test_bad_file_is_one_line_and_leaves_nothing(kind: str, run: Run, folder: Path) -> None:
    content, words = FILES[kind]
    (folder / "bad.yaml").write_bytes(content)
    before = tree(folder)
    result = run("sweep", "bad.yaml")
    assert result.code == 2
    line = result.err.strip().splitlines()[0]
    for word in ["bad.yaml", *words]:
        assert word in result.err
    assert "Traceback" not in line
    assert tree(folder) == before


USAGE = {
    "no such conf": (["sweep", "nowhere.yaml"], ["nowhere.yaml", "no such file", "demo"]),
    "bad name": (["sweep", "tiny.yaml", "--name", "../up"], ["'../up'", "letters, digits"]),
    "no such sweep, resume": (["resume", "ghost"], ["no sweep 'ghost'", "none"]),
    "no such sweep, status": (["status", "ghost"], ["no sweep 'ghost'"]),
    "no such sweep, report": (["report", "ghost"], ["no sweep 'ghost'"]),
    "no such sweep, trial": (["trial", "ghost", "0"], ["no sweep 'ghost'"]),
    "no such kind": (["list", "optimisers"], ["no kind 'optimisers'", "networks"]),
    "no such data set": (["data", "fetch", "cifar"], ["cifar", "mnist"]),
    "no such command": (["swep"], ["swep"]),
    "address without ray": (
        ["sweep", "tiny.yaml", "--address", "auto"],
        ["--address goes with --executor ray"],
    ),
}


@pytest.mark.parametrize("kind", USAGE)
def test_bad_usage(kind: str, run: Run, folder: Path) -> None:
    arguments, words = USAGE[kind]
    result = run(*arguments)
    assert result.code == 2
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err
    assert not list(folder.rglob("*.tmp"))
    assert {p.name for p in folder.iterdir()} == {"text.txt", "tiny.yaml"}


@pytest.fixture
def sweep(run: Run) -> str:
    """A finished sweep of four trials."""
    assert run("sweep", "tiny.yaml", "--name", "done").code == 0
    return "done"


def test_name_in_use(run: Run, sweep: str, folder: Path) -> None:
    before = tree(folder)
    result = run("sweep", "tiny.yaml", "--name", sweep)
    assert result.code == 2
    assert "a sweep named 'done' exists already" in only_line(result.err)
    assert tree(folder) == before


def test_no_such_trial(run: Run, sweep: str) -> None:
    result = run("trial", sweep, "99")
    assert result.code == 2
    assert "no finished trial 99" in only_line(result.err)


def stored_trial(folder: Path) -> Path:
    return next(folder.glob("mlruns/**/trial-00002.parquet"))


@pytest.mark.parametrize("command", [["report", "done"], ["trial", "done", "2"]])
def test_corrupt_parquet(run: Run, sweep: str, folder: Path, command: list[str]) -> None:
    path = stored_trial(folder)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    result = run(*command)
    assert result.code == 1
    assert "trial-00002.parquet" in only_line(result.err)
    assert "corrupt" in result.err
    assert not (folder / "reports").exists()


def test_missing_parquet(run: Run, sweep: str, folder: Path) -> None:
    stored_trial(folder).unlink()
    result = run("report", sweep)
    assert result.code == 1
    assert "trial-00002.parquet: missing" in only_line(result.err)


def test_record_of_a_newer_schema(run: Run, folder: Path) -> None:
    store = f"folder:{folder / 'kept'}"
    assert run("sweep", "tiny.yaml", "--name", "done", "--store", store).code == 0
    path = next(folder.glob("kept/done/trials/*00002.parquet"))
    table = pq.read_table(path)
    newer = {**table.schema.metadata, records.VERSION_KEY: b"99"}
    pq.write_table(table.replace_schema_metadata(newer), path)
    result = run("report", "done", "--store", store)
    assert result.code == 1
    assert "schema version 99 is newer" in only_line(result.err)


def test_sweep_of_a_newer_schema(run: Run, sweep: str) -> None:
    from pipeline.mlflow_store import MlflowStore

    store = MlflowStore("sqlite:///mlflow.db")
    client = store._connect()
    client.set_tag(store._require_parent(sweep), "lyapsweep.schema_version", "99")
    result = run("report", sweep)
    assert result.code == 1
    assert "schema version 99" in only_line(result.err)


def test_store_that_is_no_database(run: Run, folder: Path) -> None:
    (folder / "mlflow.db").write_bytes(b"not a database at all, but long enough to look" * 50)
    result = run("sweep", "tiny.yaml", "--name", "x")
    assert result.code == 1
    assert "mlflow.db" in only_line(result.err)
    assert "not a database" in result.err
    assert not (folder / ".lyapsweep").exists()


def test_store_in_no_folder(run: Run, folder: Path) -> None:
    result = run("sweep", "tiny.yaml", "--store", f"sqlite:///{folder}/nowhere/mlflow.db")
    assert result.code == 1
    assert "no such folder" in only_line(result.err)


def test_port_taken(run: Run, folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("ui", "--port", str(port))
    assert result.code == 1
    assert f"port {port} is taken" in only_line(result.err)


@pytest.fixture
def mounted(folder: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small tmpfs in the working folder; needs root."""
    made = []

    def mount(options: str) -> Path:
        target = folder / "mounted"
        target.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(target)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
        made.append(target)
        return target

    yield mount
    os.chdir(folder)
    for target in made:
        subprocess.run(["umount", "-l", str(target)], check=True)


def test_read_only_folder(
    run: Run, folder: Path, mounted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = mounted("size=1m,ro")
    monkeypatch.chdir(target)
    result = run("sweep", folder / "tiny.yaml", f"task.text={folder}/text.txt")
    assert result.code == 1
    assert "read-only" in only_line(result.err).lower() or "cannot be written" in result.err


@pytest.mark.parametrize("share", [0.35, 0.7, 0.85, 0.93, 0.98])
def test_full_disk(
    share: float,
    run: Run,
    folder: Path,
    mounted: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The disk fills at some point of a sweep; with space again, it completes, once."""
    arguments = ["sweep", folder / "tiny.yaml", f"task.text={folder}/text.txt", "--name", "full"]
    target = mounted("size=64m")
    needed = folder / "unlimited"
    needed.mkdir()
    monkeypatch.chdir(needed)
    assert run(*arguments).code == 0
    used = sum(-(-p.stat().st_size // 4096) * 4 for p in needed.rglob("*") if p.is_file())
    subprocess.run(["mount", "-o", f"remount,size={int(used * share)}k", str(target)], check=True)
    monkeypatch.chdir(target)
    result = run(*arguments)
    assert result.code == 1
    line = result.err.strip().splitlines()[-1]
    assert line.startswith("lyapsweep: ")
    assert "full" in line or "No space left" in line
    assert not list(target.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(target)], check=True)
    if run("status", "full").code == 0:
        assert run("resume", "full").code == 0
    else:
        assert run(*arguments).code == 0
    assert run("status", "full").out.split("\t")[1:3] == ["complete", "4/4"]
    assert len(list(target.glob("mlruns/**/trial-*.parquet"))) == 4


def test_cluster_that_is_not_there(run: Run, folder: Path) -> None:
    """A sweep that cannot start takes no name."""
    arguments = ["sweep", "tiny.yaml", "--name", "early", "--executor", "ray"]
    result = run(*arguments, "--address", "127.0.0.1:1")
    assert result.code == 1
    assert "127.0.0.1:1" in result.err.strip().splitlines()[-1]
    assert run("status", "early").code == 2


def test_driver_running_already(run: Run, sweep: str, folder: Path) -> None:
    from pipeline.home import Home

    with Home.of(sweep).lock():
        result = run("resume", sweep)
    assert result.code == 1
    assert "being run by another driver" in only_line(result.err)


def test_record_helpers_do_not_hide_a_bug(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not an error of ours keeps its traceback."""
    import sys

    from pipeline import catalog, cli

    def broken(kind: str) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(catalog, "entries", broken)
    monkeypatch.setattr(sys, "argv", ["lyapsweep", "list", "networks"])
    with pytest.raises(ZeroDivisionError):
        cli.main()
