"""Sweeps of small networks, beside what a user would run instead: whole processes, by the clock.

    make bench-sweep ARGS="mlp10 lstm64"

Every program runs as a process of its own in an empty folder, start and end included, with the
same two slots of one thread each, the same number of trials, ranges, sizes, updates, batches and
reports; programs take turns in each round, and medians over the rounds are shown. Where what
is compared differs, the table says so. Settings, by environment variable: LYAPSWEEP_BENCH_ROUNDS
(3), LYAPSWEEP_BENCH_TRIALS (64), LYAPSWEEP_BENCH_PROGRAMS (comma-separated; all). The tables go
to results/sweep-cpu.md in place of former ones of the same problems, unless only some programs
were asked for.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import yaml

FOLDER = Path(__file__).parent
PEERS = FOLDER / "peers"
RESULT = FOLDER / "results" / "sweep-cpu.md"
ROUNDS = int(os.environ.get("LYAPSWEEP_BENCH_ROUNDS", "3"))
TRIALS = int(os.environ.get("LYAPSWEEP_BENCH_TRIALS", "64"))
IS_LONG = True
SLOTS = 2
TIMEOUT = 3600

PROBLEMS = {
    "mlp10": "MLP, 8 layers of 10, spiral of 4000 points, batch 64, 30 epochs",
    "mlp50": "MLP, 8 layers of 50, spiral of 4000 points, batch 64, 30 epochs",
    "lstm64": "LSTM of 64, 32 sequences of 100 letters, 100 updates",
    "lstm16": "LSTM of 16, 32 sequences of 100 letters, 100 updates",
}
BASELINE = "Ray Tune + OptunaSearch + MLflow callback"
PEER_COMMANDS = {
    BASELINE: ["ray_tune.py"],
    "Ray Tune, reuse_actors=True, no logger": ["ray_tune.py", "--reuse-actors", "--no-logger"],
    "Ray actors + Optuna + one MLflow batch a trial": ["ray_actors.py"],
    "process pool, no sampler, nothing recorded": ["process_pool.py"],
}
OURS = "lyapsweep"
# Beside losses and scores, at a few epochs.
MEASUREMENTS = {
    "mlp": ("FTLE", {"ftle": {"at": [0, 1, 2, 4, 8, 16, 30], "probes": 400}}),
    "lstm": (
        "spectra",
        {
            "lyapunov_spectrum": {
                "at": [0, 1, 2, 5, 10, 20],
                "k": 16,
                "sequences": 6,
                "steps": 100,
                "warmup": 50,
            }
        },
    ),
}
NOTES = """\
What differs, for and against us. The sampler: all programs but the pool search with Optuna's TPE;
Tune and the actors ask it trial by trial and learn from the eleventh on, ours was asked for all
trials at once (`sampler.batch`), which for so few is a random design. The LSTM peers report the
loss of training as validation loss; ours evaluates a validation text of one window after each
epoch of five updates, about a tenth of the work more, and repeats one text where the peers draw
windows from it. The peers' letters go through an embedding of 16, ours straight into the gates.
Ours keeps a Parquet file of every trial, waits for the disk, and can be killed at any time; the
pool and the Tune program without a logger keep nothing. Each run begins with an empty store, for
which ours takes MLflow's empty tables from the user's cache, where its first run left them."""


@dataclass(frozen=True)
class Program:
    """What is run: a command in an empty folder, where `{folder}` stands for that folder."""

    name: str
    command: Sequence[str]
    files: dict[str, str] = field(default_factory=dict)


@dataclass
class Timing:
    """Seconds of each round, and the lowest validation loss that was found in the last."""

    seconds: list[float] = field(default_factory=list)
    best: float = float("nan")

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Trials a minute."""
        return 60 * TRIALS / self.median


def programs(problem: str) -> list[Program]:
    """The peers, then ours without and with measurements."""
    found = [
        Program(
            name,
            [
                sys.executable,
                str(PEERS / script),
                problem,
                *("--trials", str(TRIALS), "--slots", str(SLOTS), "--folder", "{folder}"),
                *switches,
            ],
        )
        for name, (script, *switches) in PEER_COMMANDS.items()
    ]
    measured, settings = MEASUREMENTS[problem.rstrip("0123456789")]
    for name, measure in ((f"{OURS}, nothing measured", {}), (f"{OURS}, {measured}", settings)):
        found.append(Program(name, our_command("bench"), our_files(problem, measure)))
    return found


def our_command(name: str) -> list[str]:
    """`lyapsweep sweep` on conf.yaml of the folder."""
    script = str(Path(sys.executable).with_name("lyapsweep"))
    store = "sqlite:///{folder}/mlflow.db"
    return [script, "sweep", "{folder}/conf.yaml", "--name", name, "--store", store]


def our_files(problem: str, measure: dict) -> dict[str, str]:
    """The conf of a problem, and what it reads."""
    kind, width = problem.rstrip("0123456789"), int(problem[-2:])
    network = {
        "init_scale": {"log_uniform": [0.1, 5.0]},
        "dropout": {"uniform": [0.0, 0.3]},
    }
    trainer = {"learning_rate": {"log_uniform": [1e-3, 0.3]}}
    files = {}
    if kind == "mlp":
        # The last ten points are the test split, which the peers do not have.
        task = {"name": "planar", "shape": "spiral", "points": 4000, "batch_size": 64}
        task |= {"train": 0.8, "validation": 0.1975}
        network |= {"name": "mlp", "width": width, "depth": 8}
        trainer |= {"epochs": 30, "optimiser": "sgd", "momentum": 0.9}
    else:
        # Streams of 500 letters are five windows of 100: twenty epochs are 100 updates.
        task = {"name": "char_text", "text": "{folder}/text.txt", "characters": 22_404}
        task |= {"batch_size": 32, "seq_len": 100, "train": 16_001 / 22_404, "validation": 1 / 7}
        network |= {"name": "lstm", "units": width, "init": "gaussian"}
        trainer |= {"epochs": 20, "optimiser": "adam", "clip_norm": 1.0}
        sys.path.insert(0, str(PEERS))
        from problems import text

        files["text.txt"] = text()
    conf = {
        "seed": 0,
        "trials": TRIALS,
        "sampler": {"name": "tpe", "batch": TRIALS},
        "task": task,
        "network": network,
        "trainer": trainer,
        "measure": measure,
        "execution": {"workers": SLOTS, "threads": 1, "cohort_size": max(1, TRIALS // SLOTS)},
    }
    return files | {"conf.yaml": yaml.safe_dump(conf, sort_keys=False)}


def run(program: Program, folder: Path) -> float:
    """Seconds from start to end of the process."""
    for name, content in program.files.items():
        (folder / name).write_text(content.replace("{folder}", str(folder)), encoding="utf-8")
    command = [word.replace("{folder}", str(folder)) for word in program.command]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LYAPSWEEP_")}
    environment |= {"LYAPSWEEP_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    with (folder / "output.txt").open("w") as output:
        started = time.perf_counter()
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT,
        )
        seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{program.name} failed:\n{(folder / 'output.txt').read_text()[-4000:]}")
    return seconds


def best_loss(program: Program, folder: Path) -> float:
    """The lowest validation loss; checks that every trial was trained and recorded."""
    if program.name.startswith(OURS):
        losses = [r.header.value for r in our_records(folder)]
        assert len(losses) == TRIALS, f"{len(losses)} of {TRIALS} trials were recorded"
        return min(losses)
    last = json.loads((folder / "output.txt").read_text().strip().splitlines()[-1])
    assert last["trials"] == TRIALS, f"{last['trials']} of {TRIALS} trials ended"
    return last["best"]


def our_records(folder: Path) -> list:
    """What a sweep of ours stored."""
    from pipeline.store import open_store

    return list(open_store(f"sqlite:///{folder}/mlflow.db").records("bench"))


def compare(problem: str, chosen: Sequence[str]) -> dict[str, Timing]:
    """Seconds of every program in every round."""
    found = [p for p in programs(problem) if not chosen or any(c in p.name for c in chosen)]
    timings = {p.name: Timing() for p in found}
    for number in range(ROUNDS):
        # Another order in each round, lest one always follows the same one.
        for program in found[number % len(found) :] + found[: number % len(found)]:
            with tempfile.TemporaryDirectory(prefix="lyapsweep-bench-") as name:
                seconds = run(program, Path(name))
                timings[program.name].seconds.append(seconds)
                timings[program.name].best = best_loss(program, Path(name))
            print(f"  {problem} {number + 1}/{ROUNDS} {program.name}: {seconds:.1f} s", flush=True)
    return timings


def spent(problem: str, measure: dict) -> dict[str, float]:
    """Where one sweep of ours spends its time, in seconds (`timed_sweep.py`)."""
    command = our_command("bench")
    command[:1] = [sys.executable, str(FOLDER / "timed_sweep.py")]
    with tempfile.TemporaryDirectory(prefix="lyapsweep-bench-") as name:
        folder = Path(name)
        run(Program("timed", command, our_files(problem, measure)), folder)
        clock = json.loads((folder / "output.txt").read_text().strip().splitlines()[-1])
        sums = dict.fromkeys(("training", "evaluating", "measuring"), 0.0)
        for record in our_records(folder):
            for row in record.table.select(["quantity", "seconds"]).to_pylist():
                name = row["quantity"]
                kind = "evaluating" if name.startswith(("val_", "test_")) else "measuring"
                sums["training" if name == "train_loss" else kind] += row["seconds"] or 0.0
    return {**clock, **sums}


def ratio(timings: dict[str, Timing], name: str) -> float:
    """How many times the baseline's rate, the median over the rounds."""
    pairs = zip(timings[BASELINE].seconds, timings[name].seconds, strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def table(problem: str, timings: dict[str, Timing], load: str) -> Iterator[str]:
    """Markdown, under a heading of its own."""
    yield f"## {PROBLEMS[problem]}"
    yield ""
    yield (
        f"`LYAPSWEEP_BENCH_ROUNDS={ROUNDS} LYAPSWEEP_BENCH_TRIALS={TRIALS} make bench-sweep "
        f'ARGS="{problem}"`, {time.strftime("%Y-%m-%d")}, load of the last 1, 5 and 15 minutes '
        f"before it {load}:"
    )
    yield ""
    yield "| program | seconds | trials a minute | × Tune | lowest validation loss |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name, timing in timings.items():
        times = f"{ratio(timings, name):.1f}" if BASELINE in timings else "–"
        seconds = f"{timing.median:.1f} ({min(timing.seconds):.1f}–{max(timing.seconds):.1f})"
        yield f"| {name} | {seconds} | {timing.rate:.1f} | {times} | {timing.best:.4f} |"
    yield ""


def whereabouts(problem: str) -> Iterator[str]:
    """Markdown: where our own time goes."""
    measured, settings = MEASUREMENTS[problem.rstrip("0123456789")]
    yield f"Where {OURS} spends it (another run; worker seconds are those of {SLOTS} workers):"
    yield ""
    yield (
        "| measured | to the first trial | worker seconds while trials were trained | training | "
        "evaluating | measuring | share of these | workers alive | driver CPU a trial |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, measure in (("nothing", {}), (measured, settings)):
        s = spent(problem, measure)
        work = s["training"] + s["evaluating"] + s["measuring"]
        yield (
            f"| {name} | {s['first_submit']:.1f} s | {s['trained']:.1f} s | {s['training']:.1f} s "
            f"| {s['evaluating']:.1f} s | {s['measuring']:.1f} s | {work / s['trained']:.0%} "
            f"| {s['alive']:.1f} s | {1000 * s['driver_cpu'] / TRIALS:.0f} ms |"
        )
    yield ""


def heading() -> Iterator[str]:
    """What was run, and on what."""
    packages = ("torch", "ray", "optuna", "mlflow")
    versions = ", ".join(f"{p} {version(p)}" for p in packages)
    yield "# Sweeps of small networks beside what a user would run instead, on a CPU"
    yield ""
    yield (
        f"{versions}, Python {platform.python_version()}, {os.cpu_count()} cores of "
        f"{_processor()}. Trials run in {SLOTS} slots; seconds from start to end of the process, "
        "start-up included, medians of the rounds, in which the programs took turns (smallest and "
        "largest in brackets); ratios were taken within each round."
    )
    yield ""
    yield NOTES
    yield ""


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cases() -> Iterator[tuple[str, float, str]]:
    """For `run_all.py`: trials a minute of every program."""
    for problem in PROBLEMS:
        for name, timing in compare(problem, ()).items():
            yield f"{problem}: {name}", timing.rate, "trials a minute"


def main() -> int:
    words = sys.argv[1:]
    unknown = [word for word in words if word not in PROBLEMS]
    if unknown:
        known = ", ".join(PROBLEMS)
        print(f"no problem {', '.join(unknown)}; there are {known}", file=sys.stderr)
        return 2
    named = os.environ.get("LYAPSWEEP_BENCH_PROGRAMS", "")
    chosen = [word for word in named.split(",") if word]
    for problem in words or PROBLEMS:
        load = " ".join(f"{one:.1f}" for one in os.getloadavg())
        timings = compare(problem, chosen)
        text = "\n".join([*table(problem, timings, load), *whereabouts(problem)])
        print(text)
        if not chosen:
            keep(problem, text)
            print(f"written to {RESULT}")
    return 0


def keep(problem: str, text: str) -> None:
    """Puts one problem's tables in their place among those of the others."""
    former = RESULT.read_text(encoding="utf-8") if RESULT.exists() else ""
    sections = {part.partition("\n")[0]: part for part in former.split("\n## ")[1:]}
    sections[PROBLEMS[problem]] = text.removeprefix("## ")
    ordered = [sections[title] for title in PROBLEMS.values() if title in sections]
    whole = "\n## ".join(["\n".join(heading()), *(part.rstrip() + "\n" for part in ordered)])
    RESULT.write_text(whole, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
