"""Trains in processes of our own on this machine, that live as long as the sweep.

A worker is a fresh interpreter (`pipeline.interpreter`). Either side learns of the other's death at
once: the driver by the end of the stream, the worker by a hang-up, at which it ends in the middle
of whatever it does.

A worker trains on from rung to rung without being asked, and looks for a message between two
rungs only: a driver that is busy recording does not hold it up. What it sends is numbered by the
call it answers, so that rungs of an abandoned cohort, still on their way, are known and dropped.
"""

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import IO, Any, Literal

from pipeline.executors.base import Event, ExecutorError, Lost, Raised, Reached, Stopped
from pipeline.executors.crew import Crew
from pipeline.executors.packages import import_conflict, parent_of
from pipeline.interpreter import THREAD_VARIABLES, start
from pipeline.plan import Cohort
from pipeline.train import Rung
from pipeline.worker import CohortError, Worker


@dataclass
class _Hand:
    """A worker as the driver sees it; `calls` counts what it was asked to train."""

    process: subprocess.Popen[bytes]
    channel: Connection
    said: IO[bytes]
    calls: int = 0


class ProcessExecutor(Crew[_Hand]):
    """Persistent worker processes on this machine.

    Args:
        workers: how many; None takes one for each `threads` cores, on CUDA one for each GPU.
        threads: torch threads of a worker.
        device: where cohorts will be trained; of several GPUs, each worker of `cuda` sees one.
        warm: a cohort like those to come, whose task and plug-ins workers load at once.

    Raises ExecutorError where no process can be started or a worker has other packages.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        threads: int = 1,
        device: str = "cpu",
        warm: Cohort | None = None,
    ) -> None:
        super().__init__()
        self._threads, self._warm, self._gpus = threads, warm, _gpus(device)
        room = len(self._gpus) or max(1, len(os.sched_getaffinity(0)) // threads)
        self.num_slots = workers or room
        self._num_started = 0
        try:
            for _ in range(self.num_slots):
                self._idle.append(self._new_hand())
        except ExecutorError:
            self.close()
            raise

    def stop(self) -> None:
        """Workers abandon their cohorts after the rung they are heading for."""
        if not self._is_stopping:
            self._is_stopping = True
            for hand, _ in self._busy.values():
                _send(hand, "stop", None)

    def close(self) -> None:
        """Kills the workers."""
        hands = self._dismiss()
        for hand in hands:
            hand.process.kill()
        for hand in hands:
            _bury(hand)

    def process_ids(self) -> list[int]:
        """Of the idle workers; for tests."""
        return [hand.process.pid for hand in self._idle]

    def _train(
        self,
        worker: _Hand,
        cohort: Cohort,
        call: Literal["start", "advance"],
        arguments: tuple[Any, ...],
    ) -> None:
        worker.calls += 1
        self._busy[worker.channel] = (worker, cohort)
        _send(worker, call, arguments)
        if self._is_stopping:
            _send(worker, "stop", None)

    def _arrived(self, timeout: float) -> list[Any]:
        return wait(list(self._busy), timeout)

    def _receive(self, key: Any) -> Iterator[Event]:
        hand, cohort = self._busy[key]
        try:
            answered, outcome = hand.channel.recv()
        except (EOFError, OSError):
            del self._busy[key]
            reason = _bury(hand)
            self._idle.append(self._new_hand())
            yield Lost(cohort, reason)
            return
        if answered != hand.calls:
            return
        if isinstance(outcome, Rung) and not outcome.is_last and not self._is_stopping:
            if outcome.epoch in cohort.pauses:
                self._pausing[cohort.numbers] = self._busy.pop(key)
            yield Reached(cohort, outcome)
            return
        # Whatever else an abandoned cohort still sends is dropped: the next call has a new number.
        del self._busy[key]
        hand.calls += 1
        self._idle.append(hand)
        if isinstance(outcome, ExecutorError):
            raise outcome
        if isinstance(outcome, CohortError):
            yield Raised(cohort, str(outcome))
            return
        if outcome is not None:
            yield Reached(cohort, outcome)
        if outcome is None or not outcome.is_last:
            yield Stopped(cohort)

    def _new_hand(self) -> _Hand:
        environment = dict.fromkeys(THREAD_VARIABLES, str(self._threads))
        if self._gpus:
            gpu = self._gpus[self._num_started % len(self._gpus)]
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        self._num_started += 1
        said = tempfile.TemporaryFile()  # noqa: SIM115 - kept until the worker is buried
        parent = str(parent_of("pipeline"))
        try:
            process, channel = start(__name__, parent, environment=environment, output=said)
        except OSError as error:
            said.close()
            raise ExecutorError(f"no worker process can be started ({error})") from error
        hand = _Hand(process, channel, said)
        if self._warm is not None:
            _send(hand, "warm", self._warm)
        return hand


def work(descriptor: int, parent: str) -> None:
    """What a worker process runs: answers calls until the driver hangs up."""
    # Ctrl-C reaches every process of a terminal; whether to stop, and when, the driver says.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_driver, args=(descriptor,), daemon=True).start()
    hidden = import_conflict(parent)
    worker = Worker()
    cohort: Cohort | None = None
    with Connection(descriptor) as channel:
        while True:
            number, call, argument = channel.recv()
            if hidden:
                channel.send((number, ExecutorError(hidden)))
            elif call == "warm":
                # What cannot be loaded fails again, and is reported, when it is trained.
                with contextlib.suppress(CohortError):
                    worker.warm(argument)
            elif call == "stop":
                channel.send((number, None))
            else:
                if call == "start":
                    cohort = argument[0]
                assert cohort is not None
                _train_on(worker, channel, number, call, argument, cohort.pauses)


def _train_on(
    worker: Worker,
    channel: Any,
    number: int,
    call: str,
    arguments: tuple[Any, ...],
    pauses: Collection[int],
) -> None:
    """Trains rung after rung, to the last, to a pause or until there is a message."""
    try:
        rung = worker.start(*arguments) if call == "start" else worker.advance(*arguments)
        channel.send((number, rung))
        while not (rung.is_last or rung.epoch in pauses or channel.poll()):
            rung = worker.advance()
            channel.send((number, rung))
    except CohortError as error:
        channel.send((number, error))


def _end_with_driver(descriptor: int) -> None:
    """Ends this process when the other end of the channel is closed, in whatever way."""
    hang_up = select.poll()
    hang_up.register(descriptor, 0)
    hang_up.poll()
    os._exit(1)


def _send(hand: _Hand, call: str, argument: Any) -> None:
    # A worker that has died shows as the end of its stream, at the next poll.
    with contextlib.suppress(OSError):
        hand.channel.send((hand.calls, call, argument))


def _bury(hand: _Hand) -> str:
    """Ends and forgets a worker; returns how it died, with the last thing it said."""
    hand.channel.close()
    try:
        # One whose stream has ended is about to end, or closed it by mistake.
        code = hand.process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        hand.process.kill()
        code = hand.process.wait()
    with hand.said as said:
        size = said.seek(0, os.SEEK_END)
        said.seek(max(0, size - 2000))
        lines = said.read().decode(errors="replace").strip().splitlines()
    how = f"ended with code {code}"
    if code < 0:
        with contextlib.suppress(ValueError):
            how = f"was killed by {signal.Signals(-code).name}"
    last = f": {lines[-1][:300]}" if lines else ""
    return f"worker process {hand.process.pid} {how}{last}"


def _gpus(device: str) -> list[str]:
    """What CUDA_VISIBLE_DEVICES may be for workers on `device`; empty where it stays as it is."""
    if device != "cuda":
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named:
        return named.split(",")
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]
