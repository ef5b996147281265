"""Where the gradient of an RNN's recurrent weights points in the frames of its Lyapunov vectors.

With ∇_V L = U S Wᵀ over validation sequences, A_{k,m} = (1/k) ‖B_tᵀ U_k‖_F² is the share of the k
leading left singular vectors that lies in the span B_t of the first m = k backward or forward
vectors, mean over times and sequences; m/N is chance. Of the back-propagated δ_t = dL/dh_t itself
the squared cosine with every single vector is told, 1/N by chance. Source:
"Linking finite-time Lyapunov exponents to RNN gradient subspaces" (submission to ICLR 2024).

The first m covariant vectors span what the first m backward ones do, and the adjoint covariant ones
what the forward ones do (Kuptsov & Parlitz 2012), so that spans need no four bases; single vectors
do. That holds once the vectors have settled; `residual`, the sine by which the covariant ones miss
their place, says how far they have. NaN weights give NaN and a flag.

Shapes: N members, B sequences, T steps, D units, P points in time, K vectors.
"""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from pipeline.diagnostics.base import Diagnostic, DiagnosticConfig, Moment, Reading
from pipeline.dynamics.clv import CovariantVectors, covariant_vectors
from pipeline.dynamics.gradients import (
    alignment,
    back_propagated,
    left_vectors,
    recurrent_gradient,
)
from tasks.base import Batch, Bounds, Task, UnsuitableError, generator_for
from tasks.networks.base import Network
from tasks.networks.rnn import RNN

_POINTS = 12  # in time, at which vectors are kept


class Gradients(NamedTuple):
    """Of one loss: ∇_V L of every sequence (N, B, D, D), and δ_t (N, B, T, D); float64."""

    each_NBDD: Tensor
    deltas_NBTD: Tensor


class GradientAlignment(Diagnostic):
    """Shares of the gradient in Lyapunov subspaces, beside what noise and chance would give."""

    @dataclass(frozen=True, kw_only=True)
    class Config(DiagnosticConfig):
        """Of which gradient, and in which frames.

        sequences: validation sequences, the same for every trial of a sweep; all start from h = 0.
        steps: of each; None: the task's own length.
        warmup: first and last steps whose vectors do not count, because the frames have not
            relaxed, forward and backward in time; None: a quarter of the steps.
        ranks: the k = m for which shares are told.
        """

        sequences: Annotated[int, Bounds(ge=2)] = 25
        steps: Annotated[int, Bounds(ge=4)] | None = None
        warmup: Annotated[int, Bounds(ge=0)] | None = None
        ranks: tuple[Annotated[int, Bounds(ge=1)], ...] = (1, 2, 5, 10)

    config: Config

    def check(self, network: Network, task: Task) -> None:
        """Raises UnsuitableError for all but single-layer RNNs and for ranks beyond the units."""
        if not isinstance(network, RNN) or network.num_layers != 1:
            raise UnsuitableError(
                "gradient_alignment needs an rnn of one layer, whose recurrent gradient has a row "
                f"for each unit of the state; got {type(network).__name__}"
            )
        if max(self.config.ranks) > network.units:
            raise UnsuitableError(
                f"gradient_alignment.ranks must be at most {network.units}, the units of the "
                f"network, got {max(self.config.ranks)}"
            )
        steps = self._probe(task, 0).inputs.shape[1]
        if 2 * self._warmup(steps) >= steps:
            raise UnsuitableError(
                f"gradient_alignment.warmup must leave steps between its two ends; got "
                f"{self.config.warmup} of {steps} steps"
            )

    def _probe(self, task: Task, seed: int) -> Batch:
        generator = generator_for(seed, "gradient_alignment")
        return task.probe_inputs(self.config.sequences, self.config.steps, generator)

    def _warmup(self, steps: int) -> int:
        return steps // 4 if self.config.warmup is None else self.config.warmup

    def measure(self, network: Network, task: Task, moment: Moment) -> list[Reading]:
        """Spans by rank, single vectors, halves of the batch, shuffled targets, norms."""
        assert isinstance(network, RNN)  # as checked
        probe = self._probe(task, moment.probe_seed)
        steps = probe.inputs.shape[1]
        warmup = self._warmup(steps)
        vectors = covariant_vectors(
            network,
            probe.inputs,
            k=max(self.config.ranks),
            warmup=warmup,
            cooldown=0,
            every=max(1, (steps - 2 * warmup) // _POINTS),
            generator=[torch.Generator().manual_seed(seed) for seed in moment.tangent_seeds],
        )
        true = gradients(network, task, probe)
        order = torch.randperm(
            len(probe.targets), generator=generator_for(moment.probe_seed, "shuffled")
        )
        null = gradients(network, task, Batch(probe.inputs, probe.targets[order]))
        counted = vectors.times <= steps - 2 * warmup
        return _readings(self.config.ranks, vectors, counted, true, null, probe.inputs.shape)


def gradients(network: RNN, task: Task, batch: Batch) -> Gradients:
    """Of the mean loss over `batch`, by the transposed maps in float64; see `gradients`."""
    maps = list(network.orbit(batch.inputs).maps())
    with torch.no_grad():
        outputs_NBTO = network(batch.inputs)[0]
    with torch.enable_grad():
        told = outputs_NBTO.detach().requires_grad_()
        (d_outputs,) = torch.autograd.grad(task.losses(told, batch.targets).mean(1).sum(), told)
    readout_NOD = network.get_parameter("weight_out").detach().double()
    pushes_NBTD = torch.einsum("nbto,nod->nbtd", d_outputs.double(), readout_NOD)
    deltas_NBTD = back_propagated(maps, pushes_NBTD)
    slopes_NBTD = torch.stack([step.gains[0] for step in maps], dim=2)
    before_NBTD = torch.stack([step.before[0] for step in maps], dim=2)
    return Gradients(recurrent_gradient(slopes_NBTD, deltas_NBTD, before_NBTD), deltas_NBTD)


def _readings(
    ranks: tuple[int, ...],
    vectors: CovariantVectors,
    counted: Tensor,
    true: Gradients,
    null: Gradients,
    shape: torch.Size,
) -> list[Reading]:
    assert vectors.forward is not None
    assert vectors.adjoint is not None
    num_sequences, units = shape[0], true.each_NBDD.shape[-1]
    details: dict[str, Any] = {
        "sequences": num_sequences,
        "steps": shape[1],
        "warmup": vectors.warmup,
        "units": units,
    }
    ranked = {**details, "ranks": list(ranks), "chance": [m / units for m in ranks]}
    whole_NDD = true.each_NBDD.sum(1)
    flags = [() if fine else ("not_finite",) for fine in whole_NDD.isfinite().all(-1).all(-1)]

    def reading(name: str, values: Tensor, axes: tuple[str, ...] = (), **more: Any) -> Reading:
        return Reading(f"gradient_alignment.{name}", values, axes, flags=flags, **more)

    found: list[Reading] = []
    spans = {"backward": vectors.backward, "forward": vectors.forward}
    for label, each_NBDD in (("", true.each_NBDD), ("_shuffled", null.each_NBDD)):
        U_NDK = left_vectors(each_NBDD.sum(1), max(ranks))
        for name, basis_NBPDK in spans.items():
            by_rank = [_share(basis_NBPDK[:, :, counted], U_NDK, m) for m in ranks]
            share_NBk = torch.stack(by_rank, dim=-1)
            error = share_NBk.std(1) / num_sequences**0.5
            found.append(
                reading(name + label, share_NBk.mean(1), ("rank",), error_N=error, details=ranked)
            )
    half = num_sequences // 2
    first_NDD, rest_NDD = true.each_NBDD[:, :half].sum(1), true.each_NBDD[:, half:].sum(1)
    U, V = (left_vectors(part, max(ranks)) for part in (first_NDD, rest_NDD))
    halves = torch.stack([alignment(U[..., :m], V[..., :m]) for m in ranks], dim=-1)
    found.append(reading("halves", halves, ("rank",), details=ranked))
    # Means of both halves are themselves gradients; half their difference is the error of the mean.
    noise = first_NDD * (num_sequences / half) - rest_NDD * (num_sequences / (num_sequences - half))
    found.append(reading("norm", torch.linalg.matrix_norm(whole_NDD), details=details))
    found.append(reading("noise", torch.linalg.matrix_norm(noise) / 2, details=details))
    bases = {**spans, "covariant": vectors.covariant, "adjoint": vectors.adjoint}
    times = vectors.times + vectors.warmup
    at = times[times >= 1]
    # The state after t maps is h_t, whose δ stands in place t − 1.
    delta_NBPD = true.deltas_NBTD[:, :, at - 1]
    unit_NBPD = delta_NBPD / torch.linalg.vector_norm(delta_NBPD, dim=-1, keepdim=True)
    for name, basis_NBPDK in bases.items():
        overlap = torch.einsum("nbpd,nbpdk->nbpk", unit_NBPD, basis_NBPDK[:, :, times >= 1])
        square_NBPK = overlap.square()
        mean_NK = square_NBPK[:, :, counted[times >= 1]].mean((1, 2))
        more = {**details, "chance": 1 / units}
        found.append(reading(f"delta_{name}", mean_NK, ("vector",), details=more))
        if name == "covariant":
            assert vectors.residual is not None
            residual_NK = vectors.residual[:, :, counted].mean((1, 2))
            found.append(reading("residual", residual_NK, ("vector",), details=details))
        if name in spans:
            horizons = {**more, "horizons": (shape[1] - at).tolist()}
            leading = square_NBPK[..., 0].mean(1)
            found.append(reading(f"horizon_{name}", leading, ("horizon",), details=horizons))
    return found


def _share(basis_NBPDK: Tensor, U_NDK: Tensor, m: int) -> Tensor:
    """A_{m,m} (N, B), mean over the points in time."""
    return alignment(basis_NBPDK[..., :m], U_NDK[:, None, None, :, :m]).mean(-1)
