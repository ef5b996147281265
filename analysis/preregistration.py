"""What is to be tested, fixed before the sweep can tell: a plan, stored with its hash.

A plan is stored with the sweep, beside the time and the number of trials that had ended by then.
A result is *confirmatory* if a plan fixed before the sweep ended names it, and *exploratory*
otherwise. A plan is fixed once: another one for the same sweep is refused, and one written after
the sweep has ended is refused as well, or kept as such where its author says so; nothing is then
confirmatory. This guards against forgetting, not against fraud: whoever can write the store can
write a plan into it, so the hash is printed, to be kept elsewhere.

Nosek, Ebersole, DeHaven & Mellor 2018, "The preregistration revolution" (PNAS 115).
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from analysis.frame import AnalysisError
from analysis.hypotheses import Plan, hash_of, plan_of
from pipeline import plain_file
from pipeline.records import FINISHED
from pipeline.rows import now_ms
from pipeline.store import Store

FORMAT = 1
FOLDER, FILE = "preregistration", "preregistration.json"
_MOST_BYTES = 1_000_000
# The year 9999, the last that dates can have.
_END_OF_TIME_MS = 253_370_764_800_000


class PreregistrationError(AnalysisError):
    """A plan that cannot be registered, or a registration that cannot be trusted."""


@dataclass(frozen=True)
class Registration:
    """A plan as it was stored.

    Attributes:
        plan, sha256: what was fixed, and its hash then.
        time_ms: when, in milliseconds since 1970 UTC.
        num_ended, num_trials: how many of how many trials had ended by then.
        sweep_id, config_hash: of the sweep it was fixed for.
        is_after: whether the sweep had ended.
    """

    plan: Plan
    sha256: str
    time_ms: int
    num_ended: int
    num_trials: int
    sweep_id: str
    config_hash: str
    is_after: bool

    @property
    def when(self) -> str:
        """`2026-11-21 12:30 UTC`."""
        return datetime.fromtimestamp(self.time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def register(
    store: Store, name: str, plan: Plan, *, after_the_fact: bool = False
) -> tuple[Registration, bool]:
    """Stores a plan with a sweep. Returns it, and whether it is new: the same plan twice is once.

    Raises PreregistrationError where another plan is registered, or the sweep has ended and
    `after_the_fact` is not given; NoSuchSweepError; StoreError.
    """
    info = store.sweep(name)
    former = preregistration_of(store, name)
    if former is not None:
        if former.sha256 == plan.sha256:
            return former, False
        raise PreregistrationError(
            f"sweep {name!r}: a plan is fixed once, and one was on {former.when} (sha256 "
            f"{former.sha256[:12]}…), another than this one ({plan.sha256[:12]}…); the report "
            "shows deviations from it, or start another sweep"
        )
    num_ended = sum(state in FINISHED for state in store.states(name).values())
    has_ended = info.state == "complete" or num_ended >= info.num_trials
    if has_ended and not after_the_fact:
        raise PreregistrationError(
            f"sweep {name!r}: a plan must be fixed before the sweep ends, and it has ended "
            f"({num_ended} of {info.num_trials} trials); preregister the next sweep while it runs, "
            "or record this plan as written after the fact with --after-the-fact, in which case "
            "the report calls everything exploratory"
        )
    made = Registration(
        plan, plan.sha256, now_ms(), num_ended, info.num_trials, info.sweep_id, info.config_hash,
        has_ended,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="lyapsweep-") as folder:
        path = Path(folder) / FILE
        content = {"format": FORMAT, **asdict(made)}
        path.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
        store.attach(name, path, FOLDER)
    return made, True


def preregistration_of(store: Store, name: str) -> Registration | None:
    """The plan stored with a sweep, None where there is none.

    Raises PreregistrationError where what is stored was changed or cannot be read.
    """
    store.sweep(name)
    text = _attached(store, name)
    if text is None:
        return None
    where = f"sweep {name!r}: {FOLDER}/{FILE}"
    try:
        content = plain_file.tree_of(text)
        number = int(content.pop("format"))
        if number > FORMAT:
            raise PreregistrationError(
                f"{where}: format {number} is newer than this program reads ({FORMAT}); "
                "upgrade lyapsweep"
            )
        plan_tree = content.pop("plan")
        found = Registration(plan=plan_of(plan_tree, where), **content)
        _check_types(found)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        if isinstance(error, PreregistrationError):
            raise
        raise PreregistrationError(f"{where}: not a registration ({error})") from error
    if found.sha256 != hash_of(plan_tree):
        raise PreregistrationError(
            f"{where}: its sha256 is {found.sha256[:12]}…, and that of the plan in it "
            f"{hash_of(plan_tree)[:12]}…; the plan was changed after it was registered, so nothing "
            "it names is confirmatory"
        )
    return found


def _check_types(found: Registration) -> None:
    """Raises ValueError."""
    kinds = {"num_ended": int, "num_trials": int, "time_ms": int, "is_after": bool}
    for name in ("sha256", "sweep_id", "config_hash", *kinds):
        value = getattr(found, name)
        if type(value) is not kinds.get(name, str):
            raise ValueError(f"{name} cannot be {str(value)[:80]!r}")
    if not all(0 <= n < 2**53 for n in (found.num_ended, found.num_trials)):
        raise ValueError("num_ended or num_trials is out of range")
    if not 0 <= found.time_ms < _END_OF_TIME_MS:
        raise ValueError(f"time_ms cannot be {found.time_ms}")


def _attached(store: Store, name: str) -> str | None:
    """The text of the file stored with the sweep."""
    file = f"{FOLDER}/{FILE}"
    if file not in store.attached(name, FOLDER):
        return None
    with tempfile.TemporaryDirectory(prefix="lyapsweep-") as folder:
        path = Path(folder) / FILE
        store.fetch(name, file, path)
        return _text(path)


def _text(path: Path) -> str:
    if path.stat().st_size > _MOST_BYTES:
        raise PreregistrationError(
            f"{path}: must be smaller than {_MOST_BYTES:,} bytes, got {path.stat().st_size:,}; "
            "this is not a registration"
        )
    return path.read_text(encoding="utf-8", errors="replace")
