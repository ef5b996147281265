"""What a regulariser is: a penalty on a population's parameters, added to each member's loss.

Its gradient joins that of the loss before anything is clipped; losses are recorded without it. A
member whose weight is 0 trains bit for bit as if there were none, and a penalty or a gradient that
is not finite makes its member diverge, like a loss that is not.

Shapes: N members, B examples, P parameters of one member.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from tasks.base import Bounds, Config, PerMember, Task
from tasks.networks.base import Network
from tasks.networks.layers import common_settings


@dataclass(frozen=True, kw_only=True)
class RegulariserConfig(Config):
    """How strong a penalty is, and for how long.

    weight: factor of the penalty; 0 leaves a member alone.
    until: the last epoch in which it acts; None: all.
    """

    weight: Annotated[float, Bounds(ge=0), PerMember()] = 1.0
    until: Annotated[int | None, Bounds(ge=1)] = None


class Regulariser(ABC):
    """One penalty on the members of a population. What it draws follows from seed and epoch.

    Args:
        configs: one a member; they agree in all but the weight.
        seeds: the members' own.

    Attributes:
        is_recordable: whether it may stand within a CUDA graph: it asks nothing of the device, and
            from one update to the next of an epoch nothing changes but tensors.
    """

    Config: ClassVar[type[RegulariserConfig]]
    is_recordable: ClassVar[bool] = False

    def __init__(
        self, configs: Sequence[Any], seeds: Sequence[int], device: str | torch.device = "cpu"
    ) -> None:
        self.config = common_settings(configs)
        self.seeds = list(seeds)
        weights = [float(c.weight) for c in configs]
        self._weight_N1 = torch.tensor(weights, dtype=torch.float64, device=device).unsqueeze(1)
        self._is_wanted = any(weights)
        self.start_epoch(1)

    @abstractmethod
    def check(self, network: Network, task: Task) -> None:
        """Raises UnsuitableError where network or task cannot be penalised."""

    @abstractmethod
    def penalty(self, network: Network, inputs: Tensor) -> Tensor:
        """The penalty (N,) of every member, in the graph of the parameters.

        inputs: those of the batch at hand. Nothing may be reduced over the members.
        """

    def start_epoch(self, epoch: int) -> None:
        """What changes between epochs."""
        self._epoch = epoch

    @property
    def is_active(self) -> bool:
        """Whether it acts on anyone in this epoch."""
        until = self.config.until
        return self._is_wanted and (until is None or self._epoch <= until)

    def add(self, gradient_NP: Tensor, network: Network, inputs: Tensor) -> None:
        """Adds each member's weight times the gradient of its penalty, in place."""
        parameters = list(network.parameters())
        with torch.enable_grad():
            penalty_N = self.penalty(network, inputs)
            parts = torch.autograd.grad(
                penalty_N.sum(), parameters, allow_unused=True, materialize_grads=True
            )
        own_NP = torch.cat([part.flatten(1) for part in parts], dim=1)
        weight_N1 = self._weight_N1.to(own_NP)
        # Adding zero is not leaving alone: −0 + 0 is 0, and 0 · NaN is NaN.
        added_NP = torch.where(weight_N1 > 0, gradient_NP + weight_N1 * own_NP, gradient_NP)
        gradient_NP.copy_(added_NP)

    def select(self, members: Sequence[int]) -> None:
        """Keeps these members, in this order."""
        self.seeds = [self.seeds[n] for n in members]
        self._weight_N1 = self._weight_N1[list(members)]
        self._is_wanted = bool((self._weight_N1 > 0).any())
