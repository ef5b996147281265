"""What a spectrum costs beside training, and what re-orthonormalising less often does to it.

Vogt et al. (2022), Table 1: about 4 % of the time of training. Exponents of the hidden state alone
(cells held fixed, as published) and of the full state (h, c), all of them and the leading ones, on
the very networks and the very cores that trained. A QR only every T_ON steps saves time; but what
the directions have grown apart by then must fit into the precision, and beyond that the small
exponents come out too large and equal: a plateau that no dynamics has.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter

from analysis.figures.base import INK, OKABE_ITO, new_picture
from analysis.studies.base import Claim, Finding, Study, Tables, Verdict, by_interval, by_rule
from analysis.studies.lab import Group, Lab
from analysis.studies.over_seeds import Mean, mean
from analysis.studies.papers import VOGT
from pipeline.dynamics.spectrum import Spectrum, lyapunov_spectrum
from tasks.base import Bounds
from tasks.base import Config as BaseConfig

_NETWORK, _MEASURED, _SECONDS = "network", "measured", "seconds"
_SHARE = "share of the training time"
_T_ON, _PRECISION, _KEPT = "T_ON [steps]", "precision", "exponents within 1 % of T_ON = 1"
_LIFTED = "lowest quarter above T_ON = 1 [nats/step]"
_MOST, _ENOUGH = 0.04, 0.95
_LONG = 10
_PRECISIONS = {"float32": torch.float32, "float64": torch.float64}


class VogtCost(Study):
    """Seconds for spectra beside seconds of training; exponents that T_ON leaves unchanged."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """What is measured.

        sequences, steps: as published, from the zero state without warm-up.
        leading: number of exponents where not all are wanted.
        every: T_ON to compare.
        repeats: measurements of one kind on one network, of which the fastest counts.
        """

        sequences: Annotated[int, Bounds(ge=1)] = 10
        steps: Annotated[int, Bounds(ge=20)] = 100
        leading: Annotated[int, Bounds(ge=1)] = 16
        every: tuple[Annotated[int, Bounds(ge=1)], ...] = (1, 2, 5, 10, 20)
        repeats: Annotated[int, Bounds(ge=1)] = 2

    config: Config
    paper = VOGT
    item = "Table 1"
    title = "The cost of a spectrum, and the spurious plateau"
    claims = (
        Claim(
            "cheap",
            "A spectrum costs about 4 % of the time of training.",
            "seconds for all exponents of the hidden state over seconds of training, on the same "
            "core: 95 % interval over networks below 0.04",
        ),
        Claim(
            "full",
            "So does the true spectrum, of the full state.",
            "the same for all exponents of (h, c): below 0.04",
            "ours: the paper measures the hidden state alone",
        ),
        Claim(
            "leading",
            "The leading exponents alone are cheaper.",
            "seconds for the leading ones over seconds for all, full state: below 1",
        ),
        Claim(
            "rare_qr",
            "The QR may be done every few steps without changing the spectrum.",
            "float32, as published, full state, T_ON = 10: 95 % interval over networks of the "
            "share of exponents within 1 % of those at T_ON = 1 in float64 above 0.95",
        ),
        Claim(
            "plateau",
            "Ours: where the precision is used up, small exponents flatten out too high.",
            "at the largest T_ON, float32, the lowest quarter of the spectrum lies higher than at "
            "T_ON = 1: 95 % interval over networks of the difference of its mean above 0",
        ),
    )
    caption = (
        "Left: seconds of each measurement over the seconds of training the same network, a point "
        "a network, and their mean; dashed, 4 %. Timed on a machine as busy as it was. Right: all "
        "exponents of the full state for several T_ON in float32, one network; the flat ends are "
        "no dynamics."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Trains each network alone on one core, then times spectra on it in the same way."""
        trained = lab.sweep("alone")
        spent = trained.frame.seconds
        training = spent[spent["activity"] == "training"].groupby("trial")["seconds"].sum()
        costs: list[dict[str, Any]] = []
        kept: list[dict[str, Any]] = []
        spectra: list[dict[str, Any]] = []
        with _one_thread():
            for number in sorted(trained.specs):
                (group,) = trained.groups(only=[number])
                costs += self._costs(lab, group, number, float(training[number]))
                found = self._by_t_on(lab, group)
                kept += _kept(found, number)
                spectra += [] if spectra else _shown(found)
        return {
            "costs": pd.DataFrame(costs),
            "t_on": pd.DataFrame(kept),
            "spectra": pd.DataFrame(spectra),
        }

    def _costs(self, lab: Lab, group: Group, number: int, training: float) -> list[dict[str, Any]]:
        kinds: dict[str, dict[str, Any]] = {
            f"{what}, {state} state": {"k": k, "state": state}
            for state in ("hidden", "full")
            for what, k in (("all exponents", None), (f"{self.config.leading} leading",
                                                      self.config.leading))
        }  # fmt: skip
        lines = []
        for kind, how in kinds.items():
            seconds = min(self._seconds(lab, group, **how) for _ in range(self.config.repeats))
            lines.append(
                {_NETWORK: number, _MEASURED: kind, _SECONDS: seconds,
                 "seconds of training": training, _SHARE: seconds / training}
            )  # fmt: skip
        return lines

    def _seconds(self, lab: Lab, group: Group, **how: Any) -> float:
        started = time.perf_counter()
        self._spectrum(lab, group, t_on=1, dtype=torch.float32, **how)
        return time.perf_counter() - started

    def _spectrum(self, lab: Lab, group: Group, **how: Any) -> Spectrum:
        config = self.config
        inputs = group.task.probe_inputs(
            config.sequences, config.steps, lab.generator("probe")
        ).inputs
        return lyapunov_spectrum(
            group.network, inputs, warmup=0, generator=lab.generator("frame"), **how
        )

    def _by_t_on(self, lab: Lab, group: Group) -> dict[tuple[str, int], np.ndarray]:
        return {
            (word, t_on): self._spectrum(lab, group, t_on=t_on, dtype=dtype, state="full")
            .exponents[0]
            .numpy()
            for word, dtype in _PRECISIONS.items()
            for t_on in (1, *self.config.every)
        }

    def judge(self, tables: Tables) -> list[Finding]:
        """By intervals over networks."""
        costs, table = tables["costs"], tables["t_on"]
        seconds = costs.pivot(index=_NETWORK, columns=_MEASURED, values=_SECONDS)
        share = costs.pivot(index=_NETWORK, columns=_MEASURED, values=_SHARE)
        hidden, full = (
            mean(share[f"all exponents, {state} state"]) for state in ("hidden", "full")
        )
        (few,) = (n for n in map(str, seconds) if n.endswith("leading, full state"))
        ratio = mean(seconds[few] / seconds["all exponents, full state"])
        single = table[table[_PRECISION] == "float32"]
        long = max(t for t in single[_T_ON].unique() if t <= _LONG)
        kept = mean(single[single[_T_ON] == long][_KEPT])
        longest = single[_T_ON].max()
        lifted = mean(single[single[_T_ON] == longest][_LIFTED])
        return [
            _finding("cheap", f"All exponents of the hidden state cost {hidden} of the time of "
                     "training", hidden, by_interval(-hidden.high, -hidden.low, above=-_MOST)),
            _finding("full", f"All exponents of the full state cost {full} of the time of training",
                     full, by_interval(-full.high, -full.low, above=-_MOST)),
            _finding("leading", f"The {few.split(',')[0]} cost {ratio} of what all cost", ratio,
                     by_interval(-ratio.high, -ratio.low, above=-1.0)),
            _finding("rare_qr", f"At T_ON = {long}, {kept} of the exponents are within 1 % of "
                     "those at T_ON = 1", kept, by_rule(kept.low > _ENOUGH)),
            _finding("plateau", f"At T_ON = {longest} the lowest quarter lies {lifted} nats/step "
                     "above that at T_ON = 1", lifted, by_interval(lifted.low, lifted.high),
                     "nats/step"),
        ]  # fmt: skip

    def draw(self, tables: Tables) -> Picture:
        """Shares on the left, spectra by T_ON on the right."""
        picture = new_picture(8, 3.9)
        left, right = picture.subplots(1, 2)
        kinds = list(dict.fromkeys(tables["costs"][_MEASURED]))
        for place, kind in enumerate(kinds):
            part = tables["costs"][tables["costs"][_MEASURED] == kind]
            colour = OKABE_ITO["full" in kind]
            left.plot(100 * part[_SHARE], [place] * len(part), "o", color=colour, alpha=0.6)
            left.plot(100 * part[_SHARE].mean(), place, "|", color=INK, markersize=18)
        left.set_xscale("log")
        left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        left.axvline(100 * _MOST, color=INK, linewidth=0.8, linestyle="--")
        left.set_yticks(range(len(kinds)), [kind.replace(", ", "\n") for kind in kinds])
        left.set_ylim(len(kinds) - 0.5, -0.5)
        left.grid(visible=False, axis="y")
        left.set_xlabel("seconds over seconds of training [%]")
        shown = tables["spectra"][tables["spectra"][_PRECISION] == "float32"]
        for colour, (t_on, part) in zip((INK, *OKABE_ITO), shown.groupby(_T_ON), strict=False):
            right.plot(part["index"], part["exponent [nats/step]"], color=colour, linewidth=1.4,
                       label=f"T_ON = {t_on}")  # fmt: skip
        right.set(xlabel="index of the exponent", ylabel="exponent [nats/step]")
        right.legend()
        return picture


def _kept(found: dict[tuple[str, int], np.ndarray], number: int) -> list[dict[str, Any]]:
    """Against float64 and a QR at every step."""
    truth = found["float64", 1]
    quarter = max(1, len(truth) // 4)
    return [
        {
            _NETWORK: number,
            _PRECISION: word,
            _T_ON: t_on,
            _KEPT: float((np.abs(exponents - truth) <= 0.01 * np.abs(truth)).mean()),
            _LIFTED: float(np.sort(exponents)[:quarter].mean() - np.sort(truth)[:quarter].mean()),
        }
        for (word, t_on), exponents in found.items()
    ]


def _shown(found: dict[tuple[str, int], np.ndarray]) -> list[dict[str, Any]]:
    return [
        {_PRECISION: word, _T_ON: t_on, "index": i + 1, "exponent [nats/step]": value}
        for (word, t_on), exponents in found.items()
        for i, value in enumerate(exponents.tolist())
    ]


@contextmanager
def _one_thread() -> Iterator[None]:
    """What is timed runs on as many cores as a network is trained on."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _finding(claim: str, sentence: str, found: Mean, verdict: Verdict, unit: str = "1") -> Finding:
    return Finding(claim, verdict, sentence, *found, unit)
