"""Which inputs matter most to a recurrent network: what local exponents and adjoints foretell.

The submission flips the pixels where the leading local R is largest and finds a larger effect than
at random places. Beside its score stand the R of the next step, of the next five, the adjoint
exponent log ‖∂h_T/∂x_t‖ that a reviewer asked for, and the plain gradient of the loss, which needs
the label. Local R is largest early on, where units start from h = 0 unsaturated (column
steps_to_end). k places of every test sequence are changed, and the loss compared; a pixel x becomes
1 − x, a step of the other tasks gets a pulse of fixed size in a random direction.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from torch import Tensor

from analysis.figures.base import INK, OKABE_ITO, new_picture
from analysis.statistics import holm
from analysis.studies.base import Claim, Finding, Study, Tables
from analysis.studies.input_scores import (
    ADJOINT,
    GRADIENT,
    LOCAL,
    NEXT,
    NEXT_FIVE,
    RANDOM,
    at_the_end,
    first_sequences,
    scores,
)
from analysis.studies.lab import Group, Lab
from analysis.studies.papers import SUBSPACES
from analysis.studies.sigmas import effects, finding, pick
from tasks.base import Batch, Bounds
from tasks.base import Config as BaseConfig
from tasks.networks.base import Network

_PARTS = {
    "digits": "digits, pixel by pixel (RNN)",
    "recall": "delayed recall (RNN)",
    "lorenz": "Lorenz forecast (GRU)",
}
_CLAIMED = (["loss_increase", LOCAL], ["loss_increase", ADJOINT])
_CLAIMED_OF_DIGITS = (["output_change", LOCAL], ["loss_over_gradient", ADJOINT])
_COLOURS = dict(zip((ADJOINT, GRADIENT, LOCAL, NEXT, NEXT_FIVE), OKABE_ITO, strict=False))
_RULE = (
    "Increase of the loss minus that at random places: above 0 by more than 3 standard errors over "
    "training seeds, with its 95 % interval."
)


class SubspacesPerturbation(Study):
    """Changed inputs and what they do, by how their places were chosen."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """How inputs are changed.

        sequences: test sequences. counts: k, how many steps of each are changed.
        judged: the k that each claim looks at, of a length of some 64 steps or less.
        pulse: size of what is added to an input that is no pixel.
        """

        sequences: Annotated[int, Bounds(ge=2)] = 200
        counts: tuple[Annotated[int, Bounds(ge=1)], ...] = (1, 2, 4, 8, 16)
        judged: Annotated[int, Bounds(ge=1)] = 8
        judged_short: Annotated[int, Bounds(ge=1)] = 4
        pulse: Annotated[float, Bounds(gt=0)] = 1.0

    config: Config
    paper = SUBSPACES
    item = "Figs. 3 and 4, Table 1"
    title = "Inputs that matter are told by adjoint exponents, not by local ones"
    claims = (
        *(
            Claim(
                f"local_{part}",
                f"Inputs at steps of large local R matter more than others ({name}).",
                _RULE,
            )
            for part, name in _PARTS.items()
        ),
        *(
            Claim(
                f"adjoint_{part}",
                f"Inputs of large adjoint exponent matter more than others ({name}).",
                _RULE,
                "reviewers of the submission",
            )
            for part, name in _PARTS.items()
        ),
        Claim(
            "logits",
            "Changed places of large local R move the outputs more (digits).",
            "Root mean square change of the logits minus that at random places: more than 3 σ over "
            "training seeds, as above.",
        ),
        Claim(
            "baseline",
            "Adjoint exponents tell more than the gradient of the loss does (digits).",
            "Increase of the loss at places of large adjoint exponent minus that at places of "
            "large gradient: more than 3 σ over training seeds, as above.",
            "reviewers of the submission",
        ),
    )
    caption = (
        "Increase of the test loss when k inputs of a sequence are changed, minus that at k random "
        "places, by what their places were chosen for. Means over training seeds with 95 % "
        "intervals; no effect is 0."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables changes (a row a network, choice and k), effects against random, networks."""
        changes, networks = [], []
        for part in _PARTS:
            trained = lab.sweep(part)
            scores = trained.frame.trials[["test_loss", "test_score"]].rename_axis("network")
            networks.append(scores.reset_index().assign(data=part))
            for group in trained.groups("end"):
                for member, number in enumerate(group.numbers):
                    one = copy.deepcopy(group.network)
                    one.select([member])
                    rows = self._changed(one, group, lab, part, number)
                    changes.append(pd.DataFrame(rows).assign(data=part, network=number))
        table = pd.concat(changes, ignore_index=True)
        return {
            "changes": table,
            "effects": _against(table, RANDOM, self._judged(table)),
            "networks": pd.concat(networks, ignore_index=True),
        }

    def _judged(self, table: pd.DataFrame) -> dict[str, int]:
        """k that is judged, by data set."""
        is_long = table.groupby("data")["steps"].first() >= 8 * self.config.judged
        short, long = self.config.judged_short, self.config.judged
        return {str(part): long if found else short for part, found in is_long.items()}

    def _changed(
        self, network: Network, group: Group, lab: Lab, part: str, number: int
    ) -> Iterator[dict[str, Any]]:
        """What changes do to one network."""
        batch = first_sequences(group.task, "test", self.config.sequences)
        steps = batch.inputs.shape[1]
        by_choice = scores(network, group.task, batch, lab.generator(part, number, "frame"))
        by_choice[RANDOM] = torch.rand(
            by_choice[LOCAL].shape, generator=lab.generator(part, number, "places")
        )
        other = self._other(batch.inputs, part, lab.generator(part, "pulses"))
        before, loss = at_the_end(network, group.task, batch)
        for choice, score_BT in by_choice.items():
            order_BT = score_BT.argsort(dim=1, descending=True)
            for k in self.config.counts:
                if k > steps // 2:
                    continue
                places = torch.zeros_like(score_BT, dtype=torch.bool)
                places.scatter_(1, order_BT[:, :k], True)
                inputs = torch.where(places[..., None], other, batch.inputs)
                after, changed = at_the_end(network, group.task, Batch(inputs, batch.targets))
                yield {
                    "choice": choice,
                    "k": k,
                    "steps": steps,
                    "loss_increase": (changed - loss).mean().item(),
                    "output_change": (after - before).square().mean().sqrt().item(),
                    "answers_changed": _share_changed(before, after),
                    "input_before": batch.inputs[places].mean().item(),
                    "steps_to_end": (steps - 1 - order_BT[:, :k]).double().mean().item(),
                }

    def _other(self, inputs: Tensor, part: str, generator: torch.Generator) -> Tensor:
        """What inputs become where they are changed."""
        if part == "digits":
            flipped: Tensor = 1 - inputs
            return flipped
        direction = torch.randn(inputs.shape, generator=generator, dtype=torch.float64)
        size = torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
        pulse: Tensor = (direction / size).to(inputs) * self.config.pulse
        return inputs + pulse

    def judge(self, tables: Tables) -> list[Finding]:
        """By the rows of effects at the k that was named in advance."""
        table = tables["effects"]
        judged = table[table["is_judged"]]
        found = []
        for key, choice in (("local", LOCAL), ("adjoint", ADJOINT)):
            for part, name in _PARTS.items():
                row = pick(judged, data=part, choice=choice, measure="loss_increase")
                told = (
                    f"On {name}, changing the k = {row['k']} inputs of largest "
                    f"{'local R' if key == 'local' else 'adjoint exponent'} raises the loss by "
                    f"{row['here']:.3g}, random ones by {row['there']:.3g}; the difference is"
                )
                found.append(finding(f"{key}_{part}", row, told))
        logits = pick(judged, data="digits", choice=LOCAL, measure="output_change")
        baseline = pick(judged, data="digits", choice=ADJOINT, measure="loss_over_gradient")
        return [
            *found,
            finding(
                "logits",
                logits,
                f"Logits move by {logits['here']:.3g} at places of large local R, by "
                f"{logits['there']:.3g} at random ones; the difference is",
            ),
            finding(
                "baseline",
                baseline,
                f"The loss rises by {baseline['here']:.3g} where the adjoint exponent is large, by "
                f"{baseline['there']:.3g} where the gradient is; the difference is",
            ),
        ]

    def draw(self, tables: Tables) -> Picture:
        """A panel a data set: effects by k."""
        table = tables["effects"]
        table = table[table["measure"] == "loss_increase"]
        picture = new_picture(8.0, 3.7)
        axes = picture.subplots(1, len(_PARTS))
        for ax, (part, name) in zip(axes, _PARTS.items(), strict=True):
            self._draw(ax, table[table["data"] == part], name)
        axes[0].set_ylabel("loss increase minus that at random")
        handles, labels = axes[0].get_legend_handles_labels()
        picture.legend(handles, labels, loc="outside lower center", ncols=3)
        return picture

    def _draw(self, ax: Axes, table: pd.DataFrame, name: str) -> None:
        for place, (choice, colour) in enumerate(_COLOURS.items()):
            rows = table[table["choice"] == choice].sort_values("k")
            bars = np.array([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])
            # Beside each other, for some coincide.
            x = rows["k"] * 2 ** (0.1 * (place - 2))
            style = f"{'osD^v'[place]}-"
            ax.errorbar(
                x, rows["mean"], bars, fmt=style, markersize=4, color=colour, label=choice, lw=1.2
            )
        ax.axhline(0, color=INK, linewidth=0.9)
        counts = sorted(table["k"].unique())
        ax.set_xscale("log", base=2)
        ax.set_xticks(counts, [str(k) for k in counts])
        ax.set(xlabel="inputs changed, k")
        ax.set_title(name, fontsize=9.5)


def _share_changed(before: Tensor, after: Tensor) -> float:
    """Share of sequences whose largest output is another one."""
    return (before.argmax(-1) != after.argmax(-1)).double().mean().item()


def _against(table: pd.DataFrame, null: str, judged: dict[str, int]) -> pd.DataFrame:
    """Effects of every choice minus those of `null` in the same network; and adjoint − gradient."""
    parts = []
    for measure, column, other in (
        ("loss_increase", "loss_increase", null),
        ("output_change", "output_change", null),
        ("answers_changed", "answers_changed", null),
        ("loss_over_gradient", "loss_increase", GRADIENT),
    ):
        keys = ["data", "k", "network"]
        there = table[table["choice"] == other].set_index(keys)[column].rename("there")
        here = table[table["choice"] != other].rename(columns={column: "here"})
        if other == GRADIENT:
            here = here[here["choice"] == ADJOINT]
        rows = here[[*keys, "choice", "here"]].join(there, on=keys)
        parts.append(rows.assign(measure=measure, effect=rows["here"] - rows["there"]))
    each = pd.concat(parts, ignore_index=True)
    by = ["data", "measure", "choice", "k"]
    found = effects(each, by, "effect")
    found = found.join(each.groupby(by)[["here", "there"]].mean(), on=by)
    found["is_judged"] = found["k"] == found["data"].map(judged)
    # All that the picture shows is tabled; what is tested are the claims, named in advance.
    cases = zip(found["data"], found["measure"], found["choice"], strict=True)
    is_claimed = found["is_judged"] & np.array(
        [case in _CLAIMED or (d == "digits" and case in _CLAIMED_OF_DIGITS) for d, *case in cases]
    )
    found["holm_p"] = holm(found["p"].where(is_claimed).to_numpy(float))
    return found
