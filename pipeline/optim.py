"""How a population's parameters move: optimisers with one value per member of each setting.

Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019) and SGD with momentum, each equal to
torch.optim's for every member. A member's step never depends on another's.

Shapes: N members, P parameters of one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from pipeline.choice import Choice
from tasks.base import Bounds, Config, PerMember

_INFINITY = float("inf")
_BLOCK = 1 << 16
"""Numbers moved at a time on a CPU, so that what is computed on the way stays in its cache."""


@dataclass(frozen=True, kw_only=True)
class Trainer(Config):
    """How to train.

    epochs: passes over the training data.
    learning_rate: of the optimiser; at epoch e >= decay_from it is multiplied by
        decay ** (e - decay_from + 1).
    momentum: of sgd; the other optimisers refuse a value above 0.
    weight_decay: L2 penalty (adam, sgd) or decoupled decay (adamw), as in torch.optim.
    clip_norm: largest norm of one member's whole gradient; None does not clip.
    dtype: precision of weights and arithmetic.
    tf32: whether a GPU may round the factors of float32 products to 10 bits in training, which
        is faster. Evaluation and measurements never do.
    regularise: penalties that are added to the loss, by name in a conf
        (`regularise: {smoothness: {weight: 0.1}}`; `pipeline.regularisers`).
    """

    epochs: Annotated[int, Bounds(ge=1, le=1_000_000)] = 10
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Annotated[float, Bounds(gt=0, le=1e3), PerMember()] = 1e-3
    momentum: Annotated[float, Bounds(ge=0, lt=1), PerMember()] = 0.0
    beta1: Annotated[float, Bounds(ge=0, lt=1), PerMember()] = 0.9
    beta2: Annotated[float, Bounds(ge=0, lt=1), PerMember()] = 0.999
    epsilon: Annotated[float, Bounds(gt=0), PerMember()] = 1e-8
    weight_decay: Annotated[float, Bounds(ge=0), PerMember()] = 0.0
    clip_norm: Annotated[Annotated[float, Bounds(gt=0)] | None, PerMember()] = None
    decay: Annotated[float, Bounds(gt=0, le=1), PerMember()] = 1.0
    decay_from: Annotated[int, Bounds(ge=1)] = 1
    dtype: Literal["float32", "float64"] = "float32"
    tf32: bool = False
    regularise: tuple[Choice, ...] = ()

    def __post_init__(self) -> None:
        if self.momentum > 0 and self.optimiser != "sgd":
            raise ValueError(f"momentum is of sgd; {self.optimiser} has its own (beta1)")


class Optimiser:
    """Moves a population's parameters in place, in a handful of operations for all of them.

    Nothing here asks the device for a value: whether a member still lives is a mask.

    Args:
        weights_NP: all parameters, one row a member; changed by `step`.
        trainers: the N members' settings; they agree in all but PerMember fields.
    """

    def __init__(self, weights_NP: Tensor, trainers: Sequence[Trainer]) -> None:
        self.weights_NP = weights_NP
        self._kind = trainers[0].optimiser
        self._decay_from = trainers[0].decay_from
        self._clips = any(t.clip_norm is not None for t in trainers)
        self._decays_weights = any(t.weight_decay > 0 for t in trainers)
        adam = self._kind in ("adam", "adamw")

        def column(values: Sequence[float]) -> Tensor:
            # Scalars are kept in float64 and cast where they meet the parameters, as
            # torch.optim's Python floats are.
            values_N1 = torch.tensor(values, dtype=torch.float64).unsqueeze(1)
            return values_N1.to(weights_NP.device)

        self._columns: dict[str, Tensor] = {
            "base_rate": column([t.learning_rate for t in trainers]),
            "rate": column([t.learning_rate for t in trainers]),
            "decay": column([t.decay for t in trainers]),
            "momentum": column([t.momentum for t in trainers]),
            "beta1": column([t.beta1 for t in trainers]),
            "beta2": column([t.beta2 for t in trainers]),
            "epsilon": column([t.epsilon for t in trainers]),
            "weight_decay": column([t.weight_decay for t in trainers]),
            "clip": column([_INFINITY if t.clip_norm is None else t.clip_norm for t in trainers]),
            # β^t, which Adam's corrections for its start from zero are made of.
            "beta1_power": column([1.0] * len(trainers)),
            "beta2_power": column([1.0] * len(trainers)),
        }
        self.moments: dict[str, Tensor] = {}
        if adam or any(t.momentum > 0 for t in trainers):
            self.moments["first"] = torch.zeros_like(weights_NP)
        if adam:
            self.moments["second"] = torch.zeros_like(weights_NP)

    def start_epoch(self, epoch: int) -> None:
        """Sets the learning rates of training epoch `epoch` (1, 2, …)."""
        exponent = max(0, epoch - self._decay_from + 1)
        columns = self._columns
        torch.mul(columns["base_rate"], columns["decay"] ** exponent, out=columns["rate"])

    def select(self, members: Sequence[int], weights_NP: Tensor) -> None:
        """Keeps these members, in this order; their parameters have moved to `weights_NP`."""
        rows = list(members)
        self.weights_NP = weights_NP
        self.moments = {name: moment[rows] for name, moment in self.moments.items()}
        self._columns = {name: column[rows] for name, column in self._columns.items()}

    @property
    def state(self) -> dict[str, Tensor]:
        """What moves with the updates besides the parameters; each leads with the member axis.

        Whoever writes to these tensors, the memory stays, sets the optimiser back. Rates are not
        among them: `start_epoch` sets them.
        """
        powers = ("beta1_power", "beta2_power") if "second" in self.moments else ()
        return {**self.moments, **{name: self._columns[name] for name in powers}}

    @torch.no_grad()
    def step(self, gradient_NP: Tensor, alive_N: Tensor) -> Tensor:
        """One update; may overwrite the gradient. Returns which members are alive after it, (N,).

        A member whose gradient, or whose parameters after the update, are not finite dies
        before the update: its parameters and moments stay at their last finite values, as do
        those of members dead before.
        """
        columns = self._columns
        if "second" in self.moments:
            columns["beta1_power"].mul_(columns["beta1"])
            columns["beta2_power"].mul_(columns["beta2"])
        num_members, num_parameters = gradient_NP.shape
        size = num_members
        if gradient_NP.device.type == "cpu":
            size = max(1, _BLOCK // num_parameters)
        if size >= num_members:
            return self._step(slice(0, num_members), gradient_NP, alive_N)
        blocks = [slice(n, n + size) for n in range(0, num_members, size)]
        return torch.cat([self._step(b, gradient_NP[b], alive_N[b]) for b in blocks])

    def _step(self, members: slice, g: Tensor, alive_N: Tensor) -> Tensor:
        columns = {name: column[members] for name, column in self._columns.items()}
        weights = self.weights_NP[members]
        olds = {name: moment[members] for name, moment in self.moments.items()}
        alive_N1 = alive_N.unsqueeze(1)
        if self._clips:
            # In float64 the square of any finite float32 is finite.
            norm_N1 = torch.linalg.vector_norm(g, dim=1, keepdim=True, dtype=torch.float64)
            # Equal to torch.nn.utils.clip_grad_norm_, which adds 1e-6 to the norm.
            scale_N1 = (columns["clip"] / (norm_N1 + 1e-6)).clamp_(max=1.0)
            g.mul_(scale_N1.to(g.dtype))
        else:
            norm_N1 = g.abs().amax(1, keepdim=True)
        moved, news = self._moved(g, weights, olds, columns)
        largest_N1 = moved.abs().amax(1, keepdim=True)
        alive_N1 = alive_N1 & torch.isfinite(norm_N1) & torch.isfinite(largest_N1)
        for new, old in [(moved, weights), *((news[name], olds[name]) for name in news)]:
            # A CPU can say at once whether all live, and then copies in a sixth of the time.
            if old.device.type == "cpu" and bool(alive_N1.all()):
                old.copy_(new)
            else:
                torch.where(alive_N1, new, old, out=old)
        return alive_N1.squeeze(1)

    def _moved(
        self, g: Tensor, p: Tensor, moments: dict[str, Tensor], columns: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Where one update takes parameters and moments."""

        def of(values_N1: Tensor) -> Tensor:
            return values_N1.to(p.dtype)

        rate = columns["rate"]
        if self._decays_weights:
            if self._kind == "adamw":
                p = p * of(1 - rate * columns["weight_decay"])
            else:
                g = torch.addcmul(g, p, of(columns["weight_decay"]))
        if self._kind == "sgd":
            if not moments:
                return torch.addcmul(p, g, of(-rate)), {}
            first = torch.addcmul(g, moments["first"], of(columns["momentum"]))
            return torch.addcmul(p, first, of(-rate)), {"first": first}
        first = torch.lerp(moments["first"], g, of(1 - columns["beta1"]))
        second = (moments["second"] * of(columns["beta2"])).addcmul_(
            g.square(), of(1 - columns["beta2"])
        )
        step = rate / (1 - columns["beta1_power"])
        correction = (1 - columns["beta2_power"]).sqrt()
        denominator = second.sqrt().div_(of(correction)).add_(of(columns["epsilon"]))
        moved = torch.addcmul(p, denominator.reciprocal_().mul_(first), of(-step))
        return moved, {"first": first, "second": second}
