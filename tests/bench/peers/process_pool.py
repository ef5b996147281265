"""A bare pool of processes: settings drawn in advance, no sampler, nothing recorded. The floor.

python process_pool.py mlp10 --folder /tmp/x
"""

import functools
import multiprocessing

from command_line import arguments, conclude
from problems import data_of, drawn


@functools.cache
def kept(name):
    """What a process keeps between trials."""
    return data_of(name)


def run(job):
    """One trial: its last validation loss."""
    from training import train

    name, settings = job
    reports = []
    train(name, settings, kept(name), lambda step, values: reports.append(values))
    return reports[-1]["val_loss"]


def main():
    options = arguments(__doc__)
    spawning = multiprocessing.get_context("spawn")
    jobs = [(options.problem, settings) for settings in drawn(options.trials)]
    with spawning.Pool(options.slots) as pool:
        losses = list(pool.imap_unordered(run, jobs, chunksize=1))
    conclude(losses)


if __name__ == "__main__":
    main()
