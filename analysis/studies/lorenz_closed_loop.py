"""Networks that have learned the Lorenz flow have its exponents when they run on their own outputs.

Pathak et al. (2017) for reservoirs; here recurrent networks trained through time to tell the next
value. Each then takes its own outputs as inputs, and the Lyapunov spectrum of that closed loop is
compared with the flow's: 0.9056, 0 and −14.57 nats per unit of time (Sprott 2003). Every network
that was trained is in the table, those that fail too.
"""

import copy
import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from analysis.figures.base import INK, OKABE_ITO, new_picture
from analysis.studies.base import Claim, Finding, Study, Tables, by_rule
from analysis.studies.lab import Group, Lab, Trained
from analysis.studies.papers import PATHAK
from pipeline.dynamics.spectrum import lyapunov_spectrum
from tasks.base import Bounds
from tasks.base import Config as BaseConfig
from tasks.chaotic_series import ChaoticSeries

_LEADING, _SECOND, _THIRD = 0.10, 0.05, 0.10
_PLACES = 3  # exponents of the flow
_ORBIT = 800  # points of the picture


class LorenzClosedLoop(Study):
    """Spectra of closed loops, seed by seed."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """How spectra are measured.

        parts: the sweeps, one a kind of network.
        sequences: orbits of each network, from other places of the attractor.
        lead_in: steps of the true series before a loop is closed.
        warmup, steps: of the closed loop, before and while growth is counted.
        exponents: how many.
        driven_steps: of the true series along which driven networks are measured.
        """

        parts: tuple[str, ...] = ("gru", "lstm")
        sequences: Annotated[int, Bounds(ge=1)] = 4
        lead_in: Annotated[int, Bounds(ge=1)] = 100
        warmup: Annotated[int, Bounds(ge=0)] = 500
        steps: Annotated[int, Bounds(ge=100)] = 4000
        exponents: Annotated[int, Bounds(ge=3)] = 5
        driven_steps: Annotated[int, Bounds(ge=20)] = 400

    config: Config
    paper = PATHAK
    item = "Lorenz system, for recurrent networks"
    title = "Networks trained on the Lorenz flow have its exponents when run on their own"
    claims = (
        Claim(
            "leading",
            "The closed loop of a trained network has the flow's positive exponent.",
            "λ₁ is within 10 % of 0.9056 nats per unit of time in every network trained.",
            "J. C. Sprott, Chaos and Time-Series Analysis (2003)",
        ),
        Claim(
            "second",
            "And its vanishing one.",
            "|λ₂| is at most 0.05 nats per unit of time in every network trained.",
        ),
        Claim(
            "third",
            "The negative exponent comes out only where the driven network forgets faster than the "
            "flow contracts.",
            "In every network: λ₃ is within 10 % of −14.57 if and only if the largest exponent of "
            "the network driven by the true series is below that.",
            "J. D. Hart, arXiv:2401.00885 (2024), for reservoirs",
        ),
    )
    caption = (
        "Left: exponents of every network's closed loop in nats per unit of time, one column a "
        "seed; bands are what the claims allow around the flow's (lines), error bars two standard "
        "errors. Crosses: largest exponent of the driven network. Right: the flow, and what the "
        "first network of each kind makes when run on its own."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables networks, exponents (each network's, in order) and orbits (one of a kind)."""
        networks: list[pd.DataFrame] = []
        exponents: list[pd.DataFrame] = []
        orbits: list[pd.DataFrame] = []
        for trained in map(lab.sweep, self.config.parts):
            found = [self._spectra(group, lab) for group in trained.groups("end")]
            exponents += found
            networks.append(_networks(trained, pd.concat(found)))
            first = min(trained.specs)
            (alone,) = trained.groups("end", only=[first])
            if not orbits:
                orbits.append(_true_orbit(alone))
            orbits.append(_orbit(alone, self.config.lead_in))
        return {
            "networks": pd.concat(networks, ignore_index=True),
            "exponents": pd.concat(exponents, ignore_index=True),
            "orbits": pd.concat(orbits, ignore_index=True),
        }

    def _spectra(self, group: Group, lab: Lab) -> pd.DataFrame:
        config, task = self.config, _task(group)
        start = task.probe_inputs(config.sequences, config.lead_in, lab.generator("start"))
        closed = lyapunov_spectrum(
            group.network,
            start.inputs,
            k=config.exponents,
            loop="closed",
            warmup=config.warmup,
            steps=config.steps,
            generator=lab.generator("tangents"),
        )
        length = config.lead_in + config.driven_steps
        true = task.probe_inputs(config.sequences, length, lab.generator("driven"))
        driven = lyapunov_spectrum(
            group.network,
            true.inputs,
            k=1,
            warmup=config.lead_in,
            generator=lab.generator("driven tangents"),
        )
        known = [*task.known_exponents, *[math.nan] * config.exponents]
        rows: list[dict[str, Any]] = []
        for member, number in enumerate(group.numbers):
            for place in range(config.exponents):
                rows.append(
                    {
                        "network": group.params.loc[number, "network.name"],
                        "seed": number,
                        "exponent": place + 1,
                        "nats_per_unit_time": closed.exponents[member, place].item() / task.dt,
                        "standard_error": closed.standard_error[member, place].item() / task.dt,
                        "flow_nats_per_unit_time": known[place],
                        "driven_nats_per_unit_time": driven.exponents[member, 0].item() / task.dt,
                    }
                )
        return pd.DataFrame(rows)

    def judge(self, tables: Tables) -> list[Finding]:
        """By the worst network of each claim; one that diverged in training fails all of them."""
        table = tables["networks"]
        number = len(table)
        leading = table["lambda_1"] / table["flow_1"] - 1
        second = table["lambda_2"]
        is_third = (table["lambda_3"] / table["flow_3"] - 1).abs() <= _THIRD
        forgets = table["driven"] < table["flow_3"]
        agrees = (is_third == forgets) & table["lambda_3"].notna() & table["driven"].notna()
        right = (leading.abs() <= _LEADING), (second.abs() <= _SECOND)
        one_way = (
            "" if bool(forgets.any()) else " No network forgets fast enough to test the other way."
        )
        kinds = ", ".join(f"{len(part)} {kind}" for kind, part in table.groupby("network"))
        return [
            Finding(
                "leading",
                by_rule(bool(right[0].all())),
                f"λ₁ of {number} networks ({kinds}) is {table['lambda_1'].min():.3f} to "
                f"{table['lambda_1'].max():.3f}, mean {table['lambda_1'].mean():.3f} nats per unit "
                f"of time; {right[0].sum()} of {number} are within 10 % of the flow's "
                f"{table['flow_1'].iloc[0]:.4f}.",
                float(table["lambda_1"].mean()),
                float(table["lambda_1"].min()),
                float(table["lambda_1"].max()),
                "nats per unit of time",
            ),
            Finding(
                "second",
                by_rule(bool(right[1].all())),
                f"λ₂ is {second.min():+.3f} to {second.max():+.3f} nats per unit of time; "
                f"{right[1].sum()} of {number} networks are within 0.05 of 0.",
                float(second.mean()),
                float(second.min()),
                float(second.max()),
                "nats per unit of time",
            ),
            Finding(
                "third",
                by_rule(bool(agrees.all())),
                f"λ₃ is within 10 % of {table['flow_3'].iloc[0]:.2f} in {is_third.sum()} of "
                f"{number} networks, and {forgets.sum()} forget faster than the flow contracts; "
                f"the two go together in {agrees.sum()}. λ₃ is {table['lambda_3'].min():.1f} to "
                f"{table['lambda_3'].max():.1f}, the largest of driven networks "
                f"{table['driven'].min():.1f} to {table['driven'].max():.1f} nats per unit time."
                f"{one_way}",
                float(table["lambda_3"].mean()),
                float(table["lambda_3"].min()),
                float(table["lambda_3"].max()),
                "nats per unit of time",
            ),
        ]

    def draw(self, tables: Tables) -> Picture:
        """Exponents by seed, and the attractors."""
        table, orbits = tables["networks"], tables["orbits"]
        kinds = list(dict.fromkeys(table["network"]))
        picture = new_picture(8.0, 4.6)
        left, right = picture.subfigures(1, 2, width_ratios=[1.35, 1], squeeze=False)[0]
        axes = left.subplots(3, 1, sharex=True, height_ratios=[1, 1, 1.2])
        for place, ax in enumerate(axes, start=1):
            self._draw_place(ax, tables["exponents"], kinds, place)
        axes[-1].set_xlabel("network (seeds in order)")
        axes[0].legend(loc="lower center", ncols=len(kinds), bbox_to_anchor=(0.5, 1.0))
        left.supylabel("nats per unit of time", fontsize=9.5)
        panels = right.subplots(1 + len(kinds), 1, sharex=True, sharey=True)
        for ax, (name, orbit) in zip(panels, orbits.groupby("network", sort=False), strict=True):
            colour = INK if name not in kinds else OKABE_ITO[kinds.index(str(name))]
            ax.plot(orbit["x"], orbit["z"], color=colour, linewidth=0.5)
            ax.set_title(str(name), fontsize=9.5, loc="left")
            ax.set(ylabel="z", xticks=[-20, 0, 20], yticks=[0, 25, 50])
        panels[-1].set_xlabel("x")
        return picture

    def _draw_place(self, ax: Axes, table: pd.DataFrame, kinds: list[str], place: int) -> None:
        rows = table[table["exponent"] == place]
        flow = float(rows["flow_nats_per_unit_time"].iloc[0])
        allowed = {1: _LEADING * abs(flow), 2: _SECOND, 3: _THIRD * abs(flow)}[place]
        ax.axhspan(flow - allowed, flow + allowed, color="#e5e7eb")
        ax.axhline(flow, color=INK, linewidth=0.9)
        first = 0
        for kind, colour in zip(kinds, OKABE_ITO, strict=False):
            mine = rows[rows["network"] == kind].sort_values("seed")
            x = first + np.arange(len(mine))
            first += len(mine) + 1
            ax.errorbar(
                x,
                mine["nats_per_unit_time"],
                2 * mine["standard_error"],
                fmt="o",
                markersize=4.5,
                color=colour,
                label=kind,
            )
            if place == _PLACES:
                ax.plot(x, mine["driven_nats_per_unit_time"], "x", color=colour, markersize=5)
        ax.set_ylabel(f"λ{'₁₂₃'[place - 1]}")
        ax.set_xticks([])


def _task(group: Group) -> ChaoticSeries:
    assert isinstance(group.task, ChaoticSeries)  # what the conf trains on
    return group.task


def _networks(trained: Trained, exponents: pd.DataFrame) -> pd.DataFrame:
    """A row a network that was trained; NaN where there is none to measure."""
    trials = trained.frame.trials
    table = pd.DataFrame(
        {
            "network": trials["network.name"],
            "seed": trials.index,
            "diverged": trials["diverged_at"].notna(),
            "rmse_standard_deviations": trials["test_score"],
        },
        index=trials.index,
    )
    by_place = exponents.pivot(index="seed", columns="exponent", values="nats_per_unit_time")
    flow = exponents.groupby("exponent")["flow_nats_per_unit_time"].first()
    for place in range(1, _PLACES + 1):
        table[f"lambda_{place}"] = by_place[place].reindex(table.index)
        table[f"flow_{place}"] = flow[place]
    driven = exponents.groupby("seed")["driven_nats_per_unit_time"].first()
    table["driven"] = driven.reindex(table.index)
    return table.reset_index(drop=True)


def _true_orbit(group: Group) -> pd.DataFrame:
    task = _task(group)
    series = task.series["test"][0, :_ORBIT].double().numpy()
    return _table("flow", series * task.scale + task.mean)


def _orbit(group: Group, lead_in: int) -> pd.DataFrame:
    """What one network makes of itself from the first place of the test series."""
    task, network = _task(group), copy.deepcopy(group.network)
    with torch.no_grad():
        outputs, state = network(task.series["test"][:1, :lead_in])
        now = outputs[0, :, -1:]
        made = []
        for _ in range(_ORBIT):
            made.append(now[0, 0])
            outputs, state = network(now, state)
            now = outputs[0]
    name = str(group.params["network.name"].iloc[0])
    return _table(name, torch.stack(made).double().numpy() * task.scale + task.mean)


def _table(name: str, values: np.ndarray[Any, Any]) -> pd.DataFrame:
    return pd.DataFrame(
        {"network": name, "step": range(len(values)), "x": values[:, 0], "z": values[:, 2]}
    )
