"""Three regimes of driven random networks, by the gain of their weights, beside mean-field theory.

Vogt et al. (2022), Fig. 1: spectra of untrained vanilla networks with random input at gains ½, 2
and 10, called stable, near the edge and chaotic. Theory: ½ log χ_1 for the largest exponent
(Molgedey et al. 1992), ⟨log|det J|⟩/N for the mean; white input enters as a random bias does.
"""

from dataclasses import dataclass
from typing import Annotated, Any, cast

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from analysis.figures.base import INK, OKABE_ITO, new_picture
from analysis.studies.base import Claim, Finding, Study, Tables, Verdict, by_interval, by_rule
from analysis.studies.driven_networks import driven_networks, white_noise
from analysis.studies.lab import Lab
from analysis.studies.over_seeds import Mean, mean
from analysis.studies.papers import VOGT
from pipeline.dynamics.meanfield import largest_exponent, mean_exponent
from pipeline.dynamics.spectrum import lyapunov_spectrum
from tasks.base import Bounds
from tasks.base import Config as BaseConfig
from tasks.networks.layers import Initialiser

STABLE, EDGE, CHAOTIC = 0.5, 2.0, 10.0
_NEAR_ZERO = 0.1
_TOLERANCE = 0.01
_MATRICES: tuple[Initialiser, ...] = ("gaussian", "orthogonal")


class VogtRegimes(Study):
    """Spectra at three gains, and the largest exponent over many."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """How networks are measured.

        units: N. strength: σ_x of the white input.
        gains: g of the curve over gains; the three regimes are measured besides.
        sequences, warmup, steps: of each network.
        """

        units: Annotated[int, Bounds(ge=10)] = 200
        strength: Annotated[float, Bounds(gt=0)] = 1.0
        gains: tuple[Annotated[float, Bounds(gt=0)], ...] = (1.0, 1.5, 3.0, 5.0)
        sequences: Annotated[int, Bounds(ge=1)] = 2
        warmup: Annotated[int, Bounds(ge=1)] = 100
        steps: Annotated[int, Bounds(ge=10)] = 200

    config: Config
    paper = VOGT
    item = "Fig. 1"
    title = "Stable, near the edge, chaotic: random driven networks"
    claims = (
        Claim(
            "stable",
            "At gain 1/2 the dynamics is stable: the largest exponent is negative.",
            "95 % interval over networks of the largest exponent below 0",
        ),
        Claim(
            "edge",
            "At gain 2 it is near the edge of chaos: the largest exponent is close to 0.",
            "95 % interval over networks within ±0.1 nats/step",
            "0.1 is ours: a tenth of the size of the exponents at the other two gains",
        ),
        Claim(
            "chaotic",
            "At gain 10 it is chaotic: the largest exponent is positive.",
            "95 % interval over networks of the largest exponent above 0",
        ),
        Claim(
            "theory",
            "Infinitely wide networks explain the numbers.",
            "mean over networks of the largest exponent within 0.01 nats/step of mean-field theory "
            "at every gain up to 2",
            "ours; mean-field theory of driven networks, Molgedey et al. (1992)",
        ),
        Claim(
            "orthogonal",
            "Random orthogonal matrices show the same three regimes.",
            "95 % intervals below 0 at gain 1/2, above 0 at 10, within ±0.1 nats/step at 2",
            "the caption of Fig. 1 names both kinds, so both are run",
        ),
    )
    caption = (
        "Left: all exponents of one network at each of the three gains, in order; dotted, the mean "
        "of all exponents that mean-field theory foretells. Right: the largest exponent over the "
        "gain, with 95 % intervals over networks, and its mean-field value."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Largest exponents of every network, spectra of the first of each gain, theory."""
        lines: list[dict[str, object]] = []
        spectra: list[dict[str, object]] = []
        for init in _MATRICES:
            for gain in sorted({*self.config.gains, STABLE, EDGE, CHAOTIC}):
                is_shown = gain in (STABLE, EDGE, CHAOTIC)
                if init == "orthogonal" and not is_shown:
                    continue
                exponents_NK = self._exponents(lab, gain, init, whole=is_shown)
                for network, exponents in enumerate(exponents_NK):
                    known: dict[str, object] = {
                        "matrix": init,
                        "gain": gain,
                        "network": network,
                        "largest exponent [nats/step]": max(exponents),
                    }
                    if is_shown:
                        known["mean exponent [nats/step]"] = sum(exponents) / len(exponents)
                    lines.append(known)
                if is_shown:
                    spectra += [
                        {"matrix": init, "gain": gain, "i/N": (i + 0.5) / len(exponents_NK[0]),
                         "exponent [nats/step]": value}
                        for i, value in enumerate(sorted(exponents_NK[0], reverse=True))
                    ]  # fmt: skip
        return {
            "largest": pd.DataFrame(lines),
            "spectra": pd.DataFrame(spectra),
            "theory": pd.DataFrame(self._theory()),
        }

    def _exponents(
        self, lab: Lab, gain: float, init: Initialiser, *, whole: bool
    ) -> list[list[float]]:
        """Of each network, all or the largest."""
        config = self.config
        network = driven_networks(
            config.units,
            [gain] * lab.seeds,
            init,
            [lab.generator(init, gain, seed) for seed in range(lab.seeds)],
        )
        inputs = white_noise(
            config.sequences,
            config.warmup + config.steps,
            config.units,
            config.strength,
            lab.generator("input"),
        )
        found = lyapunov_spectrum(
            network, inputs, k=None if whole else 1, warmup=config.warmup, steps=config.steps
        )
        exponents: list[list[float]] = found.exponents.tolist()
        return exponents

    def _theory(self) -> list[dict[str, object]]:
        strength = self.config.strength
        gains = sorted(
            {*self.config.gains, STABLE, EDGE, CHAOTIC, *(0.5 * 1.05**i for i in range(62))}
        )
        return [
            {
                "matrix": init,
                "gain": gain,
                "largest exponent [nats/step]": largest_exponent(gain, strength),
                "mean exponent [nats/step]": mean_exponent(gain, strength, weights=init),
            }
            for init in ("gaussian", "orthogonal")
            for gain in gains
        ]

    def judge(self, tables: Tables) -> list[Finding]:
        """By intervals over networks at each gain."""
        at = {
            cast(tuple[str, float], key): mean(part["largest exponent [nats/step]"])
            for key, part in tables["largest"].groupby(["matrix", "gain"])
        }
        random, rotation = (
            {gain: at[matrix, gain] for gain in (STABLE, EDGE, CHAOTIC)} for matrix in _MATRICES
        )
        stable, edge, chaotic = (random[gain] for gain in (STABLE, EDGE, CHAOTIC))
        theory = tables["theory"].set_index(["matrix", "gain"])["largest exponent [nats/step]"]
        off = {
            gain: at["gaussian", gain].value - float(theory["gaussian", gain])
            for matrix, gain in at
            if matrix == "gaussian" and gain <= EDGE
        }
        worst = max(off, key=lambda gain: abs(off[gain]))
        return [
            _finding("stable", f"λ₁ = {stable} nats/step at gain 1/2", stable,
                     by_interval(-stable.high, -stable.low)),
            _finding("edge", f"λ₁ = {edge} nats/step at gain 2", edge, by_rule(_is_near(edge))),
            _finding("chaotic", f"λ₁ = {chaotic} nats/step at gain 10", chaotic,
                     by_interval(chaotic.low, chaotic.high)),
            Finding(
                "theory",
                by_rule(abs(off[worst]) <= _TOLERANCE),
                f"The largest difference from theory at gains up to 2 is {off[worst]:+.4f} "
                f"nats/step, at gain {worst:g}",
                off[worst], min(off.values()), max(off.values()), "nats/step",
            ),
            _finding(
                "orthogonal",
                f"With orthogonal matrices λ₁ = {rotation[STABLE]}, {rotation[EDGE]} and "
                f"{rotation[CHAOTIC]} nats/step at gains 1/2, 2 and 10",
                rotation[EDGE],
                by_rule(
                    rotation[STABLE].high < 0 < rotation[CHAOTIC].low and _is_near(rotation[EDGE])
                ),
            ),
        ]  # fmt: skip

    def draw(self, tables: Tables) -> Picture:
        """Spectra on the left, the largest exponent over the gain on the right."""
        picture = new_picture(8, 3.7)
        left, right = picture.subplots(1, 2)
        _draw_spectra(left, tables)
        theory = tables["theory"][tables["theory"]["matrix"] == "gaussian"]
        right.axhline(0, color=INK, linewidth=0.8)
        right.plot(theory["gain"], theory["largest exponent [nats/step]"], color="#6b7280",
                   linewidth=1.5, label="mean-field theory")  # fmt: skip
        styles: dict[str, dict[str, Any]] = {
            "gaussian": {"marker": "o", "markersize": 4.5},
            "orthogonal": {"marker": "s", "markersize": 8, "markerfacecolor": "none"},
        }
        for colour, (matrix, style) in zip(OKABE_ITO, styles.items(), strict=False):
            part = tables["largest"][tables["largest"]["matrix"] == matrix]
            found = {gain: mean(each["largest exponent [nats/step]"])
                     for gain, each in part.groupby("gain")}  # fmt: skip
            right.errorbar(
                list(found),
                [m.value for m in found.values()],
                [m.high - m.value for m in found.values()],
                linestyle="none",
                color=colour,
                capsize=3,
                label=f"{matrix} matrices",
                **style,
            )
        right.set_xscale("log")
        right.set_xticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
        right.minorticks_off()
        right.set(xlabel="gain g", ylabel="largest exponent [nats/step]")
        right.legend()
        return picture


def _draw_spectra(ax: Axes, tables: Tables) -> None:
    ax.axhline(0, color=INK, linewidth=0.8)
    theory = tables["theory"].set_index(["matrix", "gain"])["mean exponent [nats/step]"]
    shown = tables["spectra"][tables["spectra"]["matrix"] == "gaussian"]
    for colour, (gain, part) in zip(OKABE_ITO, shown.groupby("gain"), strict=False):
        ax.plot(part["i/N"], part["exponent [nats/step]"], color=colour, label=f"g = {gain:g}")
        ax.axhline(theory["gaussian", gain], color=colour, linewidth=1, linestyle=":")
    ax.set_yscale("symlog", linthresh=1)
    ticks = (-50, -20, -10, -5, -2, -1, 0, 1)
    ax.set_yticks(ticks, [f"{tick}" for tick in ticks])
    ax.set(xlabel="place in the spectrum, i/N", ylabel="exponent [nats/step]")
    ax.legend(loc="lower left")


def _is_near(found: Mean) -> bool:
    return found.low > -_NEAR_ZERO and found.high < _NEAR_ZERO


def _finding(claim: str, sentence: str, found: Mean, verdict: Verdict) -> Finding:
    return Finding(claim, verdict, sentence, *found, "nats/step")
