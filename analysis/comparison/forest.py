"""A forest plot: one feature's correlation with the final loss in each sweep, with its interval."""

from collections.abc import Sequence
from typing import ClassVar

import pandas as pd
from matplotlib.figure import Figure as Picture

from analysis.comparison.findings import QUESTIONS, bounded, line_of, shared_features
from analysis.comparison.summary import Summary
from analysis.figures.base import INK, OKABE_ITO, new_picture, png

_MAX_FEATURES = 3
_MAX_LETTERS = 26
_TITLES = {
    "spearman": "plain",
    "given_settings": "settings held fixed",
    "given_settings_and_loss": "settings and\nloss seen held fixed",
}


class Forest:
    """One row a sweep, one block a feature, one panel a question."""

    name: ClassVar[str] = "forest"
    title: ClassVar[str] = "Correlation with the final loss, sweep by sweep"
    caption: ClassVar[str] = (
        "One row a sweep: Spearman's ρ of a feature with the final loss, with its 95 % interval, "
        "at the last measurement in the first half of training. Left to right the question gets "
        "stricter; what stays clear of 0 on the right is news. Filled marks leave out 0. Rows of a "
        "block that lie on one side of 0 agree; rows whose intervals do not overlap differ. No "
        "mean is drawn: the sweeps are of different design."
    )

    def data(self, sweeps: Sequence[Summary]) -> pd.DataFrame:
        """Columns: panel, feature, label, sweep, moment, n, value, low, high."""
        lines = []
        for feature, label in list(shared_features(sweeps).items())[:_MAX_FEATURES]:
            for panel in QUESTIONS:
                known = bounded(sweeps, feature, panel)
                for sweep in sweeps:
                    line = line_of(sweep, feature)
                    if line is None or sweep.name not in known:
                        continue
                    number = known[sweep.name]
                    lines.append(
                        {
                            "panel": panel,
                            "feature": feature,
                            "label": label,
                            "sweep": sweep.name,
                            "moment": sweep.moment,
                            "n": int(line["n"]),
                            "value": number.value,
                            "low": number.low,
                            "high": number.high,
                        }
                    )
        return pd.DataFrame(lines)

    def draw(self, table: pd.DataFrame) -> Picture:
        """Blocks from top to bottom in the order of the table."""
        sweeps = list(dict.fromkeys(table["sweep"]))
        place, ticks, heads = _places(table)
        height = max(place.values()) + 1.0
        picture = new_picture(9.6, 1.35 + 0.3 * height)
        axes = picture.subplots(1, len(_TITLES), sharex=True, sharey=True)
        for ax, (panel, title) in zip(axes, _TITLES.items(), strict=True):
            for _, line in table[table["panel"] == panel].iterrows():
                index = sweeps.index(line["sweep"])
                colour = OKABE_ITO[index % len(OKABE_ITO)]
                y = place[line["feature"], line["sweep"]]
                ax.plot([line["low"], line["high"]], [y, y], color=colour, linewidth=1.8)
                is_clear = line["low"] > 0 or line["high"] < 0
                ax.plot(
                    line["value"], y, "s", color=colour, markersize=7,
                    markerfacecolor=colour if is_clear else "white", markeredgewidth=1.6,
                )  # fmt: skip
            ax.axvline(0, color="#374151", linewidth=1)
            ax.set_title(title)
            ax.set_xlim(-1.02, 1.02)
            ax.set_xticks([-0.5, 0, 0.5], ["−0.5", "0", "0.5"])
            ax.grid(axis="y", visible=False)
            ax.tick_params(axis="y", length=0)
        axes[0].set_ylim(height - 0.4, -0.6)
        axes[0].set_yticks(list(ticks), list(ticks.values()))
        for tick, y in zip(axes[0].get_yticklabels(), ticks, strict=True):
            if y in heads:
                tick.set(weight="bold", color=INK)
        picture.supxlabel("rank correlation with the final loss", fontsize=10.5)
        return picture

    def png(self, table: pd.DataFrame) -> bytes:
        """As every figure's."""
        return png(lambda: self.draw(table))


def _places(
    table: pd.DataFrame,
) -> tuple[dict[tuple[str, str], float], dict[float, str], set[float]]:
    """Heights of the marks, the words at each height, and which of these are headings."""
    place, ticks, heads, y = {}, {}, set(), 0.0
    for feature, part in table.groupby("feature", sort=False):
        heads.add(y)
        ticks[y] = str(part["label"].iloc[0])
        for sweep in dict.fromkeys(part["sweep"]):
            y += 1
            place[str(feature), str(sweep)] = y
            ticks[y] = _short(str(sweep))
        y += 1.4
    return place, ticks, heads


def _short(name: str) -> str:
    """The name with its middle left out where it would take the room of the plot."""
    if len(name) <= _MAX_LETTERS:
        return name
    half = (_MAX_LETTERS - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
