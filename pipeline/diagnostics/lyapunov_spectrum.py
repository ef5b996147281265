"""Lyapunov spectrum of a recurrent network driven by validation inputs (Vogt et al. 2022).

Policy for numbers that are none: −inf, a direction that a step annihilates, stays −inf and is
marked, in the spectrum and in every scalar it enters. NaN weights give NaN and a flag.

Shapes: N members, B sequences, K exponents, D state.
"""

import time
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from pipeline.diagnostics.base import Diagnostic, DiagnosticConfig, Mark, Moment, Reading
from pipeline.dynamics import derived
from pipeline.dynamics.spectrum import Spectrum, lyapunov_spectrum
from pipeline.dynamics.uncertainty import standard_error
from tasks.base import Batch, Bounds, Task, UnsuitableError, generator_for
from tasks.networks.base import Network, StateConvention

FEWEST_EXPONENTS, FEWEST_SEQUENCES, FEWEST_STEPS = 8, 2, 25
"""What a budget leaves at least."""

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}


class LyapunovSpectrum(Diagnostic):
    """Exponents in nats per step, with errors and marks, and the scalars read off them."""

    @dataclass(frozen=True, kw_only=True)
    class Config(DiagnosticConfig):
        """How a spectrum is measured.

        state: "full", (h, c) of all layers, the true dynamics; "hidden", h with the cells held
            fixed, the convention of the paper.
        k: number of exponents; None: all of the state.
        sequences: validation sequences, the same for every trial of a sweep.
        steps: counted steps of each.
        warmup: steps before them, through which state and frame relax.
        t_on: steps between re-orthonormalisations; "auto" keeps rounding out.
        budget: where it is too small for these settings, k is halved down to 8, then sequences
            down to 2, then steps and warm-up down to 25; the details of every reading say what
            was asked for and what was used. Timing decides, so that two runs may differ.
        near_zero: |λ| in nats/step up to which an exponent counts as near zero.
        precision: of states and tangents; logs are float64 always.
        """

        state: StateConvention = "full"
        k: Annotated[int | None, Bounds(ge=1)] = None
        sequences: Annotated[int, Bounds(ge=1)] = 10
        steps: Annotated[int, Bounds(ge=1)] = 100
        warmup: Annotated[int, Bounds(ge=0)] = 50
        t_on: Annotated[int, Bounds(ge=1)] | Literal["auto"] = "auto"
        near_zero: Annotated[float, Bounds(gt=0)] = 0.05
        precision: Literal["float64", "float32"] = "float64"

    config: Config
    can_shrink = True

    def __init__(self, config: Any, asked: Any = None) -> None:
        super().__init__(config)
        self._asked = asked or config

    def check(self, network: Network, task: Task) -> None:
        """Raises UnsuitableError for feed-forward networks, k beyond the state, too long probes."""
        if not network.is_recurrent:
            raise UnsuitableError(
                f"lyapunov_spectrum needs a recurrent network, got {type(network).__name__}; "
                "feed-forward networks have ftle"
            )
        probe = self._probe(task, 0).inputs
        size = network.orbit(probe[:1, :1], state=self.config.state).tangent_size
        if self.config.k is not None and self.config.k > size:
            raise UnsuitableError(
                f"lyapunov_spectrum.k must be at most {size}, the size of the {self.config.state} "
                f"state, got {self.config.k}"
            )

    def _probe(self, task: Task, seed: int) -> Batch:
        config = self.config
        length = config.warmup + config.steps
        return task.probe_inputs(config.sequences, length, generator_for(seed, "lyapunov_spectrum"))

    def measure(self, network: Network, task: Task, moment: Moment) -> list[Reading]:
        """Spectrum, max, mean, sum, Kaplan–Yorke dimension, near-zero count, T_ON, self-checks."""
        probe = self._probe(task, moment.probe_seed)
        spectrum = _spectrum(network, probe.inputs, self.config, moment)
        found = readings(spectrum, self.config, num_sequences=len(probe.inputs))
        if self._asked == self.config:
            return found
        asked = {name: getattr(self._asked, name) for name in CUT}
        return [replace(r, details={**r.details, "asked": asked}) for r in found]

    def fit(
        self, network: Network, task: Task, moment: Moment, seconds: float
    ) -> "LyapunovSpectrum":
        """Fewer exponents, then sequences, then steps, until a reading takes about `seconds`."""
        asked = self.config
        probe = self._probe(task, moment.probe_seed)
        size = network.orbit(probe.inputs[:1, :1], state=asked.state).tangent_size
        most = asked.k or size
        # From few exponents to many, so that what is too dear is tried for two steps only.
        candidates = sorted({min(most, FEWEST_EXPONENTS * 2**n) for n in range(32)})
        fitting: LyapunovSpectrum.Config | None = None
        expected = 0.0
        for k in candidates:
            config = replace(asked, k=None if k == size else k)
            cost = _expected_seconds(network, probe.inputs, config, moment)
            if cost > seconds:
                expected = expected or cost
                break
            fitting, expected = config, cost
        if fitting is None:
            fitting = _shortened(replace(asked, k=candidates[0]), seconds / expected)
        if (fitting.k or size) == most:
            fitting = replace(fitting, k=asked.k)
        return self.fitted(fitting)

    def fitted(self, config: Any) -> "LyapunovSpectrum":
        """With these settings, knowing what was asked for."""
        return LyapunovSpectrum(config, self.config)


CUT = ("k", "sequences", "steps", "warmup")
"""Settings that a budget may cut."""


def _spectrum(
    network: Network, inputs: Tensor, config: LyapunovSpectrum.Config, moment: Moment
) -> Spectrum:
    return lyapunov_spectrum(
        network,
        inputs,
        k=config.k,
        state=config.state,
        steps=config.steps,
        warmup=config.warmup,
        t_on=config.t_on,
        dtype=PRECISIONS[config.precision],
        generator=[torch.Generator().manual_seed(seed) for seed in moment.tangent_seeds],
    )


def _expected_seconds(
    network: Network, inputs: Tensor, config: LyapunovSpectrum.Config, moment: Moment
) -> float:
    """What a reading will take, from the time of two and of six steps."""
    whole = config.warmup + config.steps
    times = []
    for steps in (1, 2, 6):
        started = time.perf_counter()
        short = replace(config, warmup=0, steps=min(steps, whole))
        _spectrum(network, inputs[:, : short.steps], short, moment)
        times.append(time.perf_counter() - started)
    _, two, six = times
    return two + max(0.0, six - two) / 4 * max(0, whole - 2)


def _shortened(config: LyapunovSpectrum.Config, share: float) -> LyapunovSpectrum.Config:
    """Sequences, then steps halved until no more than `share` of the work is left."""
    while share < 1 and config.sequences >= 2 * FEWEST_SEQUENCES:
        config, share = replace(config, sequences=config.sequences // 2), 2 * share
    while share < 1 and config.steps >= 2 * FEWEST_STEPS:
        half = replace(config, steps=config.steps // 2, warmup=config.warmup // 2)
        config, share = half, 2 * share
    return config


def readings(
    spectrum: Spectrum, config: LyapunovSpectrum.Config, *, num_sequences: int
) -> list[Reading]:
    """What is recorded of a spectrum."""
    exponents, size = spectrum.exponents, spectrum.tangent_size
    k = exponents.shape[-1]
    marks = (
        spectrum.at_floor * int(Mark.AT_FLOOR)
        + spectrum.minus_infinity * int(Mark.MINUS_INFINITY)
        + ~spectrum.converged * int(Mark.NOT_CONVERGED)
    )
    any_mark = _union(spectrum)
    top = _leading(exponents)
    of_sum = standard_error(spectrum.block_logs.sum(-2, keepdim=True), spectrum.block_steps)[:, 0]
    values = derived.features(exponents.cpu().numpy(), size, near_zero_threshold=config.near_zero)
    details: dict[str, Any] = {
        "state": spectrum.state,
        "loop": spectrum.loop,
        "steps": spectrum.steps,
        "warmup": spectrum.warmup,
        "sequences": num_sequences,
        "t_on": config.t_on,
        "dtype": config.precision,
        "k": k,
        "state_size": size,
        "self_checks": sorted(spectrum.self_check),
    }
    over = {**details, "over": "all exponents" if k == size else f"the {k} leading exponents"}
    flags = _flags(spectrum)

    def scalar(
        name: str,
        value: Any,
        *,
        unit: str = "1",
        error: Tensor | None = None,
        mark: Tensor | None = None,
        extra: dict[str, Any] | None = None,
        words: list[tuple[str, ...]] | None = None,
    ) -> Reading:
        return Reading(
            quantity=f"lyapunov.{name}",
            values_N=torch.as_tensor(value, dtype=torch.float64, device=exponents.device),
            unit=unit,
            error_N=error,
            marks_N=any_mark if mark is None else mark,
            flags=words or flags,
            details=extra or details,
        )

    unmarked = torch.zeros_like(any_mark)
    dimension = torch.as_tensor(values["kaplan_yorke"])
    is_open = torch.isnan(dimension) & ~torch.isnan(exponents).any(-1).cpu()
    dimension_flags = [
        (*words, "needs_more_exponents") if missing else words
        for words, missing in zip(flags, is_open.tolist(), strict=True)
    ]
    found = [
        Reading(
            quantity="lyapunov.spectrum",
            values_N=exponents,
            axes=("exponent",),
            unit=spectrum.unit,
            error_N=spectrum.standard_error,
            marks_N=marks,
            flags=flags,
            details=details,
        ),
        scalar(
            "max",
            exponents.gather(-1, top)[:, 0],
            unit=spectrum.unit,
            error=spectrum.standard_error.gather(-1, top)[:, 0],
            mark=marks.gather(-1, top)[:, 0],
        ),
        scalar("mean", values["mean"], unit=spectrum.unit, error=of_sum / k, extra=over),
        scalar("sum", values["sum"], unit=spectrum.unit, error=of_sum, extra=over),
        scalar("kaplan_yorke", dimension, words=dimension_flags),
        scalar("near_zero", values["near_zero"], extra={**details, "threshold": config.near_zero}),
        scalar("t_on", spectrum.t_on, unit="steps", mark=unmarked),
    ]
    found += [
        scalar(f"self_check.{name}", error, mark=unmarked)
        for name, error in sorted(spectrum.self_check.items())
    ]
    return found


def _leading(exponents: Tensor) -> Tensor:
    """Index (N, 1) of the largest exponent; a random frame need not order them strictly."""
    return exponents.argmax(-1, keepdim=True)


def _union(spectrum: Spectrum) -> Tensor:
    """Marks (N,) of a number made from all exponents."""
    return (
        spectrum.at_floor.any(-1) * int(Mark.AT_FLOOR)
        + spectrum.minus_infinity.any(-1) * int(Mark.MINUS_INFINITY)
        + (~spectrum.converged).any(-1) * int(Mark.NOT_CONVERGED)
    )


def _flags(spectrum: Spectrum) -> list[tuple[str, ...]]:
    is_nan = torch.isnan(spectrum.exponents).any(-1).tolist()
    passed = spectrum.self_check_passed.tolist()
    return [
        ("not_a_number",) if nan else () if fine else ("self_check_failed",)
        for nan, fine in zip(is_nan, passed, strict=True)
    ]
