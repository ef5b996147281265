"""How many steps an exponent needs: the estimate over the length of the run, and its error.

Vogt et al. (2022), Fig. 2 and Sec. 4: spectra of a trained network are flat by about 100 steps, and
their spread over input sequences is small. One long run holds all shorter ones. What the start of
the frame and of the state leave behind fades as 1/T, chance between sequences as 1/√T only; the
published procedure has no warm-up, so that both are in its numbers.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter, LogLocator

from analysis.figures.base import INK, OKABE_ITO, new_picture
from analysis.studies.base import Claim, Finding, Study, Tables, by_rule
from analysis.studies.lab import Lab
from analysis.studies.over_seeds import Mean, mean
from analysis.studies.papers import VOGT
from pipeline.dynamics.spectrum import lyapunov_spectrum
from tasks.base import Bounds
from tasks.base import Config as BaseConfig

_STEPS = "steps T"
_LARGEST = "largest exponent [nats/step]"
_ERROR = "standard error of the run [nats/step]"
_STEP = "difference of λ₁(T) and λ₁(10 T), root mean square [nats/step]"
_WARMUP, _OFF = "warm-up [steps]", "difference from the whole run [nats/step]"
_ENOUGH = 100
_FLAT = 0.1
_SLOPE, _MARGIN = -1.0, 0.25


class VogtConvergence(Study):
    """Largest exponents of trained LSTMs by length of the run, against the whole run."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """What is measured.

        sequences, steps: of the long run, from the zero state and without warm-up, as published.
        """

        sequences: Annotated[int, Bounds(ge=4)] = 16
        steps: Annotated[int, Bounds(ge=400)] = 3200

    config: Config
    paper = VOGT
    item = "Fig. 2"
    title = "How the estimate of the largest exponent converges"
    claims = (
        Claim(
            "flat",
            "A hundred steps are enough: the estimate hardly moves after them.",
            "|λ₁(100) − λ₁(all steps)|, each a mean over sequences: 95 % interval over networks "
            "below 0.1 nats/step",
            "0.1 is ours; networks of one grid differ by about as much",
        ),
        Claim(
            "rate",
            "The estimate settles with the length of the run as 1/T.",
            "slope of log |λ₁(T) − λ₁(10 T)|, root mean square over sequences, against log T: 95 % "
            "interval over networks within -1 ± 0.25",
        ),
        Claim(
            "spread",
            "Ten sequences of a hundred steps tell networks apart: their standard error is small.",
            "standard error of ten sequences of 100 steps: 95 % interval over networks below a "
            "tenth of the exponent's distance from 0",
            "in the published grid it is a thirteenth of the spread between networks",
        ),
        Claim(
            "error_bars",
            "Ours: the spread between sequences states the error that a run of 100 steps has.",
            "standard error by that spread over the difference from the whole run, both root mean "
            "square over networks, without a warm-up as published: between 1/2 and 2",
        ),
    )
    caption = (
        "Left: the largest exponent over the length of the run, mean over sequences, a line a "
        "network; dashed, 100 steps. Right: root mean square over sequences of the difference "
        "between the estimates of T and of 10 T steps; dotted, falls as 1/T and as 1/√T."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Trains the networks, then carries one tangent along many long sequences."""
        lines: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        for group in lab.sweep("trained").groups():
            inputs = group.task.probe_inputs(
                self.config.sequences, self.config.steps, lab.generator("probe")
            ).inputs
            found = lyapunov_spectrum(
                group.network, inputs, k=1, warmup=0, t_on=1,
                generator=[lab.generator("frame", number) for number in group.numbers],
            )  # fmt: skip
            for number, logs_BM in zip(group.numbers, found.block_logs[:, :, 0], strict=True):
                sums_BT = _by_step(logs_BM.numpy(), found.block_steps.numpy())
                lines += self._of(number, sums_BT)
                errors += [_error(number, sums_BT, warmup) for warmup in (0, _ENOUGH)]
        return {"estimates": pd.DataFrame(lines), "errors": pd.DataFrame(errors)}

    def _of(self, network: int, sums_BT: np.ndarray) -> list[dict[str, Any]]:
        """A row a length: the estimate, and how far the one of ten times the length is from it."""
        last = sums_BT.shape[1]
        lines: list[dict[str, Any]] = []
        for steps in sorted({_ENOUGH, last, *np.geomspace(10, last, 24).astype(int).tolist()}):
            values_B = _mean_rate(sums_BT, 0, steps)
            step = math.nan
            if 10 * steps <= last:
                step = math.sqrt(((values_B - _mean_rate(sums_BT, 0, 10 * steps)) ** 2).mean())
            lines.append(
                {"network": network, _STEPS: steps, _LARGEST: values_B.mean(), _STEP: step}
            )
        return lines

    def judge(self, tables: Tables) -> list[Finding]:
        """By intervals over networks."""
        table, errors = tables["estimates"], tables["errors"]
        whole = table.sort_values(_STEPS).groupby("network")[_LARGEST].last()
        cold, warm = (errors[errors[_WARMUP] == w].set_index("network") for w in (0, _ENOUGH))
        distance = mean(cold[_OFF].abs())
        slope = mean(_slope(part) for _, part in table.groupby("network"))
        # Of ten sequences, the error is √(sequences/10) times that of all.
        ten = cold[_ERROR] * np.sqrt(self.config.sequences / 10)
        share = mean(ten / whole.abs())
        ratio, after = (_root(part[_ERROR]) / _root(part[_OFF]) for part in (cold, warm))
        return [
            _finding("flat", f"|λ₁(100) − λ₁({self.config.steps})| = {distance} nats/step",
                     distance, distance.high < _FLAT, "nats/step"),
            _finding("rate", f"The difference falls as T to the power {slope}", slope,
                     slope.low >= _SLOPE - _MARGIN and slope.high <= _SLOPE + _MARGIN, "1"),
            _finding("spread", f"The standard error of ten sequences is {share} of the exponent",
                     share, share.high < _FLAT, "1"),
            Finding(
                "error_bars",
                by_rule(0.5 <= ratio <= 2),
                f"Stated error over difference found, {len(cold)} networks: {ratio:.2f} without a "
                f"warm-up, {after:.2f} after one of {_ENOUGH} steps",
                ratio,
            ),
        ]  # fmt: skip

    def draw(self, tables: Tables) -> Picture:
        """Estimates on the left, differences on the right."""
        table = tables["estimates"]
        picture = new_picture(8, 3.7)
        left, right = picture.subplots(1, 2)
        for place, (_, part) in enumerate(table.groupby("network")):
            colour = OKABE_ITO[place % len(OKABE_ITO)]
            left.plot(part[_STEPS], part[_LARGEST], color=colour)
            right.plot(part[_STEPS], part[_STEP], color=colour)
        left.axvline(_ENOUGH, color=INK, linewidth=0.8, linestyle="--")
        middle = table.dropna(subset=[_STEP]).groupby(_STEPS)[_STEP].median()
        ends = np.array([middle.index[0], middle.index[-1]], dtype=float)
        for power, style, word in ((1.0, ":", "1/T"), (0.5, "-.", "1/√T")):
            right.plot(ends, 2 * middle.iloc[0] * (ends[0] / ends) ** power, color=INK,
                       linestyle=style, label=word)  # fmt: skip
        right.set_yscale("log")
        for ax in (left, right):
            ax.set_xscale("log")
            ax.set_xlabel("steps of the run, T")
            ax.minorticks_off()
        right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        left.set_ylabel(_LARGEST)
        right.set_ylabel("|λ₁(T) − λ₁(10 T)| [nats/step]")
        right.legend()
        return picture


def _by_step(logs_BM: np.ndarray, block_steps_M: np.ndarray) -> np.ndarray:
    """Growth up to each step, (B, T); in straight lines within a block, which is a few steps."""
    ends = np.concatenate([[0], block_steps_M.cumsum()])
    steps = np.arange(1, ends[-1] + 1)
    sums = np.pad(logs_BM.cumsum(-1), ((0, 0), (1, 0)))
    return np.stack([np.interp(steps, ends, row) for row in sums])


def _mean_rate(sums_BT: np.ndarray, start: int, steps: int) -> np.ndarray:
    """Growth a step of each sequence, over `steps` steps from `start` on."""
    before = sums_BT[:, start - 1] if start else 0.0
    return np.asarray((sums_BT[:, start + steps - 1] - before) / steps)


def _error(network: int, sums_BT: np.ndarray, warmup: int) -> dict[str, Any]:
    """What a run of 100 steps says of its error, and the error it has."""
    values_B = _mean_rate(sums_BT, warmup, _ENOUGH)
    # The whole run, too, without what its own start leaves behind.
    whole = _mean_rate(sums_BT, _ENOUGH, sums_BT.shape[1] - _ENOUGH).mean()
    return {
        "network": network,
        _WARMUP: warmup,
        _LARGEST: values_B.mean(),
        _ERROR: values_B.std(ddof=1) / math.sqrt(len(values_B)),
        _OFF: values_B.mean() - whole,
    }


def _slope(part: pd.DataFrame) -> float:
    """Of the logarithm of the difference against that of T."""
    known = part.dropna(subset=[_STEP])
    return float(np.polyfit(np.log(known[_STEPS]), np.log(known[_STEP]), 1)[0])


def _root(values: pd.Series) -> float:
    return math.sqrt(float((values**2).mean()))


def _finding(claim: str, sentence: str, found: Mean, holds: bool, unit: str) -> Finding:
    return Finding(claim, by_rule(holds), sentence, *found, unit)
