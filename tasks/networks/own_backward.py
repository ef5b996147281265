"""Networks that compute their gradient themselves, without an autograd graph inside.

An update of many narrow networks is a few hundred short operations; recording, allocating and
replaying them one by one costs as much as they do. A network that mixes this class in gives its
forward pass and its transpose, works in memory kept from update to update, and still looks to
autograd like one differentiable function.

Shapes: N members, P parameters of one of them.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tasks.networks.dropout import DropoutStreams
from tasks.networks.workspace import Workspace


class OwnBackward(nn.Module):
    """A mixin that goes before `Network` among the bases and supplies `forward`."""

    num_members: int

    @abstractmethod
    def _run(
        self,
        inputs: Tensor,
        state: Any,
        dropout: DropoutStreams | None,
        workspace: Workspace,
        members: slice,
        *,
        keep: bool,
    ) -> tuple[Tensor, Any, Any]:
        """Outputs and state of some members and, with `keep`, what `_pull` needs. Without grad.

        `state` is that of these members. Outputs and the state returned are the caller's own;
        what `_pull` needs may lie in `workspace`.
        """

    @abstractmethod
    def _pull(
        self, tape: Any, d_outputs: Tensor, into: Sequence[Tensor], *, wants_inputs: bool
    ) -> Tensor | None:
        """Writes the gradient of every parameter to `into`, in the order of `parameters()`.

        Outputs and `into` are those of the members of the tape, which is left as it was. Returns
        the gradient of the inputs where it is wanted.
        """

    def _chunks(self, inputs: Tensor) -> list[slice]:
        """Members whose activations are kept at a time, and that advance together."""
        return [slice(0, self.num_members)]

    def _of_members(self, state: Any, members: slice) -> Any:
        """The part of a carried state that is of these members."""
        return None

    def _joined(self, states: Sequence[Any]) -> Any:
        """The state of all members from those of the chunks."""
        return None

    def forward(
        self, inputs: Tensor, state: Any = None, *, dropout: DropoutStreams | None = None
    ) -> tuple[Tensor, Any]:
        """See `Network.forward`."""
        if torch._C._are_functorch_transforms_active():
            # torch.func differentiates through every operation; it cannot enter one node.
            return self._composed(inputs, state), None
        if torch.is_grad_enabled():
            reached: list[Any] = []
            whole: Callable[..., Tensor] = _Whole.apply
            outputs = whole(self, reached, inputs, state, dropout, *self.parameters())
            return outputs, reached[0]
        outputs, after, _ = self._run_all(inputs, state, dropout, keep=False)
        return outputs, after

    def _run_all(
        self, inputs: Tensor, state: Any, dropout: DropoutStreams | None, *, keep: bool
    ) -> tuple[Tensor, Any, list[Any]]:
        """All chunks, each in memory of its own if it is kept."""
        workspace, chunks = Workspace(), self._chunks(inputs)
        found = []
        for members in chunks:
            space = Workspace() if keep else workspace
            start = self._of_members(state, members)
            found.append(self._run(inputs, start, dropout, space, members, keep=keep))
        if dropout is not None:
            dropout.advance()
        outputs, states, tapes = zip(*found, strict=True)
        whole = outputs[0] if len(chunks) == 1 else torch.cat(outputs)
        return whole, self._joined(states), list(tapes)

    def _composed(self, inputs: Tensor, state: Any) -> Tensor:
        """Outputs by operations that torch.func can transform, without dropout."""
        raise NotImplementedError(
            f"{type(self).__name__} cannot be transformed by torch.func (vmap, jvp, jacrev, …); "
            "its derivatives along an orbit are those of `orbit`"
        )

    def gradient(
        self,
        losses: Callable[[Tensor], Tensor],
        inputs: Tensor,
        state: Any = None,
        *,
        dropout: DropoutStreams | None = None,
    ) -> tuple[Tensor, Any, Tensor]:
        """See `Network.gradient`; the gradient lies where the next call will put its own.

        Chunk by chunk, so that the activations of one chunk alone are ever kept.
        """
        gradient_NP, into = self._gradient_block()
        chunks, workspace = self._chunks(inputs), self._memory()
        found: list[tuple[Tensor, Any]] = []
        for members in chunks:
            start = self._of_members(state, members)
            with torch.no_grad():
                outputs, after, tape = self._run(
                    inputs, start, dropout, workspace, members, keep=True
                )
            with torch.enable_grad():
                loss_N = losses(outputs.requires_grad_())
                (d_outputs,) = torch.autograd.grad(loss_N.sum(), outputs)
            parts = into if len(chunks) == 1 else [part[members] for part in into]
            with torch.no_grad():
                self._pull(tape, d_outputs, parts, wants_inputs=False)
            found.append((loss_N.detach(), after))
            del tape, outputs, d_outputs
        if dropout is not None:
            dropout.advance()
        losses_N, states = zip(*found, strict=True)
        return torch.cat(losses_N), self._joined(states), gradient_NP

    def select(self, members: Sequence[int]) -> None:
        """See `Network.select`."""
        self.__dict__.pop("_workspace", None)
        self.__dict__.pop("_block", None)
        super().select(members)  # type: ignore[misc]

    def _memory(self) -> Workspace:
        return self.__dict__.setdefault("_workspace", Workspace())  # type: ignore[no-any-return]

    def _gradient_block(self) -> tuple[Tensor, list[Tensor]]:
        """Memory for one gradient (N, P) and its parts, made once: slicing costs time too."""
        if "_block" not in self.__dict__:
            self.__dict__["_block"] = gradient_block(list(self.parameters()))
        block: tuple[Tensor, list[Tensor]] = self.__dict__["_block"]
        return block


def gradient_block(parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """An empty (N, P) and a view of it for each parameter (N, …)."""
    sizes = [p[0].numel() for p in parameters]
    whole_NP = parameters[0].new_empty(len(parameters[0]), sum(sizes)).detach()
    parts = torch.split(whole_NP, sizes, dim=1)
    return whole_NP, [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]


class _Whole(torch.autograd.Function):
    """A network's forward pass as one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any,
        network: OwnBackward,
        reached: list[Any],
        inputs: Tensor,
        state: Any,
        dropout: DropoutStreams | None,
        *parameters: Tensor,
    ) -> Tensor:
        outputs, after, ctx.tapes = network._run_all(inputs, state, dropout, keep=True)
        reached.append(after)
        ctx.network, ctx.chunks = network, network._chunks(inputs)
        # Saved for autograd's check that nobody has changed them when backward reads them.
        ctx.save_for_backward(inputs, *parameters)
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_outputs: Tensor) -> tuple[Any, ...]:
        parameters = ctx.saved_tensors[1:]
        _, into = gradient_block(parameters)
        d_inputs = None
        for tape, members in zip(ctx.tapes, ctx.chunks, strict=True):
            parts = [part[members] for part in into]
            found = ctx.network._pull(
                tape, d_outputs[members], parts, wants_inputs=ctx.needs_input_grad[2]
            )
            d_inputs = found if d_inputs is None else d_inputs + found
        return (None, None, d_inputs, None, None, *into)
