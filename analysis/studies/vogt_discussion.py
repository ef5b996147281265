"""Three remarks of the paper's discussion: extensive spectra, stabilising input, 2 N exponents.

Vogt et al. (2022), Sec. 5. Extensive: over i/N, the spectrum of a random network does not depend on
N. Input: the stronger it is, the smaller the largest exponent; mean-field theory says where it
crosses 0. 2 N exponents: a network of N LSTM units has a state of 2 N numbers, (h, c), but the
published spectra hold c fixed; which of the two tells how fast the network itself forgets is
decided by two copies of it that differ by a little in their states.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Picture

from analysis.figures.base import INK, OKABE_ITO, new_picture
from analysis.studies.base import Claim, Finding, Study, Tables, Verdict, by_interval, by_rule
from analysis.studies.driven_networks import driven_networks, white_noise
from analysis.studies.forgetting import forgetting_rate
from analysis.studies.lab import Group, Lab
from analysis.studies.over_seeds import Mean, mean
from analysis.studies.papers import VOGT
from pipeline.dynamics.meanfield import largest_exponent
from pipeline.dynamics.spectrum import lyapunov_spectrum
from tasks.base import Bounds
from tasks.base import Config as BaseConfig
from tasks.networks.base import StateConvention

_N, _NETWORK, _PLACE, _EXPONENT = "units N", "network", "i/N", "exponent [nats/step]"
_LARGEST, _STRENGTH = "largest exponent [nats/step]", "strength of the input"
_HIDDEN, _FULL, _FORGETS = (
    "largest exponent, hidden state [nats/step]",
    "largest exponent, full state [nats/step]",
    "rate at which copies approach [nats/step]",
)
_STATES: dict[str, StateConvention] = {_HIDDEN: "hidden", _FULL: "full"}
_PLACES = np.linspace(0.05, 0.9, 18)
_SAME = 0.05


class VogtDiscussion(Study):
    """Spectra over sizes, exponents over input strengths, and forgetting measured directly."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """What is measured.

        sizes: N of the random networks, at `gain`, with input of unit strength.
        strengths: of the input, for networks of the middle size.
        sequences, warmup, steps: of random networks.
        forgetting: steps over which copies of a trained network approach each other.
        """

        sizes: tuple[Annotated[int, Bounds(ge=10)], ...] = (50, 100, 200)
        gain: Annotated[float, Bounds(gt=0)] = 2.0
        strengths: tuple[Annotated[float, Bounds(ge=0)], ...] = (0.25, 0.5, 1.0, 1.5, 2.0)
        sequences: Annotated[int, Bounds(ge=1)] = 2
        warmup: Annotated[int, Bounds(ge=1)] = 100
        steps: Annotated[int, Bounds(ge=10)] = 200
        forgetting: Annotated[int, Bounds(ge=20)] = 60

    config: Config
    paper = VOGT
    item = "Sec. 5"
    title = "Extensive spectra, stabilising input, and 2 N exponents"
    claims = (
        Claim(
            "extensive",
            "Spectra are extensive: over i/N they do not depend on N.",
            "root mean square difference between the largest size and the next, i/N from 0.05 to "
            "0.9, over the spectrum's own standard deviation: 95 % interval over networks below "
            "0.05",
            "0.05 is ours; size and place are left open in the paper",
        ),
        Claim(
            "input",
            "Input stabilises: the stronger it is, the smaller the largest exponent.",
            "largest exponent at the weakest input minus that at the strongest, same weights: 95 % "
            "interval over networks above 0, and decreasing in the mean at every step between",
        ),
        Claim(
            "crossing",
            "Ours: mean-field theory says at which strength chaos ends.",
            "means over networks and theory agree in sign wherever theory is further from 0 than "
            "0.02 nats/step",
        ),
        Claim(
            "full",
            "The 2 N exponents of the full state tell what the N of the hidden state do not.",
            "forgetting of trained LSTMs measured by two copies: its distance from the largest "
            "hidden exponent minus that from the largest full one, 95 % interval over networks "
            "above 0",
        ),
    )
    caption = (
        "Left: spectra of random networks of several sizes over i/N, first network of each. "
        "Middle: largest exponent over the strength of the input, with 95 % intervals over "
        "networks, and mean-field theory. Right: how fast trained LSTMs forget, against their "
        "largest exponents; on the line the exponent tells the rate."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Random networks first, then LSTMs that have been trained."""
        forgetting = [
            line for group in lab.sweep("trained").groups() for line in self._forgetting(lab, group)
        ]
        return {
            "spectra": pd.concat([self._spectra(lab, size) for size in self.config.sizes]),
            "input": pd.DataFrame(self._input(lab)),
            "forgetting": pd.DataFrame(forgetting),
        }

    def _exponents(self, lab: Lab, size: int, strength: float, k: int | None) -> list[list[float]]:
        config = self.config
        generators = [lab.generator("weights", size, seed) for seed in range(lab.seeds)]
        network = driven_networks(size, [config.gain] * lab.seeds, "gaussian", generators)
        length = config.warmup + config.steps
        inputs = white_noise(config.sequences, length, size, strength, lab.generator("input"))
        found = lyapunov_spectrum(network, inputs, k=k, warmup=config.warmup)
        exponents: list[list[float]] = found.exponents.tolist()
        return exponents

    def _spectra(self, lab: Lab, size: int) -> pd.DataFrame:
        parts = []
        for network, exponents in enumerate(self._exponents(lab, size, 1.0, None)):
            places = (np.arange(size) + 0.5) / size
            values = sorted(exponents, reverse=True)
            parts.append(
                pd.DataFrame({_N: size, _NETWORK: network, _PLACE: places, _EXPONENT: values})
            )
        return pd.concat(parts)

    def _input(self, lab: Lab) -> list[dict[str, Any]]:
        size = sorted(self.config.sizes)[len(self.config.sizes) // 2]
        return [
            {
                _STRENGTH: strength,
                _NETWORK: network,
                _LARGEST: exponents[0],
                "mean-field theory [nats/step]": largest_exponent(self.config.gain, strength),
            }
            for strength in sorted(self.config.strengths)
            for network, exponents in enumerate(self._exponents(lab, size, strength, 1))
        ]

    def _forgetting(self, lab: Lab, group: Group) -> list[dict[str, Any]]:
        """Of each network: both largest exponents, and the rate at which two copies approach."""
        config = self.config
        length = config.warmup + config.forgetting
        inputs = group.task.probe_inputs(8, length, lab.generator("probe")).inputs
        frame = lab.generator("frame")
        exponents = {
            name: lyapunov_spectrum(
                group.network, inputs, k=1, state=state, warmup=config.warmup,
                generator=frame.manual_seed(lab.seed("frame")),
            ).exponents[:, 0].tolist()
            for name, state in _STATES.items()
        }  # fmt: skip
        rates = forgetting_rate(group.network, inputs, config.warmup, lab.generator("offset"))
        return [
            {_NETWORK: number, **{name: found[i] for name, found in exponents.items()},
             _FORGETS: rates[i]}
            for i, number in enumerate(group.numbers)
        ]  # fmt: skip

    def judge(self, tables: Tables) -> list[Finding]:
        """By intervals over networks."""
        difference, sizes = _between_sizes(tables["spectra"])
        table = tables["input"].pivot(index=_NETWORK, columns=_STRENGTH, values=_LARGEST)
        fall = mean(table.iloc[:, 0] - table.iloc[:, -1])
        falls_on = bool((table.mean().diff().dropna() < 0).all())
        theory = tables["input"].groupby(_STRENGTH)["mean-field theory [nats/step]"].first()
        is_clear = theory.abs() > 0.02
        agree = np.sign(table.mean()[is_clear]) == np.sign(theory[is_clear])
        forgets = tables["forgetting"]
        off = {name: (forgets[_FORGETS] - forgets[name]).abs() for name in (_HIDDEN, _FULL)}
        gain = mean(off[_HIDDEN] - off[_FULL])
        return [
            _finding("extensive", f"Spectra of {sizes[0]} and {sizes[1]} units differ by "
                     f"{difference} of their standard deviation", difference,
                     by_interval(-difference.high, -difference.low, above=-_SAME), "1"),
            _finding("input", f"From strength {table.columns[0]:g} to {table.columns[-1]:g} the "
                     f"largest exponent falls by {fall} nats/step, "
                     f"{'at every step between' if falls_on else 'not at every step between'}",
                     fall, by_interval(fall.low, fall.high) if falls_on else "not reproduced"),
            Finding("crossing", by_rule(bool(agree.all())),
                    f"Networks and theory agree in sign at {int(agree.sum())} of {len(agree)} "
                    "strengths", float(agree.mean())),
            _finding("full", f"Rates are {off[_HIDDEN].mean():.3f} nats/step from the hidden "
                     f"exponent and {off[_FULL].mean():.3f} from the full one: a difference of "
                     f"{gain}", gain, by_interval(gain.low, gain.high)),
        ]  # fmt: skip

    def draw(self, tables: Tables) -> Picture:
        """The three remarks side by side."""
        picture = new_picture(8, 3.4)
        left, middle, right = picture.subplots(1, 3)
        first = tables["spectra"][tables["spectra"][_NETWORK] == 0]
        for colour, style, (size, part) in zip(
            OKABE_ITO, ("-", "--", ":"), first.groupby(_N), strict=False
        ):
            left.plot(part[_PLACE], part[_EXPONENT], color=colour, linestyle=style,
                      label=f"N = {size}")  # fmt: skip
        left.set(xlabel="place in the spectrum, i/N", ylabel=_EXPONENT)
        left.legend()
        found = {s: mean(part[_LARGEST]) for s, part in tables["input"].groupby(_STRENGTH)}
        theory = tables["input"].groupby(_STRENGTH)["mean-field theory [nats/step]"].first()
        middle.axhline(0, color=INK, linewidth=0.8)
        middle.plot(theory, color="#6b7280", label="theory")
        spread = [m.high - m.value for m in found.values()]
        middle.errorbar(list(found), [m.value for m in found.values()], spread, fmt="o",
                        markersize=4, color=OKABE_ITO[0], capsize=3, label="networks")  # fmt: skip
        middle.set(xlabel="strength of the input", ylabel=_LARGEST)
        middle.legend()
        forgets = tables["forgetting"]
        values = forgets[[_FORGETS, _HIDDEN, _FULL]]
        ends = [values.min().min(), values.max().max()]
        right.plot(ends, ends, color=INK, linewidth=0.8)
        for colour, marker, (name, label) in zip(
            OKABE_ITO, "os", ((_HIDDEN, "hidden, N"), (_FULL, "full, 2 N")), strict=False
        ):
            right.plot(forgets[name], forgets[_FORGETS], marker, color=colour, label=label)
        right.set(xlabel=_LARGEST, ylabel="rate of forgetting [nats/step]")
        right.legend()
        return picture


def _between_sizes(table: pd.DataFrame) -> tuple[Mean, tuple[int, int]]:
    """Root mean square difference of the two largest sizes over the spectrum's own spread."""
    small, large = sorted(table[_N].unique())[-2:]
    at = {
        (size, network): np.interp(_PLACES, part[_PLACE], part[_EXPONENT])
        for (size, network), part in table.groupby([_N, _NETWORK])
    }
    networks = sorted(table[_NETWORK].unique())
    found = mean(
        float(np.sqrt(((at[large, n] - at[small, n]) ** 2).mean()) / at[large, n].std())
        for n in networks
    )
    return found, (int(small), int(large))


def _finding(
    claim: str, sentence: str, found: Mean, verdict: Verdict, unit: str = "nats/step"
) -> Finding:
    return Finding(claim, verdict, sentence, *found, unit)
