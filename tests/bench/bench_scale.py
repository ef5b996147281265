"""What a sweep costs beside its training: a recorded stand-in answers at once, all else is real.

    make bench-scale            # 1,000 and 10,000 trials, about half an hour
    LYAPSWEEP_BENCH_TRIALS=200,1000 make bench-scale

One cohort of ten small LSTMs is trained; its rungs then stand for those of every cohort, under new
numbers. Asked, spooled, published, told and counted is as always: Optuna and MLflow on SQLite, one
driver. The law, on two cores: seconds a trial flat (10,000 against 1,000 at most 1.3),
its memory flat, at least 10 trials a second from end to end, and a sweep of 10,000 resumed within a
minute. Each size is a process of its own. Leaves `results/scale-cpu.md`.
"""

import dataclasses
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

IS_LONG = True

RESULTS = Path(__file__).parent / "results" / "scale-cpu.md"
SIZES = [int(n) for n in os.environ.get("LYAPSWEEP_BENCH_TRIALS", "1000,10000").split(",")]
COHORT = 10
CONF = {
    "task": {"name": "copy", "symbols": 4, "length": 2, "delay": 4, "updates": 4},
    "network": {
        "name": "lstm",
        "units": 16,
        "init_scale": {"log_uniform": [0.1, 2.0]},
        "dropout": {"uniform": [0, 0.3]},
    },
    "trainer": {"epochs": 10, "learning_rate": {"log_uniform": [1e-4, 1e-1]}},
    "measure": {
        "lyapunov_spectrum": {"at": [0, 2, 4, 10], "sequences": 2, "steps": 20, "warmup": 5},
        "gradient_norm": {"at": [0, 2, 4, 10], "examples": 8},
    },
    "execution": {"cohort_size": COHORT, "max_failed_share": 1.0},
    "sampler": {"name": "qmc", "batch": 40},
}


def cases():
    lines, found = [], {}
    for trials in SIZES:
        with tempfile.TemporaryDirectory(prefix="lyapsweep-scale-") as folder:
            said = subprocess.run(
                [sys.executable, __file__, str(trials)],
                cwd=folder, check=True, capture_output=True, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "LYAPSWEEP_HOME": folder},
            )  # fmt: skip
        found[trials] = json.loads(said.stdout.splitlines()[-1])
        for what, unit in UNITS.items():
            lines.append((f"{trials:,} trials: {what}", found[trials][what], unit))
            yield lines[-1]
    first, last = found[SIZES[0]], found[SIZES[-1]]
    for what in ("wall a trial", "processor a trial", "memory"):
        name = f"{what}, {SIZES[-1]:,} / {SIZES[0]:,} trials"
        lines.append((name, last[what] / first[what], "×"))
        yield lines[-1]
    load = ", ".join(f"{v:.1f}" for v in os.getloadavg())
    RESULTS.write_text(
        "# A sweep beside its training, on a CPU\n\n"
        f"`make bench-scale`, {datetime.date.today()}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores; load of the last 1, 5 and 15 minutes at the end {load} (the "
        "bench itself makes one). A recorded stand-in trains; everything else is real.\n\n"
        "| what | | |\n| --- | ---: | --- |\n"
        + "\n".join(f"| {what} | {amount:.4g} | {unit} |" for what, amount, unit in lines)
        + "\n",
        encoding="utf-8",
    )


UNITS = {
    "wall a trial": "ms",
    "processor a trial": "ms",
    "end to end": "trials/s",
    "memory": "MiB",
    "resumed in": "s",
}


class StandIn:
    """An executor that knows all answers: the rungs of one recorded cohort, renumbered."""

    num_slots = 4

    def __init__(self, rungs):
        self._rungs = rungs
        self._waiting = deque()

    def submit(self, cohort, snapshot=None):
        self._waiting.append((cohort, iter(self._rungs)))

    def poll(self, timeout):
        from pipeline.executors.base import Reached

        events = []
        for _ in range(len(self._waiting)):
            cohort, rungs = self._waiting.popleft()
            rung = _renumbered(next(rungs), cohort)
            events.append(Reached(cohort, rung))
            if not rung.is_last:
                self._waiting.append((cohort, rungs))
        return events

    def advance(self, cohort, leave=()):
        raise AssertionError("nobody pauses without a pruner")

    release = advance

    def stop(self):
        self._waiting.clear()

    def close(self):
        self._waiting.clear()


def _renumbered(rung, cohort):
    """The rung as that of another cohort; time stamps are of now, as records need them."""
    from pipeline.rows import now_ms

    now, parts = now_ms(), list(rung.rows.values())
    return dataclasses.replace(
        rung,
        rows={
            number: [dataclasses.replace(row, time_ms=now) for row in rows]
            for number, rows in zip(cohort.numbers, parts, strict=False)
        },
        val_loss=dict(zip(cohort.numbers, rung.val_loss.values(), strict=False)),
    )


def _recorded():
    from pipeline import config
    from pipeline.plan import plan
    from pipeline.train import train

    checked = config.check({**CONF, "trials": COHORT})
    specs = [
        checked.spec(
            n,
            {
                "network.init_scale": 0.1 + 0.1 * n,
                "network.dropout": 0.01 * n,
                "trainer.learning_rate": 1e-3 * (n + 1),
            },
        )
        for n in range(COHORT)
    ]
    (cohort,) = plan(specs, checked.limits_of(COHORT))
    rungs = list(train(cohort))
    assert rungs[-1].is_last
    assert not rungs[-1].diverged_at
    return rungs


def main(trials):
    from pipeline import config, creating, doctor, sweep
    from pipeline.home import Home
    from pipeline.store import open_store

    rungs = _recorded()
    checked = config.check({**CONF, "trials": trials})
    store, home = open_store(f"sqlite:///{Path.cwd() / 'mlflow.db'}"), Home.of("scale")
    begun, busy = time.perf_counter(), time.process_time()
    store.prepare()
    info = creating.create(checked, "scale", store)
    outcome = sweep.Driver(checked, info, store, home, StandIn(rungs)).run()
    wall, processor = time.perf_counter() - begun, time.process_time() - busy
    assert outcome.state == "complete"
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    again, begun = open_store(store.uri), time.perf_counter()
    outcome = sweep.Driver(checked, again.sweep("scale"), again, home, StandIn(rungs)).run()
    resumed = time.perf_counter() - begun
    assert outcome.progress.finished == trials
    found = doctor.examine(again, "scale", home)
    assert found.is_sound, found.findings[:3]
    assert len(found.ends) == trials
    print(
        json.dumps(
            {
                "wall a trial": 1e3 * wall / trials,
                "processor a trial": 1e3 * processor / trials,
                "end to end": trials / wall,
                "memory": memory,
                "resumed in": resumed,
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
