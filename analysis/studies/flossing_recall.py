"""Gradient flossing lets more recurrent networks bridge a long delay (Engelken 2023).

Each network is trained twice from the same weights: by the loss alone, and with its leading
exponents pulled to 0 in the first epochs. And, which the paper does not ask: do the exponents
before training tell which of those that fail are rescued?
"""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Picture
from numpy.typing import ArrayLike
from scipy import optimize, stats

from analysis.figures.base import INK, OKABE_ITO, new_picture
from analysis.frame import SweepFrame
from analysis.studies.base import Claim, Finding, Study, Tables, by_interval
from analysis.studies.lab import Lab
from analysis.studies.over_seeds import Mean, mean
from analysis.studies.papers import ENGELKEN
from tasks.base import Bounds
from tasks.base import Config as BaseConfig

GAIN = "gain of the start weights"
LARGEST = "largest exponent before training [nats/step]"
ACCURACY, EPOCHS, DISTANCE = (
    "final accuracy",
    "epochs until solved",
    "mean |exponent| after flossing [nats/step]",
)
PLAIN, FLOSSED = "without flossing", "with flossing"
OUTCOME, BOTH, RESCUED, LOST, NEITHER = (
    "outcome",
    "solved either way",
    "rescued",
    "lost",
    "never solved",
)
_NONE = Mean(math.nan, math.nan, math.nan)
_COLOURS = {PLAIN: OKABE_ITO[1], FLOSSED: OKABE_ITO[0]}


class FlossingRecall(Study):
    """Who solves the task with and without flossing, how fast, and from which exponents."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """What is looked at.

        solved: accuracy from which on a network has solved the task.
        flossed_until: last epoch with flossing, after which exponents are compared.
        """

        solved: Annotated[float, Bounds(gt=0, lt=1)] = 0.9
        flossed_until: Annotated[int, Bounds(ge=1)] = 4

    config: Config
    paper = ENGELKEN
    item = "Tasks with long delays"
    title = "Gradient flossing and the share of networks that bridge a delay"
    claims = (
        Claim(
            "exponents",
            "Flossing brings the leading exponents near 0.",
            "Mean |λ_i| of the measured exponents after the flossed epochs, without minus with "
            "flossing, network by network: 95 % interval above 0.",
        ),
        Claim(
            "success",
            "Flossing raises the share of networks that solve a task with a long delay.",
            "Share solved with minus without flossing, network by network: 95 % interval above 0.",
        ),
        Claim(
            "speed",
            "Networks converge faster with it.",
            "Of networks that solve the task either way, epochs until solved, without minus with "
            "flossing: 95 % interval above 0.",
        ),
        Claim(
            "foretold",
            "Of the networks that fail without flossing, those whose largest exponent before "
            "training lies lower are the ones it rescues.",
            "Probability that a rescued network's largest exponent is below that of one never "
            "solved: 95 % interval above 1/2.",
            "asked here; the paper does not",
        ),
    )
    caption = (
        "Left: share of networks that have solved the task by an epoch; the grey band is where "
        "flossing acts. Middle: share solved at the end against the gain of the start weights, "
        "with 95 % intervals (Wilson). Right: largest exponent before training, by what became of "
        "the network without and with flossing; a dot a network."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables networks (one row each) and epochs (share solved by then)."""
        parts = {PLAIN: lab.sweep("plain").frame, FLOSSED: lab.sweep("flossed").frame}
        frames = {word: _accuracies(frame) for word, frame in parts.items()}
        table = (
            parts[PLAIN].params[["network.init_scale"]].rename(columns={"network.init_scale": GAIN})
        )
        table[LARGEST] = _scalar(parts[PLAIN], "lyapunov.max", 0)
        for word, frame in parts.items():
            distance = frame.spectra("lyapunov.spectrum", epochs=[self.config.flossed_until])
            sizes = distance["value"].abs().groupby(distance["trial"]).mean()
            table[f"{ACCURACY}, {word}"] = frames[word].iloc[:, -1]
            table[f"{EPOCHS}, {word}"] = _first(frames[word], self.config.solved)
            table[f"{DISTANCE}, {word}"] = sizes
        ended = [table[f"{ACCURACY}, {word}"] >= self.config.solved for word in (PLAIN, FLOSSED)]
        table[OUTCOME] = np.select(
            [ended[0] & ended[1], ~ended[0] & ended[1], ended[0] & ~ended[1]],
            [BOTH, RESCUED, LOST],
            NEITHER,
        )
        epochs = [
            pd.DataFrame(
                {"training": word, "epoch": found.columns, "networks": len(table)}
                | {"share solved": (found >= self.config.solved).sum().to_numpy() / len(table)}
            )
            for word, found in frames.items()
        ]
        networks = table.rename_axis("network").reset_index()
        return {"networks": networks, "epochs": pd.concat(epochs, ignore_index=True)}

    def judge(self, tables: Tables) -> list[Finding]:
        """Differences between the two trainings of a network, and one probability of order."""
        table = tables["networks"]
        distances = [table[f"{DISTANCE}, {word}"] for word in (PLAIN, FLOSSED)]
        count = table[OUTCOME].value_counts().reindex([BOTH, RESCUED, LOST, NEITHER], fill_value=0)
        gained = mean((table[OUTCOME] == RESCUED).astype(float) - (table[OUTCOME] == LOST))
        both = table[table[OUTCOME] == BOTH]
        saved = (
            mean(both[f"{EPOCHS}, {PLAIN}"] - both[f"{EPOCHS}, {FLOSSED}"]) if len(both) else _NONE
        )
        nearer = mean((distances[0] - distances[1]).dropna())
        solved = [int(count[BOTH] + count[kind]) for kind in (LOST, RESCUED)]
        return [
            _finding(
                "exponents",
                nearer,
                f"Mean |λ| is {distances[0].mean():.3g} without and {distances[1].mean():.3g} "
                f"with flossing, {nearer} less.",
                "nats/step",
            ),
            _finding(
                "success",
                gained,
                f"{solved[0]} of {len(table)} networks solve it without and {solved[1]} with "
                f"flossing ({count[RESCUED]} rescued, {count[LOST]} lost), a share larger by "
                f"{gained}.",
            ),
            _finding(
                "speed",
                saved,
                f"Of the {len(both)} networks that solve it either way, epochs until solved, "
                f"without minus with flossing, are {saved}.",
                "epochs",
            ),
            self._foretold(table),
        ]

    def _foretold(self, table: pd.DataFrame) -> Finding:
        rescued, never = (table[table[OUTCOME] == word] for word in (RESCUED, NEITHER))
        order = lower(rescued[LARGEST], never[LARGEST])
        by_gain = lower(rescued[GAIN], never[GAIN])
        wins, pairs = 0.0, 0
        for gain, mine in rescued.groupby(GAIN):
            others = never.loc[never[GAIN] == gain, LARGEST]
            pairs += len(mine) * len(others)
            wins += _wins(mine[LARGEST], others)
        within = f"{wins / pairs:.2f}" if pairs else "unknown"
        return _finding(
            "foretold",
            order,
            f"A rescued network's exponent is the lower one with probability {order} "
            f"({len(rescued)} rescued, {len(never)} never solved). But the gain alone has "
            f"{by_gain}, and in the {pairs} pairs of equal gain it is {within}.",
            above=0.5,
        )

    def draw(self, tables: Tables) -> Picture:
        """Epochs, gains, and exponents by outcome."""
        table, epochs = tables["networks"], tables["epochs"]
        picture = new_picture(8.4, 3.1)
        left, middle, right = picture.subplots(1, 3, width_ratios=[1, 1, 1.25])
        left.axvspan(0, self.config.flossed_until, color="#e5e7eb", alpha=0.7, linewidth=0)
        for word, part in epochs.groupby("training", sort=False):
            left.plot(part["epoch"], part["share solved"], color=_COLOURS[str(word)], label=word)
        left.set(xlabel="epoch", ylabel="share of networks solved", ylim=(-0.03, 1.03))
        left.legend(loc="lower right", fontsize=8.5, handlelength=1.1)
        for place, word in enumerate((PLAIN, FLOSSED)):
            ended = table[f"{ACCURACY}, {word}"] >= self.config.solved
            shares = ended.groupby(table[GAIN]).agg(["sum", "count"])
            tests = [stats.binomtest(int(k), int(n)) for k, n in shares.to_numpy()]
            bounds = [test.proportion_ci(method="wilson") for test in tests]
            share = (shares["sum"] / shares["count"]).to_numpy()
            middle.errorbar(
                shares.index.to_numpy() + 0.05 * (place - 0.5),
                share,
                # Rounding may put a bound beyond the share itself.
                np.clip([share - [b.low for b in bounds], [b.high for b in bounds] - share], 0, 1),
                color=_COLOURS[word], marker="o", markersize=4.5, capsize=2,
            )  # fmt: skip
        middle.set(xlabel="gain of the start weights", ylim=(-0.03, 1.03))
        middle.tick_params(labelleft=False)
        words = [BOTH, RESCUED, NEITHER, LOST]
        for place, word in enumerate(words):
            x = table.loc[table[OUTCOME] == word, LARGEST].sort_values()
            height = place + 0.22 * np.sin(2.4 * np.arange(len(x)))
            right.plot(x, height, "o", color=INK, alpha=0.55, markersize=4, markeredgewidth=0)
        sizes = [int((table[OUTCOME] == word).sum()) for word in words]
        labels = [f"{word}\n({size})" for word, size in zip(words, sizes, strict=True)]
        right.set_yticks(range(len(words)), labels)
        right.set(xlabel="largest exponent before training\n[nats/step]", ylim=(3.5, -0.5))
        return picture


def lower(first: ArrayLike, second: ArrayLike) -> Mean:
    """Probability that one of the first is below one of the second, ties counting half.

    Its 95 % interval is that of Newcombe (2006, method 5): all probabilities from which the one
    found is no further than 1.96 of the errors (Hanley & McNeil 1982) that they themselves imply.
    NaN where one of the two is empty.

    >>> print(lower([1.0, 2.0], [3.0, 4.0, 5.0]))
    1 [0.439, 1]
    """
    m, n = np.size(first), np.size(second)
    if not m * n:
        return _NONE
    found, normal = _wins(first, second) / (m * n), float(stats.norm.ppf(0.975))

    def excess(p: float) -> float:
        middle = (m + n) / 2 - 1
        spread = 1 + middle * (1 - p) / (2 - p) + middle * p / (1 + p)
        return (found - p) ** 2 - normal**2 * p * (1 - p) * spread / (m * n)

    # At 0 and at 1 nothing is left to vary, so that these solve the equation too.
    inside = min(max(found, 1e-9), 1 - 1e-9)
    low = optimize.brentq(excess, 0, inside) if found > 0 else 0.0
    high = optimize.brentq(excess, inside, 1) if found < 1 else 1.0
    return Mean(found, float(low), float(high))


def _wins(first: ArrayLike, second: ArrayLike) -> float:
    """Pairs of which the first is the lower one; ties count half."""
    gaps = np.subtract.outer(np.asarray(second, float), np.asarray(first, float))
    return float((gaps > 0).sum() + 0.5 * (gaps == 0).sum())


def _finding(
    claim: str, found: Mean, words: str, unit: str = "1", *, above: float = 0.0
) -> Finding:
    verdict = by_interval(found.low, found.high, above=above)
    return Finding(claim, verdict, words, found.value, found.low, found.high, unit)


def _scalar(frame: SweepFrame, quantity: str, epoch: int) -> pd.Series:
    rows = frame.scalars
    rows = rows[(rows["quantity"] == quantity) & (rows["epoch"] == epoch)]
    values: pd.Series = rows.set_index("trial")["value"]
    return values


def _accuracies(frame: SweepFrame) -> pd.DataFrame:
    """Validation accuracy, a row a trial and a column an epoch; NaN after one that diverged."""
    rows = frame.scalars
    rows = rows[rows["quantity"] == "val_accuracy"]
    return rows.pivot(index="trial", columns="epoch", values="value").reindex(frame.params.index)


def _first(accuracies: pd.DataFrame, solved: float) -> pd.Series:
    """The first epoch at which the task is solved, NaN where it never is."""
    is_solved = accuracies >= solved
    first: pd.Series = is_solved.idxmax(axis=1).where(is_solved.any(axis=1)).astype(float)
    return first
