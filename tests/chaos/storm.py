"""A sweep in a storm: faults at seeded moments, a driver that is resumed whenever it ended.

The seed decides which faults come, in which order and how far apart; what the machine does in
between is its own affair, so a storm is repeated in kind and not in every instruction.
"""

import re
import time
from collections import Counter
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random

import pyarrow as pa

from tests.chaos import counter
from tests.chaos.faults import Fault, Recovery, faults_of
from tests.chaos.stage import Stage

WENT_ON, ENDED = "driver went on", "driver ended, resumed"
OUTCOMES = (WENT_ON, ENDED)

# Ray's library in C++ ends a process whose raylet dies while the two make acquaintance.
_RAYS_OWN_END = "Failed to register worker to Raylet"


@dataclass
class _Injected:
    fault: Fault
    at: float
    recovery: Recovery
    passed: Future
    outcome: str = WENT_ON


@dataclass
class Account:
    """What a storm did, and what it left."""

    seed: int
    timeline: list[str] = field(default_factory=list)
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By kind and outcome; those that found nobody to strike are not among them."""
    complaints: list[str] = field(default_factory=list)
    count: counter.Count = field(default_factory=counter.Count)
    resumes: int = 0
    seconds: float = 0.0

    @property
    def num_faults(self) -> int:
        return self.faults.total()


@dataclass
class Storm:
    """`num_faults` faults against a stage, then calm, then a look at what is there.

    Args:
        pause: seconds for which whoever is stopped stands still.
        gaps: seconds between two faults, at least and at most.
        patience: seconds after which a sweep that has not finished is given up.
        only: the kinds of fault that come; None for all.
    """

    stage: Stage
    seed: int
    num_faults: int
    reference: dict[int, pa.Table]
    pause: float = 20.0
    gaps: tuple[float, float] = (0.1, 1.5)
    patience: float = 1800.0
    only: Collection[str] | None = None

    def run(self) -> Account:
        """Never raises for what the storm found: that is in the account."""
        self.account, self._injected = Account(self.seed), []
        self._rng, self._begun = Random(self.seed), time.monotonic()
        self._busy: dict[str, _Injected] = {}
        self.stage.set_up()
        try:
            with ThreadPoolExecutor(16, "chaos") as self._pool:
                self._faults = [
                    fault
                    for fault in faults_of(self.stage, self.pause)
                    if self.only is None or fault.kind in self.only
                ]
                is_complete = self._weather()
                self._calm()
            if is_complete:
                self._look_at_what_is_left()
            self._sum_up()
        finally:
            self.stage.tear_down()
        self.account.seconds = time.monotonic() - self._begun
        return self.account

    def _note(self, text: str) -> None:
        line = f"{time.monotonic() - self._begun:7.2f} s  {text}"
        self.account.timeline.append(line)
        # For whoever looks on, or comes after a test that was itself killed.
        with (self.stage.folder / "timeline.txt").open("a") as file:
            file.write(f"{line}\n")

    def _weather(self) -> bool:
        """True once a driver has said that the sweep is complete."""
        stage, next_at = self.stage, 0.0
        self._start("sweep")
        left = self.num_faults
        while time.monotonic() - self._begun < self.patience:
            time.sleep(0.05)
            driver = stage.driver
            assert driver is not None
            if driver.poll() is not None:
                if driver.returncode == 0:
                    self._note("the driver says that the sweep is complete")
                    return True
                self._start(self._after_the_end(driver.returncode))
            if self._is_held:
                self._is_held = not (stage.trains or time.monotonic() > self._held_until)
                next_at = self._in(*self.gaps)
            elif left and time.monotonic() >= next_at:
                left -= self._inject()
                next_at = self._in(*self.gaps)
                # Of a driver that starts one fault is enough, or it would never come to train.
                self._is_held = not stage.trains
                if not left:
                    self._note("no more faults")
        self.account.complaints.append(f"not complete after {self.patience:.0f} s")
        return False

    def _in(self, least: float, most: float) -> float:
        return time.monotonic() + self._rng.uniform(least, most)

    def _start(self, command: str) -> None:
        self._note(f"lyapsweep {command}")
        self.stage.start_driver(command)
        self._command = command
        # Half of a driver's life would be its start, were it let die as often then.
        self._is_held = self._rng.random() < 0.8
        self._held_until = time.monotonic() + 300

    def _after_the_end(self, code: int) -> str:
        """Which command goes on."""
        said = self.stage.said().strip()
        last = said.splitlines()[-1] if said else ""
        self._note(f"the driver ended with {code}: {last[:300]}")
        self.account.resumes += 1
        blamed = "kill -9 driver" if code == -9 else _blamed(last)
        for one in [one for one in self._injected if blamed in one.fault.kind][-1:]:
            one.outcome = ENDED
        if "Traceback (most recent call last)" in said:
            self.account.complaints.append(f"a driver showed a traceback:\n{said[-3000:]}")
        elif code == 1 and "lyapsweep: " not in said and _RAYS_OWN_END not in said:
            self.account.complaints.append(f"a driver ended without a word:\n{said[-3000:]}")
        # A driver that has nowhere to go is not asked again at once.
        time.sleep(0.3)
        if self._command == "resume" and re.search(r"no sweep .* in ", said):
            return "sweep"
        return "resume"

    def _inject(self) -> int:
        """One of the faults whose target is well; how many were injected."""
        self.stage.look()
        for target in [t for t, one in self._busy.items() if one.passed.done()]:
            del self._busy[target]
        able = [fault for fault in self._faults if fault.target not in self._busy]
        (fault,) = self._rng.choices(able, [fault.weight for fault in able])
        recovery = fault.act(self._rng)
        if recovery is None:
            return 0
        self._note(fault.kind)
        made = _Injected(fault, time.monotonic(), recovery, Future())
        made.passed = self._pool.submit(self._recover, made)
        self._busy[fault.target] = made
        self._injected.append(made)
        return 1

    def _recover(self, injected: _Injected) -> None:
        time.sleep(injected.recovery.after)
        injected.recovery.do()
        if injected.recovery.after:
            self._note(f"    {injected.fault.kind}: over")

    def _calm(self) -> None:
        for one in self._injected:
            try:
                one.passed.result(180)
            except Exception as error:  # noqa: BLE001 - whatever a recovery met
                self.account.complaints.append(f"{one.fault.kind} did not pass: {error!r}")
        if self.stage.servers:
            self.stage.servers.calm()
            for proxy in (self.stage.servers.http, self.stage.servers.tcp):
                self.account.complaints += [f"the proxy itself: {e}" for e in proxy.failures]
                proxy.failures.clear()
        self.stage.set_clock(0)

    def _look_at_what_is_left(self) -> None:
        account, stage = self.account, self.stage
        trials = stage.conf["trials"]
        code, said = stage.ask("doctor", stage.name)
        if code != 0:
            account.complaints.append(f"doctor ended with {code}:\n{said}")
        if f"{trials} of {trials} trials on record ({trials} complete)" not in said:
            account.complaints.append(f"doctor counts otherwise:\n{said}")
        account.count = counter.count(stage.places, trials, self.reference)
        account.complaints += account.count.complaints
        waiting = list((stage.home.folder / "sweeps" / stage.name / "spool").iterdir())
        if waiting:
            account.complaints.append(f"left in the spool: {[path.name for path in waiting]}")
        if not stage.ray:
            orphans = [one for one in stage.seen if one.is_alive]
            deadline = time.monotonic() + 10
            while orphans and time.monotonic() < deadline:
                time.sleep(0.1)
                orphans = [one for one in orphans if one.is_alive]
            account.complaints += [f"outlived its driver: {one.command}" for one in orphans]

    def _sum_up(self) -> None:
        for one in self._injected:
            if one.recovery.struck():
                self.account.faults[one.fault.kind, one.outcome] += 1


def _blamed(last: str) -> str:
    """A word in the kind of fault of which a driver complained with its last line."""
    said = {
        "is full": "disk", "No space": "disk", "Optuna": "PostgreSQL", "MLflow store": "MLflow",
        "local Ray": "raylet", _RAYS_OWN_END: "raylet",
    }  # fmt: skip
    return next((kind for words, kind in said.items() if words in last), "")


def describe(account: Account, stage: Stage) -> str:
    """For whoever has to find out what went wrong."""
    logs = [stage.log]
    if stage.servers:
        folder = stage.servers.folder
        logs += [folder / "mlflow" / "server.log", folder / "postgres.log"]
    ends = [
        f"--- the end of {log}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-40:])
        for log in logs
        if log.exists()
    ]
    return "\n".join(
        [
            f"storm of seed {account.seed}: {len(account.complaints)} complaints",
            *account.complaints,
            "--- timeline",
            *account.timeline,
            *ends,
        ]
    )


def table(accounts: list[Account]) -> list[str]:
    """Kind of fault × how many × what came of it."""
    faults: Counter[tuple[str, str]] = Counter()
    for account in accounts:
        faults += account.faults
    kinds = sorted({kind for kind, _ in faults})
    lines = [f"{'fault':44}{'injected':>10}" + "".join(f"{o:>24}" for o in OUTCOMES)]
    for kind in kinds:
        by = [faults[kind, outcome] for outcome in OUTCOMES]
        lines.append(f"{kind:44}{sum(by):>10}" + "".join(f"{n:>24}" for n in by))
    by = [sum(n for (_, o), n in faults.items() if o == outcome) for outcome in OUTCOMES]
    lines.append(f"{'all':44}{sum(by):>10}" + "".join(f"{n:>24}" for n in by))
    whole = [account.count for account in accounts]
    lines.append(
        f"{len(accounts)} sweeps, {sum(a.resumes for a in accounts)} resumes: "
        f"{sum(len(c.lost) for c in whole)} lost, {sum(len(c.duplicated) for c in whole)} "
        f"duplicated, {sum(len(c.corrupt) for c in whole)} corrupt; trials identical to the "
        f"undisturbed: {sum(c.identical for c in whole)}, equal but for rounding: "
        f"{sum(c.close for c in whole)}"
    )
    return lines
