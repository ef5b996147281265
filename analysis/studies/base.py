"""What a study is: one published experiment, its claims, and the rule that judges each of them.

A study measures, then judges, then draws; the tables in between hold every number that is judged
or shown, so that both can be tested on made-up tables and done again without training.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pandas as pd
from matplotlib.figure import Figure as Picture

from analysis.studies.papers import Paper
from tasks.base import Config

if TYPE_CHECKING:
    from analysis.studies.lab import Lab

Scale = Literal["small", "paper"]
SCALES: tuple[Scale, ...] = ("small", "paper")
Verdict = Literal["reproduced", "not reproduced", "reversed"]
Tables = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Claim:
    """What a paper says, and what must be seen here to call it reproduced.

    Attributes:
        key: short name, unique within the study.
        says: the claim, in our own words.
        criterion: which number is looked at, and what it must be; stated before it is measured.
        reference: where its figure comes from if it is not the paper itself.
    """

    key: str
    says: str
    criterion: str
    reference: str = ""


@dataclass(frozen=True)
class Finding:
    """What came of a claim.

    Attributes:
        claim: its key.
        verdict: by the claim's criterion.
        found: one sentence in plain words, with the numbers.
        effect: the number the criterion looks at, in `unit`; NaN where it is none.
        low, high: its 95 % interval, or the least and largest of all cases where every case counts;
            NaN where there is neither.
    """

    claim: str
    verdict: Verdict
    found: str
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    unit: str = "1"


def by_interval(low: float, high: float, *, above: float = 0.0) -> Verdict:
    """Reproduced if the whole interval lies above a bound, reversed if all of it lies below.

    For claims that something is smaller, pass the interval of its negative. NaN: not reproduced.
    """
    if low > above:
        return "reproduced"
    return "reversed" if high < above else "not reproduced"


def by_rule(holds: bool) -> Verdict:
    """Of a criterion that has no opposite: an identity, a bound, a number within a tolerance."""
    return "reproduced" if holds else "not reproduced"


class Study(ABC):
    """One published experiment. `config` holds its own settings at the scale it runs at.

    Attributes:
        paper: whose experiment it is.
        item: which of it: "Fig. 2", "Sec. 4".
        title: what is looked at, in a few words.
        claims: in the order in which `judge` answers them.
        caption: how to read the picture.
    """

    Config: ClassVar[type[Config]]
    paper: ClassVar[Paper]
    item: ClassVar[str]
    title: ClassVar[str]
    claims: ClassVar[tuple[Claim, ...]]
    caption: ClassVar[str]

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def measure(self, lab: "Lab") -> dict[str, pd.DataFrame]:
        """Trains and measures. Tables by name, in long form, one row a case, units in the names.

        Everything random comes from `lab`, so that the same settings give the same tables.
        """

    @abstractmethod
    def judge(self, tables: Tables) -> list[Finding]:
        """One finding a claim, in their order, from the tables alone."""

    @abstractmethod
    def draw(self, tables: Tables) -> Picture:
        """The picture, from the tables alone; `figures.base` holds the house style."""
