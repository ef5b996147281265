"""Where gradients of recurrent networks point in the frames of Lyapunov vectors, through training.

Reviewers of the submission asked fourteen things; where each is answered:

Q1  many tests              ranks, epochs and criteria stand in conf and claims; Holm's p beside p
Q2  three standard errors   over ten independently trained networks (`sigmas`), here and in S2.3
Q3  other data              delayed recall beside digits, here and in `subspaces_perturbation`
Q4  adjoint, covariant      vectors by name in table `vectors`; biorthogonality is a test of `clv`
Q5  through saturation      epochs 0 to 50, gradient norm and halves of the batch in table `norms`
Q6  h_0                     zero everywhere; the first and last quarter of the steps do not count
Q7  null models             chance m/N, shuffled labels, the untrained network (epoch 0)
Q8  self-averaging          `subspaces_identity`: spread of local R against N
Q9  small k                 every rank in table `spans`, every number of flips in S2.3
Q10 architectures, losses   S2.3: GRU and squared error beside RNN and cross-entropy
Q11 change of logits        S2.3: with its interval
Q12 prior work              Mikhaeil et al., NeurIPS 2022: why forward vectors take over with time
Q13 notation                `dynamics.gradients`
Q14 usefulness              `subspaces_usefulness`: pruning, inputs; `flossing_recall`

In runs as short as these the covariant and adjoint vectors have not settled (their residual is on
record): θ₁, which is f₁ in the long run, is not here. Spans are therefore of backward and forward
vectors. Training seeds are seeds of weights: networks of one data set see their batches in
the same order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from analysis.figures.base import OKABE_ITO, new_picture
from analysis.frame import SweepFrame
from analysis.studies.base import Claim, Finding, Study, Tables
from analysis.studies.lab import Lab
from analysis.studies.papers import SUBSPACES
from analysis.studies.sigmas import effects, finding, pick
from tasks.base import Bounds
from tasks.base import Config as BaseConfig

_QUANTITY = "gradient_alignment"
_SPANS = ("backward", "forward", "backward_shuffled", "forward_shuffled", "halves")
_VECTORS = ("backward", "forward", "covariant", "adjoint")
_TASKS = {"digits": "digits, pixel by pixel", "recall": "delayed recall"}
_GREY = "#6b7280"
_COLOURS = {"backward": OKABE_ITO[0], "forward": OKABE_ITO[1]}
_QUESTIONS = {
    "early": (
        "The gradient turns into the leading directions of Q early in training",
        "A_{5,5} with backward vectors (Q) at epoch 5 minus that before training: above 0 by more "
        "than 3 standard errors over training seeds, with its 95 % interval.",
    ),
    "lasting": (
        "and stays there through saturation",
        "A_{5,5} at the last epoch minus that before training: the same rule.",
    ),
    "labels": (
        "which it would not with shuffled labels",
        "A_{5,5} at epoch 5 minus that of the gradient with targets shuffled: the same rule.",
    ),
    "adjoint": (
        "Far from the loss, what is back-propagated follows the leading adjoint (forward) vector, "
        "not the leading Q",
        "Squared cosine of δ_t with f₁ minus that with q₁ at the longest horizon that counts, "
        "epoch 5: the same rule.",
    ),
}


class SubspacesAlignment(Study):
    """Shares of the gradient by epoch, rank and horizon."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        rank: k = m that is judged. early: the epoch that is.
        """

        rank: Annotated[int, Bounds(ge=1)] = 5
        early: Annotated[int, Bounds(ge=1)] = 5

    config: Config
    paper = SUBSPACES
    item = "Figs. 1 and 2"
    title = "Gradients align with Lyapunov subspaces, and through saturation"
    claims = tuple(
        Claim(f"{key}_{part}", f"{says} ({name}).", criterion)
        for part, name in _TASKS.items()
        for key, (says, criterion) in _QUESTIONS.items()
    )
    caption = (
        "Left: share of the five leading left singular vectors of ∇_V L in the span of five "
        "backward (Q) or forward (adjoint) Lyapunov vectors, by epoch; dashed: the same with "
        "targets shuffled; grey: chance. Middle: at epoch 5, by number of vectors. Right: squared "
        "cosine of dL/dh_t with the leading vector of each kind, by steps to the loss. Means over "
        "training seeds with 95 % intervals."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables spans, vectors, horizons, norms (all by network), effects, means."""
        found: dict[str, list[pd.DataFrame]] = {}
        for part in _TASKS:
            frame = lab.sweep(part).frame
            for name, table in _tables(frame).items():
                table.insert(0, "data", part)
                found.setdefault(name, []).append(table)
        tables = {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}
        judged = pd.concat(
            [t.assign(data=p, question=q) for p in _TASKS for q, t in self._effects(tables, p)]
        )
        return {**tables, "effects": effects(judged, ["data", "question"], "effect")}

    def _effects(self, tables: Tables, part: str) -> Iterator[tuple[str, pd.DataFrame]]:
        """What each claim looks at, a row a network."""
        spans, horizons = tables["spans"], tables["horizons"]
        spans = spans[(spans["data"] == part) & (spans["vectors"] == self.config.rank)]
        early, last = self.config.early, int(spans["epoch"].max())

        def share(basis: str, epoch: int) -> pd.Series:
            rows = spans[(spans["basis"] == basis) & (spans["epoch"] == epoch)]
            return rows.set_index("network")["share"]

        far = horizons[(horizons["data"] == part) & (horizons["epoch"] == early)]
        far = far[far["steps_to_loss"] == far["steps_to_loss"].max()]
        cosine = far.pivot(index="network", columns="basis", values="squared_cosine")
        at_early = share("backward", early)
        for name, effect in (
            ("early", at_early - share("backward", 0)),
            ("lasting", share("backward", last) - share("backward", 0)),
            ("labels", at_early - share("backward_shuffled", early)),
            ("adjoint", cosine["forward"] - cosine["backward"]),
        ):
            yield name, effect.rename("effect").rename_axis("network").reset_index()

    def judge(self, tables: Tables) -> list[Finding]:
        """Each claim by its row of effects."""
        found = []
        for part, name in _TASKS.items():
            levels = _levels(tables["spans"], part, self.config.rank)
            told = ", ".join(f"{share:.3f} at epoch {epoch}" for epoch, share in levels.items())
            subject = {
                "early": f"On {name} the share goes from {told}; by epoch {self.config.early} it "
                "changes by",
                "lasting": f"On {name}, from the first to the last epoch the share changes by",
                "labels": f"On {name} the share exceeds that with shuffled labels by",
                "adjoint": f"On {name}, far from the loss, the squared cosine with f₁ exceeds that "
                "with q₁ by",
            }
            for key in _QUESTIONS:
                row = pick(tables["effects"], data=part, question=key)
                found.append(finding(f"{key}_{part}", row, subject[key]))
        return found

    def draw(self, tables: Tables) -> Picture:
        """A row a data set: by epoch, by rank, by horizon."""
        picture = new_picture(8.0, 5.0)
        axes = picture.subplots(len(_TASKS), 3)
        spans, horizons, early = tables["spans"], tables["horizons"], self.config.early
        for row, (part, name) in enumerate(_TASKS.items()):
            mine = spans[spans["data"] == part]
            judged = mine[mine["vectors"] == self.config.rank]
            at_early = mine[mine["epoch"] == early]
            far = horizons[(horizons["data"] == part) & (horizons["epoch"] == early)]
            by_epoch, by_rank, by_horizon = axes[row]
            for basis, colour in _COLOURS.items():
                label = f"{basis} ({'Q' if basis == 'backward' else 'adjoint'})"
                _line(by_epoch, judged, basis, "epoch", "share", colour, label)
                shuffled = f"{basis}_shuffled"
                told = "labels shuffled" if basis == "forward" else ""
                _line(by_epoch, judged, shuffled, "epoch", "share", colour, told, "--")
                _line(by_rank, at_early, basis, "vectors", "share", colour, label)
                _line(by_horizon, far, basis, "steps_to_loss", "squared_cosine", colour, label)
            by_epoch.axhline(judged["chance"].iloc[0], color=_GREY, linewidth=1, label="chance")
            chance = at_early.groupby("vectors")["chance"].first()
            by_rank.plot(chance.index, chance, color=_GREY, linewidth=1)
            by_horizon.axhline(mine["chance"].min(), color=_GREY, linewidth=1)
            by_epoch.set_xscale("symlog", linthresh=1, linscale=0.5)
            epochs = sorted(judged["epoch"].unique())
            by_epoch.set_xticks(epochs, [str(e) for e in epochs], fontsize=8)
            by_epoch.minorticks_off()
            by_epoch.set_xlim(-0.1, epochs[-1] * 1.15)
            by_epoch.set(ylabel=f"{name}\nshare of gradient", ylim=(0, None))
            by_rank.set(ylim=(0, None))
            by_horizon.set(ylim=(0, None), ylabel="squared cosine")
        for ax, label in zip(
            axes[-1], ("epoch", "number of vectors", "steps to the loss"), strict=True
        ):
            ax.set_xlabel(label)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        picture.legend(handles, labels, loc="outside upper center", ncols=4)
        return picture


def _tables(frame: SweepFrame) -> dict[str, pd.DataFrame]:
    """Readings by network, with ranks, horizons and chance from their details."""
    details = frame.details(f"{_QUANTITY}.backward")
    (ranks,), (chance,) = details["ranks"], details["chance"]
    (horizons,) = frame.details(f"{_QUANTITY}.horizon_backward")["horizons"]
    spans = _read(frame, _SPANS, "", "rank", "share")
    spans["vectors"] = spans["rank"].map(dict(enumerate(ranks)))
    spans["chance"] = spans["rank"].map(dict(enumerate(chance)))
    vectors = _read(frame, _VECTORS, "delta_", "vector", "squared_cosine")
    vectors["vector"] += 1
    far = _read(frame, tuple(_COLOURS), "horizon_", "horizon", "squared_cosine")
    far["steps_to_loss"] = far["horizon"].map(dict(enumerate(horizons)))
    scalars = frame.scalars
    wanted = [f"{_QUANTITY}.norm", f"{_QUANTITY}.noise", "val_loss", "val_accuracy"]
    norms = scalars[scalars["quantity"].isin(wanted)]
    norms = norms[norms["epoch"].isin(spans["epoch"].unique())]
    return {
        "spans": spans.drop(columns="rank"),
        "vectors": vectors,
        "horizons": far.drop(columns="horizon"),
        "norms": norms.rename(columns={"trial": "network"})[
            ["network", "epoch", "quantity", "value"]
        ],
    }


def _read(
    frame: SweepFrame, names: tuple[str, ...], prefix: str, axis: str, value: str
) -> pd.DataFrame:
    parts = []
    for name in names:
        rows = frame.spectra(f"{_QUANTITY}.{prefix}{name}").rename(
            columns={"trial": "network", "value": value}
        )
        parts.append(rows.assign(basis=name)[["network", "epoch", "basis", axis, value]])
    return pd.concat(parts, ignore_index=True)


def _levels(spans: pd.DataFrame, part: str, rank: int) -> pd.Series:
    rows = spans[(spans["data"] == part) & (spans["vectors"] == rank)]
    levels: pd.Series = rows[rows["basis"] == "backward"].groupby("epoch")["share"].mean()
    return levels


def _line(
    ax: Axes,
    table: pd.DataFrame,
    basis: str,
    x: str,
    y: str,
    colour: str,
    label: str,
    style: str = "-",
) -> None:
    """Mean over networks with its interval."""
    rows = effects(table[table["basis"] == basis], [x], y).sort_values(x)
    ax.plot(rows[x], rows["mean"], style, color=colour, label=label, linewidth=1.5)
    if style == "-":
        ax.fill_between(rows[x], rows["low"], rows["high"], color=colour, alpha=0.18, linewidth=0)
