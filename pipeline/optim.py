"""How a population's parameters move: optimisers with one value per member of each setting.

Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019) and SGD with momentum, each equal to
torch.optim's for every member. A member's step never depends on another's.

Shapes: N members; every parameter and gradient is (N, …).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from tasks.base import Bounds, Config, PerMember


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

    def __post_init__(self) -> None:
        if self.momentum > 0 and self.optimiser != "sgd":
            raise ValueError(f"momentum is of sgd; {self.optimiser} has its own (beta1)")


class Optimiser:
    """Moves a population's parameters in place.

    Args:
        parameters: each (N, …); changed by `step`.
        trainers: the N members' settings; they agree in all but PerMember fields.
    """

    def __init__(self, parameters: Sequence[Tensor], trainers: Sequence[Trainer]) -> None:
        self.parameters = list(parameters)
        self._kind = trainers[0].optimiser
        reference = self.parameters[0]

        def column(values: Sequence[float]) -> Tensor:
            # Scalars are kept in float64 and cast where they meet the parameters, as
            # torch.optim's Python floats are.
            return torch.tensor(values, dtype=torch.float64, device=reference.device)

        self._rate_N = column([t.learning_rate for t in trainers])
        self._decay_N = column([t.decay for t in trainers])
        self._decay_from = trainers[0].decay_from
        self._momentum_N = column([t.momentum for t in trainers])
        self._beta1_N = column([t.beta1 for t in trainers])
        self._beta2_N = column([t.beta2 for t in trainers])
        self._epsilon_N = column([t.epsilon for t in trainers])
        self._weight_decay_N = column([t.weight_decay for t in trainers])
        self._clip_N = column(
            [float("inf") if t.clip_norm is None else t.clip_norm for t in trainers]
        )
        self._clips = any(t.clip_norm is not None for t in trainers)
        self._decays_weights = any(t.weight_decay > 0 for t in trainers)
        self._has_momentum = any(t.momentum > 0 for t in trainers)
        self._steps = 0
        adam = self._kind in ("adam", "adamw")
        self._first = [torch.zeros_like(p) for p in self.parameters] if self._is_first() else []
        self._second = [torch.zeros_like(p) for p in self.parameters] if adam else []

    def _is_first(self) -> bool:
        return self._kind in ("adam", "adamw") or self._has_momentum

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], alive_N: Tensor, epoch: int) -> Tensor:
        """One update with (N, …) gradients. Returns which members are alive after it, (N,).

        A member whose gradient, or whose parameters after the update, are not finite dies
        before the update: its parameters and moments stay at their last finite values, as do
        those of members dead before.
        """
        norm_N = torch.stack([g.reshape(len(g), -1).double().square().sum(1) for g in gradients])
        norm_N = norm_N.sum(0).sqrt()
        alive_N = alive_N & torch.isfinite(norm_N)
        gradients = list(gradients)
        if self._clips:
            # Equal to torch.nn.utils.clip_grad_norm_, which adds 1e-6 to the norm.
            scale_N = (self._clip_N / (norm_N + 1e-6)).clamp(max=1.0)
            gradients = [g * _like(scale_N, g) for g in gradients]
        self._steps += 1
        rate_N = self._rate_N * self._decay_N ** max(0, epoch - self._decay_from + 1)
        # Adam's own step is bounded by its rate; the others can throw weights to infinity.
        if self._kind == "adam" and bool(alive_N.all()):
            self._update_all(gradients, rate_N)
            return alive_N
        tensors = [*self.parameters, *self._first, *self._second]
        before = [t.clone() for t in tensors]
        self._update_all(gradients, rate_N)
        for p in self.parameters:
            alive_N = alive_N & torch.isfinite(p.reshape(len(p), -1)).all(1)
        if not bool(alive_N.all()):
            for tensor, old in zip(tensors, before, strict=True):
                mask = alive_N.view(-1, *[1] * (tensor.dim() - 1))
                tensor.copy_(torch.where(mask, tensor, old))
        return alive_N

    def _update_all(self, gradients: Sequence[Tensor], rate_N: Tensor) -> None:
        for index, (p, g) in enumerate(zip(self.parameters, gradients, strict=True)):
            self._update(index, p, g, rate_N)

    def _update(self, index: int, p: Tensor, g: Tensor, rate_N: Tensor) -> None:
        if self._decays_weights:
            if self._kind == "adamw":
                p.mul_(_like(1 - rate_N * self._weight_decay_N, p))
            else:
                g = g + p * _like(self._weight_decay_N, p)
        if self._kind == "sgd":
            if self._has_momentum:
                buffer = self._first[index]
                if self._steps == 1:
                    buffer.copy_(g)
                else:
                    buffer.mul_(_like(self._momentum_N, p)).add_(g)
                g = buffer
            p.sub_(g * _like(rate_N, p))
            return
        first, second = self._first[index], self._second[index]
        first.add_((g - first) * _like(1 - self._beta1_N, p))
        beta2 = _like(self._beta2_N, p)
        second.mul_(beta2).add_(g.square() * _like(1 - self._beta2_N, p))
        step_N = rate_N / (1 - self._beta1_N**self._steps)
        correction_N = (1 - self._beta2_N**self._steps).sqrt()
        denominator = second.sqrt().div_(_like(correction_N, p)).add_(_like(self._epsilon_N, p))
        p.sub_(first.div(denominator).mul_(_like(step_N, p)))


def _like(values_N: Tensor, p: Tensor) -> Tensor:
    return values_N.to(p.dtype).view(-1, *[1] * (p.dim() - 1))
