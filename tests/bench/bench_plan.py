"""What `lyapsweep plan` foretells of time and memory, beside what the sweep then takes.

    python tests/bench/run_all.py plan

Both run as processes in an empty folder, one after the other, in each of LYAPSWEEP_BENCH_ROUNDS
(3) rounds; LYAPSWEEP_BENCH_SWEEPS (comma-separated) names some of the sweeps only. The ratio shown
is the median over the rounds, with the least and the most; where others use the machine too, load
that comes or goes between the two is in it. Time is from start to end of the process. Memory is
the most that the driver and its children held at one time: what each has for itself, and once what
they map of files, sampled ten times a second.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import yaml

IS_LONG = True
ROUNDS = int(os.environ.get("LYAPSWEEP_BENCH_ROUNDS", "3"))
CHOSEN = [s for s in os.environ.get("LYAPSWEEP_BENCH_SWEEPS", "").split(",") if s]
SCRIPT = str(Path(sys.executable).with_name("lyapsweep"))
SECONDS = {"h": 3600, "min": 60, "s": 1}
BYTES = {"MB": 1e6, "GB": 1e9}


def sweeps():
    """Name → conf: a name of one that ships, or a tree; and overrides."""
    execution = {"workers": 2, "threads": 1}
    plane = {"name": "planar", "shape": "spiral", "points": 4000, "batch_size": 64}
    deep = {"name": "mlp", "depth": 8, "init_scale": {"log_uniform": [0.1, 5.0]}}
    sgd = {"optimiser": "sgd", "momentum": 0.9, "learning_rate": {"log_uniform": [1e-3, 0.3]}}
    text = {"name": "char_text", "text": "pydoc", "characters": 30_000}
    text |= {"batch_size": 16, "seq_len": 100}
    start = {"init": "gaussian", "init_scale": {"log_uniform": [0.1, 5.0]}}
    adam = {"optimiser": "adam", "clip_norm": 1.0, "learning_rate": {"log_uniform": [1e-3, 0.1]}}
    spectra = {"at": [0, 1, 2, 5, 8], "k": 16, "sequences": 6, "steps": 100, "warmup": 50}
    return {
        "demo": ("demo", ["trials=16", "task.characters=40000"]),
        "mlp10": (
            {
                "trials": 64,
                "task": plane,
                "network": deep | {"width": 10},
                "trainer": sgd | {"epochs": 30},
                "measure": {"ftle": {"at": [0, 1, 2, 4, 8, 16, 30], "probes": 400}},
                "execution": execution | {"cohort_size": 32},
            },
            [],
        ),
        "mlp50": (
            {
                "trials": 32,
                "sampler": {"name": "tpe"},
                "task": plane,
                "network": deep | {"width": 50},
                "trainer": sgd | {"epochs": 30},
                "execution": execution,
            },
            [],
        ),
        "lstm64": (
            {
                "trials": 16,
                "task": text,
                "network": start | {"name": "lstm", "units": 64},
                "trainer": adam | {"epochs": 8},
                "measure": {"lyapunov_spectrum": spectra},
                "execution": execution | {"cohort_size": 4},
            },
            [],
        ),
        "gru32": (
            {
                "trials": 24,
                "task": text | {"characters": 20_000},
                "network": start | {"name": "gru", "units": {"choice": [16, 32, 48]}},
                "trainer": adam | {"epochs": 10},
                "measure": {"gradient_norm": {"at": [0, 5, 10]}},
                "execution": execution | {"cohort_size": 4},
            },
            [],
        ),
        "recall": ("recall", ["trials=40"]),
    }


def cases():
    for name, (conf, overrides) in sweeps().items():
        if CHOSEN and name not in CHOSEN:
            continue
        rounds = [compared(conf, overrides) for _ in range(ROUNDS)]
        for what, unit in (("seconds", "s"), ("bytes", "MB")):
            scale = 1 if unit == "s" else 1e6
            pairs = [(told[what], took[what]) for told, took in rounds]
            yield f"{name}: {what}, taken", statistics.median(t for _, t in pairs) / scale, unit
            ratios = [told / took for told, took in pairs]
            spread = f"× ({min(ratios):.2f} to {max(ratios):.2f})"
            yield f"{name}: {what}, foretold / taken", statistics.median(ratios), spread
        planning = statistics.median(told["planning"] for told, _ in rounds)
        yield f"{name}: plan itself", planning, "s"


def compared(conf, overrides):
    """What was foretold and what was taken, of one sweep."""
    with tempfile.TemporaryDirectory(prefix="lyapsweep-bench-") as name:
        folder = Path(name)
        if not isinstance(conf, str):
            (folder / "conf.yaml").write_text(yaml.safe_dump(conf), encoding="utf-8")
            conf = "conf.yaml"
        planned = run(["plan", conf, *overrides], folder)
        taken = run(["sweep", conf, *overrides, "--name", "bench"], folder)
        told = foretold(planned["output"])
        return told | {"planning": planned["seconds"]}, taken


def foretold(output):
    """Seconds and bytes that the lines of `plan` speak of."""
    lines = dict(line.split(maxsplit=1) for line in output.splitlines() if line[0] != " ")
    when = lines["time"].split("about ")[1].split(" here")[0]
    much, unit = lines["memory"].split("about ")[1].split(":")[0].split()
    seconds = sum(int(n) * SECONDS[u] for n, u in re.findall(r"(\d+) (h|min|s)", when))
    return {"seconds": seconds, "bytes": float(much) * BYTES[unit]}


def run(words, folder):
    """A command of ours: its output, seconds, and the most memory of it and its children."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LYAPSWEEP_")}
    environment |= {"OMP_NUM_THREADS": "1"}
    with (folder / "output.txt").open("w") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [SCRIPT, *words],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        watch = Watch(process.pid)
        watch.start()
        code = process.wait()
        seconds = time.perf_counter() - started
        watch.join()
    text = (folder / "output.txt").read_text()
    if code:
        raise RuntimeError(f"lyapsweep {' '.join(words)} failed:\n{text[-4000:]}")
    return {"output": text, "seconds": seconds, "bytes": watch.most}


class Watch(threading.Thread):
    """Samples the memory of a process and its children until it ends."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.most = pid, 0

    def run(self):
        while found := [memory for pid in family(self.pid) if (memory := held(pid))]:
            own = sum(own for own, _ in found)
            self.most = max(self.most, own + max(files for _, files in found))
            time.sleep(0.1)


def family(pid):
    """A process and all below it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:
                continue
    return found


def held(pid):
    """(own, of files) bytes now; None of a process that has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
        total, files = (
            1024 * int(re.search(rf"{key}:\s+(\d+)", text)[1]) for key in ("VmRSS", "RssFile")
        )
    except (OSError, TypeError):
        return None
    return total - files, files
