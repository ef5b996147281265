"""A driver killed in the middle of a slow trial, and `lyapsweep resume`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from pipeline import records

Run = Callable[..., Any]
LYAPSWEEP = [sys.executable, "-P", "-c", "from pipeline.cli import main; main()"]
EPOCHS = 20
SLOW = [
    "trials=2",
    f"trainer.epochs={EPOCHS}",
    "network.units=16",
    "execution.keep_weights=true",
    "measure.lyapunov_spectrum.at=[0, 3, 12, 20]",
]


def results(folder: Path, name: str) -> dict[int, Any]:
    """All that was found out about every trial, but times."""
    found = {}
    for path in sorted((folder / "mlruns" / name).rglob("trial-*.parquet")):
        record = records.read(path)
        weights = load_file(path.with_suffix(".safetensors"))
        found[record.header.trial] = (
            (record.header.state, record.header.value, record.header.epochs),
            records.content_hash(record.table),
            {key: array.tobytes() for key, array in weights.items()},
        )
    return found


def resumed_at(folder: Path, name: str) -> list[Any]:
    paths = sorted((folder / "mlruns" / name).rglob("trial-*.parquet"))
    return [records.read(path).header.provenance.get("resumed_at") for path in paths]


def epoch_on_disk(folder: Path, name: str) -> int:
    place = folder / ".lyapsweep" / "sweeps" / name / "checkpoints"
    found = [path.name for path in place.rglob("epoch-*.safetensors")]
    return max((int(one[6:11]) for one in found), default=0)


def test_a_killed_driver_goes_on_from_its_checkpoint_and_nothing_shows(
    run: Run, folder: Path
) -> None:
    assert run("sweep", "tiny.yaml", "--name", "whole", *SLOW).code == 0
    words = [*SLOW, "--name", "killed", "execution.checkpoint=3", "execution.executor=process"]
    environment = {**os.environ, "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*LYAPSWEEP, "sweep", "tiny.yaml", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 200
        while epoch_on_disk(folder, "killed") < 6:
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    reached = epoch_on_disk(folder, "killed")
    assert 6 <= reached < EPOCHS
    assert "2 running" in run("status", "killed").out
    assert run("resume", "killed").code == 0
    assert resumed_at(folder, "killed") == [[reached], [reached]]
    assert resumed_at(folder, "whole") == [None, None]
    assert set(results(folder, "whole")) == {0, 1}
    assert results(folder, "killed") == results(folder, "whole")
    assert f"trained: {2 * EPOCHS} of {2 * EPOCHS} epochs (100%)" in run("status", "killed").out
    assert epoch_on_disk(folder, "killed") == 0
