"""Runs the command `lyapsweep` with a stop-watch at its seams; the last line is JSON.

first_submit: seconds from the start of the process to the first cohort. trained: worker seconds
from there to the end of the last cohort, idle ones included. alive: worker seconds from start to
end of the processes. driver_cpu: CPU seconds of the driver while the sweep ran, imports and
start-up not included. All others are wall-clock seconds.
"""

import atexit
import json
import os
import sys
import time
from pathlib import Path

from pipeline import cli
from pipeline.executors.base import Reached
from pipeline.executors.process import ProcessExecutor
from pipeline.sweep import Driver


def since_start() -> float:
    """Seconds since this process was started, by the kernel's clock."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


class Watched(ProcessExecutor):
    """Notes when workers are started, first and last needed, and ended."""

    def __init__(self, **options):
        self.born, self.first, self.last = since_start(), None, 0.0
        super().__init__(**options)

    def submit(self, cohort, snapshot=None):
        self.first = self.first or since_start()
        super().submit(cohort, snapshot)

    def poll(self, timeout):
        events = super().poll(timeout)
        if any(isinstance(e, Reached) and e.rung.is_last for e in events):
            self.last = since_start()
        return events

    def close(self):
        super().close()
        found["first_submit"] = self.first
        found["trained"] = self.num_slots * (self.last - self.first)
        found["alive"] = self.num_slots * (since_start() - self.born)


def timed_run(driver):
    """`Driver.run`, with the CPU seconds of this process."""
    before = time.process_time()
    outcome = run(driver)
    found["driver_cpu"] = time.process_time() - before
    return outcome


found = {}
run = Driver.run

if __name__ == "__main__":
    import pipeline.executors.process

    pipeline.executors.process.ProcessExecutor = Watched
    Driver.run = timed_run
    atexit.register(lambda: print(json.dumps(found)))
    sys.argv[0] = "lyapsweep"
    cli.main()
