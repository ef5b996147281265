"""A report over ten thousand trials, and one over published spectra: seconds and memory.

    make bench-report

The law: under two minutes and 2 GB each on two cores. The sweep is made up (`made_sweep.py`) and
written through the real store; `LYAPSWEEP_BENCH_TRIALS` asks for fewer trials, and
`LYAPSWEEP_BENCH_STORE` with `LYAPSWEEP_BENCH_NAME` names one that was written before. The published
spectra are looked for in `$LYAPSWEEP_DATA` or `shared/data` beside the checkout. Leaves
`results/report-cpu.md`.
"""

import datetime
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IS_LONG = True

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "report-cpu.md"
COMMAND = Path(sys.executable).with_name("lyapsweep")
NAME = os.environ.get("LYAPSWEEP_BENCH_NAME", "made-up")
_PUBLISHED = ("vogt2022_public_spectra.parquet", "vogt2022_public_losses.parquet")


def cases():
    lines = []
    with tempfile.TemporaryDirectory(prefix="lyapsweep-bench-") as folder:
        for what, amount, unit in _all(Path(folder)):
            lines.append(f"| {what} | {amount:.4g} | {unit} |")
            yield what, amount, unit
    load = ", ".join(f"{v:.1f}" for v in os.getloadavg())
    RESULTS.write_text(
        "# Reports over many trials, on a CPU\n\n"
        f"`make bench-report`, {datetime.date.today()}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores of {_processor()}; load of the last 1, 5 and 15 minutes at the "
        f"end {load} (the bench itself makes one to two). Memory is the largest sum of the "
        "resident sets of a command's processes, sampled ten times a second.\n\n"
        "| what | | |\n| --- | ---: | --- |\n" + "\n".join(lines) + "\n",
        encoding="utf-8",
    )


def _all(folder):
    store, trials = os.environ.get("LYAPSWEEP_BENCH_STORE"), _trials()
    if store is None:
        store = f"sqlite:///{folder / 'mlflow.db'}"
        script = [sys.executable, str(Path(__file__).with_name("made_sweep.py")), NAME]
        took, _, _ = _watched([*script, "--trials", str(trials), "--store", store], folder)
        yield f"writing {trials:,} trials, making them up included", trials / took, "trials/s"
    for arguments in (["report", NAME], ["predict", NAME, "--at", "4"]):
        took, busy, peak = _watched([COMMAND, *arguments, "--store", store], folder)
        what = f"{' '.join(arguments)}, {trials:,} trials"
        yield what, took, "s"
        yield f"{what}: processor", busy, "s"
        yield f"{what}: memory", peak / 2**30, "GiB"
    data = _data()
    if data is None:
        return
    store = f"sqlite:///{folder / 'published.db'}"
    given = [f"--spectra={data / _PUBLISHED[0]}", f"--losses={data / _PUBLISHED[1]}"]
    imported = [COMMAND, "import-spectra", *given, "--name", "published", "--store", store]
    took, _, _ = _watched(imported, folder)
    yield "import-spectra, 55 published networks", took, "s"
    took, busy, peak = _watched([COMMAND, "report", "published", "--store", store], folder)
    yield "report, 55 published networks", took, "s"
    yield "report, 55 published networks: processor", busy, "s"
    yield "report, 55 published networks: memory", peak / 2**30, "GiB"


def _watched(command, folder):
    """Seconds, processor seconds, and the largest sum of resident sets in bytes."""
    before, started = os.times(), time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), cwd=folder, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _resident(process.pid))
        time.sleep(0.1)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    after = os.times()
    busy = sum(after[2:4]) - sum(before[2:4])
    return time.perf_counter() - started, busy, peak


def _resident(pid):
    """Of a process and all that it started."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(_resident(int(child)) for child in children)


def _trials():
    return int(os.environ.get("LYAPSWEEP_BENCH_TRIALS", "10000"))


def _data():
    for folder in (os.environ.get("LYAPSWEEP_DATA"), ROOT.parent / "shared" / "data"):
        if folder and all((Path(folder) / name).is_file() for name in _PUBLISHED):
            return Path(folder)
    return None


def _processor():
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()
