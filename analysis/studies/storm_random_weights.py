"""Wide networks need not learn their hidden weights: errors with and without, by width.

Storm et al. (2024), Fig. 3(a): networks of L = 2 hidden layers of N units learn the circle with all
their weights, or with hidden weights as drawn and only the output layer learned. With thresholds 0
the latter cannot work: tanh makes such a network odd in its input, and the circle's classes are
even. So hidden thresholds are drawn here as well, and the case of thresholds 0 is shown beside.
"""

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure as Picture

from analysis.figures.base import OKABE_ITO, new_picture, widen_scale
from analysis.studies.base import Claim, Finding, Study, Tables, by_interval, by_rule
from analysis.studies.lab import Lab
from analysis.studies.over_seeds import mean
from analysis.studies.papers import STORM
from analysis.studies.storm_statistics import difference
from tasks.base import Config as BaseConfig

WAYS = {
    "all": "all weights learned",
    "output": "output learned, random thresholds",
    "no_thresholds": "output learned, thresholds 0",
}
_FALL, _WIDE_ERROR, _NARROW_LOSS, _WIDE_LOSS = 0.1, 0.03, 0.05, 0.02
_CHANCE = (0.4, 0.6)


class StormRandomWeights(Study):
    """Test errors by width and by what is learned."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Has no settings of its own."""

    paper = STORM
    item = "Fig. 3(a)"
    title = "Wide networks classify with random hidden weights"
    claims = (
        Claim(
            "wide",
            "With random hidden weights, wide networks learn the problem and narrow ones do not.",
            "Test error of the narrowest minus that of the widest networks with held hidden "
            "layers: 95 % interval above 10 points; and the widest err on less than 3 % on "
            "average.",
        ),
        Claim(
            "narrow",
            "Narrow networks must learn their hidden weights.",
            "Error of the narrowest networks with held hidden layers minus that with all learned: "
            "95 % interval above 5 points.",
        ),
        Claim(
            "same",
            "For wide networks it makes little difference.",
            "The same for the widest networks: 95 % interval below 2 points.",
        ),
        Claim(
            "parity",
            "Without thresholds random tanh layers cannot learn the circle at any width.",
            "Mean error with held hidden layers and thresholds 0 is between 40 % and 60 % at every "
            "width.",
            reference="follows from symmetry; the paper does not say how thresholds were chosen",
        ),
    )
    caption = (
        "Share of test points classified wrongly by width N, for networks of two hidden layers. "
        "Means over networks with 95 % intervals; dots are networks."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Table errors: network, width, way, test_error."""
        rows = []
        for part, way in (("all", "all"), ("output", "output"), ("no_thresholds", "no_thresholds")):
            trials = lab.sweep(part).frame.trials
            rows.append(
                pd.DataFrame(
                    {
                        "network": trials.index,
                        "width": trials["network.width"].astype(int),
                        "way": way,
                        "test_error": 1 - trials["test_score"].astype(float),
                    }
                )
            )
        return {"errors": pd.concat(rows, ignore_index=True)}

    def judge(self, tables: Tables) -> list[Finding]:
        """By differences of mean errors."""
        table = tables["errors"]
        cell = {
            (way, width): table[(table["way"] == way) & (table["width"] == width)]["test_error"]
            for way in WAYS
            for width in table["width"].unique()
        }
        widths = sorted(table["width"].unique())
        thin, wide = widths[0], widths[-1]
        fall = difference(cell["output", thin], cell["output", wide])
        narrow = difference(cell["output", thin], cell["all", thin])
        same = difference(cell["output", wide], cell["all", wide])
        left = float(cell["output", wide].mean())
        odd = {width: float(cell["no_thresholds", width].mean()) for width in widths}
        verdict = by_interval(fall.low, fall.high, above=_FALL)
        if verdict == "reproduced" and not left < _WIDE_ERROR:
            verdict = "not reproduced"
        return [
            Finding(
                "wide",
                verdict,
                f"With hidden layers held, the error falls from "
                f"{cell['output', thin].mean():.1%} at N = {thin} to {left:.2%} at N = {wide}.",
                *fall,
            ),
            Finding(
                "narrow",
                by_interval(narrow.low, narrow.high, above=_NARROW_LOSS),
                f"At N = {thin} holding the hidden layers costs {narrow} in error; all learned, it "
                f"is {cell['all', thin].mean():.1%}.",
                *narrow,
            ),
            Finding(
                "same",
                by_interval(-same.high, -same.low, above=-_WIDE_LOSS),
                f"At N = {wide} it costs {same}; all learned, the error is "
                f"{cell['all', wide].mean():.2%}.",
                *same,
            ),
            Finding(
                "parity",
                by_rule(all(_CHANCE[0] <= error <= _CHANCE[1] for error in odd.values())),
                f"With thresholds 0 the error is {min(odd.values()):.1%} to "
                f"{max(odd.values()):.1%} from N = {thin} to {wide}.",
                max(odd.values(), key=lambda error: abs(error - 0.5)),
                min(odd.values()),
                max(odd.values()),
            ),
        ]

    def draw(self, tables: Tables) -> Picture:
        """Errors and widths on logarithmic axes, a colour a way."""
        table = tables["errors"]
        picture = new_picture(6.4, 4.3)
        ax = picture.subplots()
        for colour, marker, (way, words) in zip(OKABE_ITO, "osD", WAYS.items(), strict=False):
            mine = table[table["way"] == way]
            by_width = mine.groupby("width")["test_error"]
            found = {width: mean(values) for width, values in by_width}
            centre = [m.value for m in found.values()]
            # A logarithmic axis has no place for the end of an interval below 0.
            down = [min(m.value - m.low, 0.95 * m.value) for m in found.values()]
            up = [m.high - m.value for m in found.values()]
            ax.errorbar(
                [float(str(width)) for width in found],
                centre,
                yerr=[down, up],
                color=colour,
                marker=marker,
                markersize=5,
                label=words,
            )
            ax.plot(mine["width"], mine["test_error"], ".", color=colour, markersize=4, alpha=0.35)
        widen_scale(ax, "x", table["width"], 2)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
        ax.set(xlabel="width N", ylabel="test error (%)")
        picture.legend(loc="outside upper center", ncols=2)
        return picture
