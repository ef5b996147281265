"""Largest finite-time Lyapunov exponents of a feed-forward network (Storm et al. 2024).

λ^(L)(x) = (1/L) log σ_max(J_L(x)) over validation inputs x, L the last hidden layer, in nats per
layer, and its mean at every layer l. The output layer is excluded.

Policy: −inf (all units of a layer dead) is counted in `ftle.mean` and the quantiles, which then
are −inf and marked; the standard deviation is NaN and flagged. NaN weights give NaN and a flag.

Shapes: N members, B inputs, L hidden layers.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from pipeline.diagnostics.base import Diagnostic, DiagnosticConfig, Mark, Moment, Reading
from pipeline.dynamics.ftle import max_ftle
from tasks.base import Batch, Bounds, Task, UnsuitableError, generator_for
from tasks.networks.base import Network

UNIT = "nats/layer"


class FTLE(Diagnostic):
    """Distribution of the largest exponent over inputs, by layer and by class margin."""

    @dataclass(frozen=True, kw_only=True)
    class Config(DiagnosticConfig):
        """Which inputs, layers and summaries.

        probes: validation inputs, the same for every trial of a sweep.
        layers: "all" adds the mean after every hidden layer; "last" is cheaper.
        levels: of the quantiles over inputs.
        margin_share: share of the inputs that counts as most ambiguous, and as most certain.
        """

        probes: Annotated[int, Bounds(ge=2)] = 500
        layers: Literal["all", "last"] = "all"
        levels: tuple[Annotated[float, Bounds(ge=0, le=1)], ...] = (0.05, 0.25, 0.5, 0.75, 0.95)
        margin_share: Annotated[float, Bounds(gt=0, le=0.5)] = 0.1

    config: Config

    def check(self, network: Network, task: Task) -> None:
        """Raises UnsuitableError for recurrent networks and for more probes than there are."""
        if network.is_recurrent:
            raise UnsuitableError(
                f"ftle needs a feed-forward network, got {type(network).__name__}; recurrent "
                "networks have lyapunov_spectrum"
            )
        self._probe(task, 0)

    def _probe(self, task: Task, seed: int) -> Batch:
        return task.probe_inputs(self.config.probes, None, generator_for(seed, "ftle"))

    def measure(self, network: Network, task: Task, moment: Moment) -> list[Reading]:
        """Mean, standard deviation, quantiles, share positive, layer profile, margin contrast."""
        config = self.config
        probe = self._probe(task, moment.probe_seed)
        x = probe.inputs
        depth = network.orbit(x[:1]).num_steps
        field_NLB = max_ftle(network, x, None if config.layers == "all" else depth)
        last_NB = field_NLB[:, -1] if config.layers == "all" else field_NLB
        with torch.no_grad():
            margin_NB = class_margin(network(x)[0].double())
        return self._readings(field_NLB, last_NB, margin_NB, depth)

    def _readings(
        self, field_NLB: Tensor, last_NB: Tensor, margin_NB: Tensor, depth: int
    ) -> list[Reading]:
        num_probes = last_NB.shape[-1]
        details: dict[str, Any] = {"probes": num_probes, "layer": depth}
        flags = [
            ("not_a_number",) if nan else ("minus_infinity",) if dead else ()
            for nan, dead in zip(
                torch.isnan(last_NB).any(-1).tolist(),
                torch.isneginf(last_NB).any(-1).tolist(),
                strict=True,
            )
        ]

        def reading(
            name: str,
            values: Tensor,
            *,
            axes: tuple[str, ...] = (),
            unit: str = UNIT,
            error: Tensor | None = None,
            **more: Any,
        ) -> Reading:
            return Reading(
                quantity=f"ftle.{name}",
                values_N=values,
                axes=axes,
                unit=unit,
                error_N=error,
                marks_N=torch.isneginf(values) * int(Mark.MINUS_INFINITY),
                flags=flags,
                details={**details, **more},
            )

        std = last_NB.std(-1, correction=1)
        share = (last_NB > 0).double().mean(-1)
        share = torch.where(torch.isnan(last_NB).any(-1), torch.nan, share)
        levels = torch.tensor(self.config.levels, dtype=torch.float64, device=last_NB.device)
        # "nearest" picks a value that occurs; interpolating beside −inf would give NaN.
        quantiles = torch.quantile(last_NB, levels, dim=-1, interpolation="nearest").mT
        num_extreme = max(1, round(self.config.margin_share * num_probes))
        by_margin = last_NB.gather(-1, margin_NB.argsort(dim=-1, stable=True))
        found = [
            reading("mean", last_NB.mean(-1), error=std / num_probes**0.5),
            reading("std", std),
            reading("quantiles", quantiles, axes=("level",), levels=list(self.config.levels)),
            reading("positive_share", share, unit="1"),
            reading("low_margin", by_margin[:, :num_extreme].mean(-1), inputs=num_extreme),
            reading("high_margin", by_margin[:, -num_extreme:].mean(-1), inputs=num_extreme),
        ]
        if self.config.layers == "all":
            found.append(reading("layer_mean", field_NLB.mean(-1), axes=("layer",)))
        return found


def class_margin(outputs_NBO: Tensor) -> Tensor:
    """How certain the network is of its class, (N, B).

    Largest output minus second largest; the absolute output where there is one (classes ±1).
    """
    if outputs_NBO.shape[-1] == 1:
        return outputs_NBO[..., 0].abs()
    top = outputs_NBO.topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]
