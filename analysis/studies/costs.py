"""What studies would cost: settings and a rehearsal of each sweep, and all of them as one table."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from analysis.pages import environment
from analysis.studies.base import Study
from analysis.studies.settings import Settings
from pipeline import catalog
from pipeline.config import cores
from pipeline.planning import Costs, NoDeviceError, SweepPlan, size
from pipeline.progress import duration
from pipeline.rehearsal import RehearsalError
from tasks.base import MissingDataError, UnsuitableError


@dataclass(frozen=True)
class PartCosts:
    """Of one sweep of a study.

    Attributes:
        plan: None where a sweep like this cannot be made here.
        costs: None where they are not to be had, for which `why` has a word.
    """

    study: str
    part: str
    plan: SweepPlan | None
    costs: Costs | None
    why: str = ""

    @property
    def cells(self) -> list[str]:
        """Of its line in the table, after study and part."""
        plan, costs = self.plan, self.costs
        # A rehearsal that failed tells its whole traceback, whose last line says what was raised.
        why = self.why.strip().splitlines()[-1] if self.why.strip() else ""
        if plan is None:
            return [why, *[""] * 6]
        network, task = (plan.config.tree[kind]["name"] for kind in ("network", "task"))
        what = [f"{network} on {task}", f"{plan.config.trials:,}", plan.epochs()]
        if costs is None:
            return [*what, "", why, "", ""]
        each = costs.worker if costs.num_workers else costs.driver
        times = [duration(seconds) for seconds in (costs.times.working, costs.times.total)]
        return [*what, costs.weights, *times, size(each)]


def costs_of(settings: Settings, part: str, tell: Callable[[str], None]) -> PartCosts:
    """Of one sweep; `tell` is handed lines for a person as they come to be known."""
    plan: SweepPlan | None = None
    try:
        plan = SweepPlan(settings.sweeps[part])
        for line in plan.settings():
            tell(line)
        costs = plan.costs()
    except (NoDeviceError, RehearsalError, UnsuitableError, MissingDataError) as error:
        return PartCosts(settings.name, part, plan, None, str(error))
    for line in costs.lines():
        tell(line)
    return PartCosts(settings.name, part, plan, costs)


def table(word: str, scale: str, chosen: Sequence[Settings], found: Sequence[PartCosts]) -> str:
    """A page of Markdown with a line for each sweep, by paper, as `reproduce word` plans them."""
    kinds: dict[str, type[Study]] = {s.name: catalog.load("studies", s.name) for s in chosen}
    papers = {kind.paper.key: kind.paper for kind in kinds.values()}
    known = [part.costs for part in found if part.costs is not None]
    content = {
        "word": word,
        "scale": scale,
        "grouped": [
            (paper, [part for part in found if kinds[part.study].paper.key == key])
            for key, paper in papers.items()
        ],
        "idle": [s.name for s in chosen if not s.sweeps],
        "working": duration(sum(costs.times.working for costs in known)),
        "machine": f"{cores()} cores ({platform.machine()})",
        "torch": version("torch"),
    }
    return environment().get_template("costs.md.j2").render(content)
