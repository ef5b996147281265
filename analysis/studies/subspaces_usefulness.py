"""What is decided by Lyapunov diagnostics, and what that gains: the reviewers' last question.

Two decisions. Pruning: of networks with sampled settings one half may go on after a few epochs,
chosen by the validation loss so far, or by that and a diagnostic together (the sum of ranks); what
is gained is how much better the kept half ends. The diagnostic's own time is not charged, in its
favour. Input selection: some steps are left out for good, replaced by their mean, chosen on the
validation set by the adjoint exponent log ‖∂h_T/∂x_t‖, which needs no labels; what is gained is the
test loss that this saves against steps drawn by chance and against those of the smallest gradient
of the loss, which needs them. The third decision, a regulariser, is that of `flossing_recall`.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from scipy.stats import rankdata

from analysis import words
from analysis.figures.base import INK, OKABE_ITO, new_picture
from analysis.frame import SweepFrame
from analysis.resampling import bca
from analysis.studies.base import Claim, Finding, Study, Tables, by_interval
from analysis.studies.input_scores import (
    ADJOINT,
    GRADIENT,
    RANDOM,
    adjoint_exponents,
    at_the_end,
    first_sequences,
    loss_gradients,
)
from analysis.studies.lab import Lab, Trained
from analysis.studies.papers import SUBSPACES
from analysis.studies.sigmas import effects, finding, pick
from tasks.base import Batch, Bounds, Task
from tasks.base import Config as BaseConfig
from tasks.networks.base import Network

_PARTS = {"digits": "digits, pixel by pixel", "recall": "delayed recall"}
ALIGNMENT, EXPONENT, REACH = "alignment", "largest exponent", "input exponents"
LOSS, CHANCE = "loss", "chance"
_DIAGNOSTICS = {
    "alignment": (ALIGNMENT, "how much of the gradient lies in the leading directions of Q"),
    "exponent": (EXPONENT, "how close the largest exponent is to 0"),
    "reach": (REACH, "how little gradients fade or explode from input to input"),
}
_REFERENCE = "reviewers of the submission"
_COLOURS = {ADJOINT: OKABE_ITO[0], GRADIENT: OKABE_ITO[1], RANDOM: OKABE_ITO[2]}
_DRAWS = 20


class SubspacesUsefulness(Study):
    """Gains of decisions, in nats of the loss."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        early: the epoch after which half of the networks are kept. rank: k = m of the alignment.
        resamples: bootstrap resamples of the networks. sequences: of the validation set, on which
        inputs are selected. shares: of the steps that are left out. judged: the one of them that
        claims look at.
        """

        early: Annotated[int, Bounds(ge=1)] = 3
        rank: Annotated[int, Bounds(ge=1)] = 5
        resamples: Annotated[int, Bounds(ge=100)] = 2000
        sequences: Annotated[int, Bounds(ge=2)] = 200
        shares: tuple[Annotated[float, Bounds(gt=0, lt=1)], ...] = (0.125, 0.25, 0.5)
        judged: Annotated[float, Bounds(gt=0, lt=1)] = 0.25

    config: Config
    paper = SUBSPACES
    item = "Q14 in the reviews"
    title = "Decisions by Lyapunov diagnostics, and what they gain"
    claims = (
        *(
            Claim(
                f"{key}_{part}",
                f"Early on, {says} helps to choose the networks worth training ({name}).",
                "Mean final validation loss of the half kept by the loss after the early epoch, "
                f"minus that of the half kept by the sum of ranks of loss and {diagnostic}: its "
                "95 % bootstrap interval over networks above 0.",
                _REFERENCE,
            )
            for part, name in _PARTS.items()
            for key, (diagnostic, says) in _DIAGNOSTICS.items()
        ),
        *(
            Claim(
                f"{key}_{part}",
                f"Inputs of small adjoint exponent are left out at less cost than {than} ({name}).",
                "Rise of the test loss with a quarter of the steps replaced by their means, "
                f"{than} minus those of the smallest mean exponent: above 0 by more than 3 "
                "standard errors over networks, with its 95 % interval.",
                _REFERENCE,
            )
            for part, name in _PARTS.items()
            for key, than in (
                ("random", "those drawn by chance"),
                ("gradient", "those of small loss gradient"),
            )
        ),
    )
    caption = (
        "Left: how much better the half of the networks ends that was kept by the loss so far and "
        "a diagnostic, or by a diagnostic alone, than the half kept by the loss; with 95 % "
        "bootstrap intervals over networks; to the left of the line the decision was worse. Right: "
        "rise of the test loss of the better half when a share of the steps is replaced by their "
        "means, by how these steps were chosen; means over networks with 95 % intervals."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables networks, decisions (a row a rule), masks (by network), costs (against others)."""
        networks, decisions, masks = [], [], []
        for part in _PARTS:
            trained = lab.sweep(part)
            table = self._networks(trained.frame)
            networks.append(table.assign(data=part))
            rng = np.random.default_rng(lab.seed(part, "resamples"))
            decisions.append(decided(table, self.config.resamples, rng).assign(data=part))
            best = table.nsmallest(len(table) // 2, "final_loss")["network"]
            masks.append(pd.DataFrame(self._masked(trained, set(best), lab, part)))
        each = pd.concat(masks, ignore_index=True)
        return {
            "networks": pd.concat(networks, ignore_index=True),
            "decisions": pd.concat(decisions, ignore_index=True),
            "masks": each,
            "costs": _saved(each[each["share"] == self.config.judged]),
        }

    def _networks(self, frame: SweepFrame) -> pd.DataFrame:
        """What was known of each network after the early epoch, and how it ended."""
        early = self.config.early
        (ranks,) = frame.details("gradient_alignment.backward")["ranks"]

        def at(quantity: str, **place: int) -> pd.Series:
            rows = frame.spectra(quantity, epochs=[early])
            for axis, index in place.items():
                rows = rows[rows[axis] == index]
            return rows.set_index("trial")["value"]

        seen = frame.scalars[frame.scalars["epoch"] == early]
        scalars = seen.pivot(index="trial", columns="quantity", values="value")
        table = pd.DataFrame(
            {
                "early_loss": scalars["val_loss"],
                ALIGNMENT: at("gradient_alignment.backward", rank=ranks.index(self.config.rank)),
                EXPONENT: at("lyapunov.spectrum", exponent=0),
                REACH: scalars["input_ftle.slope"],
                "final_loss": frame.target,
            }
        )
        return table.dropna(subset="final_loss").rename_axis("network").reset_index()

    def _masked(
        self, trained: Trained, only: set[int], lab: Lab, part: str
    ) -> Iterator[dict[str, object]]:
        """Rises of the loss, network by network."""
        for group in trained.groups("end", only=only):
            for member, number in enumerate(group.numbers):
                one = copy.deepcopy(group.network)
                one.select([member])
                generator = lab.generator(part, number, "places")
                for row in self._rises(one, group.task, generator):
                    yield {"data": part, "network": number, **row}

    def _rises(
        self, network: Network, task: Task, generator: torch.Generator
    ) -> Iterator[dict[str, object]]:
        seen = first_sequences(task, "validation", self.config.sequences)
        unseen = first_sequences(task, "test", None)
        means_T = seen.inputs.mean(0)
        _, loss = at_the_end(network, task, unseen)
        steps = len(means_T)
        orders = {
            ADJOINT: [adjoint_exponents(network, seen).mean(0).argsort()],
            GRADIENT: [loss_gradients(network, task, seen).mean(0).argsort()],
            RANDOM: [torch.randperm(steps, generator=generator) for _ in range(_DRAWS)],
        }
        for share in self.config.shares:
            count = max(1, round(share * steps))
            for name, drawn in orders.items():
                rises = []
                for order in drawn:
                    inputs = unseen.inputs.clone()
                    inputs[:, order[:count]] = means_T[order[:count]]
                    _, masked = at_the_end(network, task, Batch(inputs, unseen.targets))
                    rises.append((masked - loss).mean().item())
                yield {
                    "choice": name,
                    "share": share,
                    "steps": count,
                    "loss_increase": float(np.mean(rises)),
                }

    def judge(self, tables: Tables) -> list[Finding]:
        """Pruning by its interval, selection by its sigmas."""
        decisions, costs, found = tables["decisions"], tables["costs"], []
        count = len(_PARTS) * len(_DIAGNOSTICS)
        for part, name in _PARTS.items():
            rows = decisions[decisions["data"] == part].to_dict("records")
            mine: dict[str, dict[Any, Any]] = {row["rule"]: row for row in rows}
            by_loss, by_chance = (mine[rule]["kept_loss"] for rule in (LOSS, CHANCE))
            for key, (diagnostic, _) in _DIAGNOSTICS.items():
                row = mine[both(diagnostic)]
                gain, low, high = (float(row[c]) for c in ("gain", "low", "high"))
                told = (
                    f"On {name}, of {row['networks']} networks the half kept by loss and "
                    f"{diagnostic} after epoch {self.config.early} ends at "
                    f"{row['kept_loss']:.3g} nats, that kept by the loss at {by_loss:.3g}, one "
                    f"drawn by chance at {by_chance:.3g}; the gain is "
                    f"{words.estimate(gain, low, high)} nats (one of {count} such intervals, "
                    "uncorrected)."
                )
                verdict = by_interval(low, high)
                found.append(Finding(f"{key}_{part}", verdict, told, gain, low, high, "nats"))
        for part, name in _PARTS.items():
            for key, other, which in (
                ("random", RANDOM, "drawn by chance"),
                ("gradient", GRADIENT, "of smallest loss gradient"),
            ):
                cost = pick(costs, data=part, choice=other)
                told = (
                    f"On {name}, leaving out the {cost['steps']} steps of smallest exponent raises "
                    f"the loss by {cost['there']:.3g} nats, those {which} by {cost['here']:.3g}; "
                    "the difference is"
                )
                found.append(finding(f"{key}_{part}", cost, told, "nats"))
        return found

    def draw(self, tables: Tables) -> Picture:
        """A row a data set: gains of decisions, rises of the loss."""
        picture = new_picture(8.0, 5.4)
        axes = picture.subplots(len(_PARTS), 2, width_ratios=(1.15, 1))
        for (left, right), (part, name) in zip(axes, _PARTS.items(), strict=True):
            decisions = tables["decisions"]
            _draw_gains(left, decisions[decisions["data"] == part])
            left.set_title(name, fontsize=9.5, loc="left")
            _draw_rises(right, tables["masks"][tables["masks"]["data"] == part])
        axes[-1, 0].set_xlabel("gain in final loss over the loss alone [nats]")
        axes[-1, 1].set_xlabel("share of steps left out")
        handles, labels = axes[0, 1].get_legend_handles_labels()
        picture.legend(handles, labels, loc="outside upper right", ncols=3)
        return picture


def both(diagnostic: str) -> str:
    """The rule that sums ranks of the loss and of a diagnostic."""
    return f"loss and {diagnostic}"


def decided(networks: pd.DataFrame, resamples: int, rng: np.random.Generator) -> pd.DataFrame:
    """What each rule keeps: rule, networks, kept_loss, gain over the loss with low and high.

    networks: early_loss, the diagnostics and final_loss, a row a network. An interval is BCa's over
    networks, which are drawn anew and decided anew.
    """
    final = networks["final_loss"].to_numpy(float)
    loss = networks["early_loss"].to_numpy(float)
    scores = {
        ALIGNMENT: -networks[ALIGNMENT].to_numpy(float),
        EXPONENT: np.abs(networks[EXPONENT].to_numpy(float)),
        REACH: np.abs(networks[REACH].to_numpy(float)),
    }

    def kept(rule: str, drawn: np.ndarray) -> float:
        if rule == CHANCE:
            return float(final[drawn].mean())
        alone = rule.removeprefix("loss and ")
        rank = np.zeros(len(drawn))
        if rule == LOSS or alone != rule:
            rank += _ranks(loss[drawn])
        if rule != LOSS:
            rank += _ranks(scores[alone][drawn])
        best = np.argsort(rank, kind="stable")[: max(1, len(drawn) // 2)]
        # In one order, so that the same networks have the same mean to the last digit.
        return float(np.sort(final[drawn][best]).mean())

    n, everyone = len(networks), np.arange(len(networks))
    draws = rng.integers(0, n, (resamples, n))
    without = [np.delete(everyone, i) for i in range(n)]

    def in_all(rule: str) -> tuple[float, np.ndarray, np.ndarray]:
        """As it is, in resamples, and without each network."""
        resampled, left_out = (np.array([kept(rule, d) for d in each]) for each in (draws, without))
        return kept(rule, everyone), resampled, left_out

    at_best, *theirs = in_all(LOSS)
    rows = []
    for rule in (LOSS, CHANCE, *scores, *map(both, scores)):
        value, *ours = in_all(rule)
        gain, low, high = at_best - value, math.nan, math.nan
        if rule != LOSS:
            resampled, left_out = (a - b for a, b in zip(theirs, ours, strict=True))
            levels, _ = bca(gain, resampled, left_out)
            low, high = np.quantile(resampled, levels)
        rows.append((rule, n, value, gain, float(low), float(high)))
    return pd.DataFrame(rows, columns=["rule", "networks", "kept_loss", "gain", "low", "high"])


def _ranks(values: np.ndarray) -> np.ndarray:
    """0 for the smallest; what is no number comes last."""
    ranks: np.ndarray = rankdata(np.where(np.isnan(values), np.inf, values))
    return ranks


def _saved(masks: pd.DataFrame) -> pd.DataFrame:
    """Rises of the loss by other choices minus that by adjoint exponents, in the same networks."""
    keys = ["data", "network"]
    ours = masks[masks["choice"] == ADJOINT].set_index(keys)["loss_increase"].rename("there")
    others = masks[masks["choice"] != ADJOINT].rename(columns={"loss_increase": "here"})
    each = others.join(ours, on=keys)
    each["effect"] = each["here"] - each["there"]
    by = ["data", "choice"]
    found = effects(each, by, "effect")
    return found.join(each.groupby(by)[["here", "there", "steps"]].mean(), on=by).astype(
        {"steps": int}
    )


def _draw_gains(ax: Axes, decisions: pd.DataFrame) -> None:
    table = decisions[~decisions["rule"].isin([LOSS, CHANCE])].iloc[::-1]
    for place, row in enumerate(table.to_dict("records")):
        colour = INK if row["rule"].startswith("loss and ") else "#6b7280"
        ax.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.5)
        ax.plot(row["gain"], place, "o", color=colour, markersize=5)
    ax.axvline(0, color=INK, linewidth=0.9)
    ax.set_yticks(range(len(table)), list(table["rule"]))
    ax.set_ylim(-0.6, len(table) - 0.4)
    ax.grid(axis="y", visible=False)


def _draw_rises(ax: Axes, masks: pd.DataFrame) -> None:
    for place, (choice, colour) in enumerate(_COLOURS.items()):
        rows = effects(masks[masks["choice"] == choice], ["share"], "loss_increase")
        x = rows["share"] * 2 ** (0.06 * (place - 1))
        bars = np.array([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])
        ax.errorbar(
            x, rows["mean"], bars, fmt=f"{'osD'[place]}-", markersize=4, color=colour, label=choice
        )
    shares = sorted(masks["share"].unique())
    ax.set_xscale("log", base=2)
    ax.set_xticks(shares, [f"{100 * share:g} %" for share in shares])
    ax.minorticks_off()
    ax.set_ylabel("rise of the test loss [nats]")
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
