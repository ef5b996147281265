"""Who drives a sweep, as its store knows it: one driver, on whatever machine.

The lock of `pipeline.home` covers one folder on one machine. The lease is two notes in the store's
entry of the sweep: who holds it and where that one is, and a counter that a thread of the holder's
advances every ten seconds. Whoever finds a lease watches the counter for three beats: it moved,
then the sweep is driven and the other is refused; it did not, then the lease is taken over, and the
holder, should it only have been suspended, finds that and stops. A beat never says who holds the
lease: one that was on its way when its driver was suspended takes nothing back when it arrives.
Two machines' clocks are never compared.

What no lease in a store can exclude: a holder that is suspended after it has looked and before it
writes. What it then writes is the same trial, from the same values and seed, under the same uid.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.home import LockedError
from pipeline.retrying import Retry
from pipeline.store import Store, StoreError, hide_password, open_store

KEY = "lease"
_BEAT_KEY = "lease-beat"
BEAT_SECONDS = 10.0
_WATCHED_BEATS = 3
# Older than this, the holder looks whether it still is one before it writes.
_SURE_BEATS = 1.5
_HELD: set[str] = set()
"""Leases of this process."""


class LeaseLostError(LockedError):
    """Another driver has taken the sweep over."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        id: random, of one run of a driver.
        machine: boot and pid namespace, "" where the system does not say: where a pid means
            something.
        born: when the process started, in the kernel's ticks; pids are used again.
        since: seconds since 1970, for people.
        beat: advances while the holder lives; it has a note of its own.
    """

    id: str
    host: str
    pid: int
    machine: str
    born: str
    since: int
    beat: int = 0

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host}, since {since}"

    @property
    def is_known_dead(self) -> bool:
        """True where it was a process of this machine that is no more."""
        if not self.machine or self.machine != _machine():
            return False
        if self.pid == os.getpid():
            return self.id not in _HELD
        return _born(self.pid) != self.born


def holder(store: Store, name: str) -> Holder | None:
    """Who holds the lease of a sweep; it may have died. Raises StoreError, LockedError."""
    found = _named(store, name)
    if found is None:
        return None
    of, _, beat = (store.note(name, _BEAT_KEY) or "").partition(" ")
    is_of_it = of == found.id and beat.isdecimal() and len(beat) < 20
    return replace(found, beat=int(beat)) if is_of_it else found


def _named(store: Store, name: str) -> Holder | None:
    text = store.note(name, KEY)
    if not text:
        return None
    try:
        found = Holder(**json.loads(text))
        kinds = {"pid": int, "since": int, "beat": int}
        if all(isinstance(value, kinds.get(key, str)) for key, value in asdict(found).items()):
            return found
    except (ValueError, TypeError):
        pass
    raise LockedError(
        f"sweep {name!r}: its note {KEY!r} in {hide_password(store.uri)} must be what a driver "
        f"writes, got {text[:80]!r}; if no driver runs, delete it"
    )


class Lease:
    """Held between `take` and `release`. `say` shows a line to whoever waits."""

    def __init__(self, store: Store, name: str, say: Callable[[str], None]) -> None:
        self._store, self._name, self._say = store, name, say
        self._me = Holder(
            id=secrets.token_hex(8),
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=_machine(),
            born=_born(os.getpid()),
            since=int(time.time()),
        )
        self._lost: Holder | None = None
        self._sure_at = 0.0
        self._num = 0
        self._retry = Retry()
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Raises LockedError where another driver holds it, and StoreError."""
        found = holder(self._store, self._name)
        if found is not None and not found.is_known_dead:
            found = self._watch(found)
        began = time.monotonic()
        if found is not None:
            self._say(f"taking the sweep over from {found}, which is no more")
        self._name_me(self._store)
        # Another may have looked before that was written, and write a little later.
        time.sleep(min(2.0, max(0.05, 4 * (time.monotonic() - began))))
        found = _named(self._store, self._name)
        if found is None or found.id != self._me.id:
            raise self._refusal(found)
        self._sure_at = _now()
        _HELD.add(self._me.id)
        self._thread = threading.Thread(target=self._beat, name="lyapsweep-lease", daemon=True)
        self._thread.start()

    def _watch(self, found: Holder) -> Holder | None:
        seconds = _WATCHED_BEATS * BEAT_SECONDS
        self._say(f"driven by {found}; waiting {seconds:.0f} s to see whether that one lives")
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            time.sleep(max(0.0, min(left, BEAT_SECONDS / 2)))
            now = holder(self._store, self._name)
            if now is None:
                return None
            if (now.id, now.beat) != (found.id, found.beat):
                raise self._refusal(now)
            if left <= 0:
                return now

    def _refusal(self, by: Holder | None) -> LockedError:
        return LockedError(
            f"sweep {self._name!r} is being run by another driver "
            f"({'one that has just started' if by is None else by})"
        )

    def check(self) -> None:
        """Call before anything is written where another driver could.

        Free for a while after a beat. Raises LeaseLostError; StoreError where that cannot be said.
        """
        if self._lost is None and _now() - self._sure_at > _SURE_BEATS * BEAT_SECONDS:
            self._advance(self._store)
        self._refuse_lost()

    def check_patiently(self) -> None:
        """The same by what is known where the store is silent. Raises LeaseLostError.

        A silent store is asked more and more seldom.
        """
        if self._retry.is_due:
            try:
                self.check()
                self._retry.answered()
            except StoreError:
                self._retry.failed()
        self._refuse_lost()

    def _refuse_lost(self) -> None:
        if self._lost is not None:
            raise LeaseLostError(
                f"sweep {self._name!r} was taken over by another driver ({self._lost}) while this "
                "one was suspended or cut off; this one stops, and writes nothing more"
            )

    def release(self) -> None:
        """Gives it up, where it is still held and the store answers."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(timeout=BEAT_SECONDS)
        _HELD.discard(self._me.id)
        with contextlib.suppress(StoreError, LockedError):
            found = _named(self._store, self._name)
            if found is not None and found.id == self._me.id:
                for key in (_BEAT_KEY, KEY):
                    self._store.set_note(self._name, key, None)

    def _beat(self) -> None:
        store = open_store(self._store.uri)  # Stores remember what they did; one a thread.
        while not self._end.wait(BEAT_SECONDS) and self._lost is None:
            with contextlib.suppress(StoreError, LockedError):  # `check` says it.
                self._advance(store)

    def _advance(self, store: Store) -> None:
        with self._lock:
            began = _now()
            found = _named(store, self._name)
            if found is not None and found.id != self._me.id:
                self._lost = found
                return
            if self._end.is_set():
                return
            if found is None:
                self._name_me(store)
            self._num += 1
            store.set_note(self._name, _BEAT_KEY, f"{self._me.id} {self._num}")
            self._sure_at = began

    def _name_me(self, store: Store) -> None:
        store.set_note(self._name, KEY, json.dumps(asdict(self._me), sort_keys=True))


def _now() -> float:
    """Seconds that go on while the machine sleeps."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process of this machine started; "" where there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
