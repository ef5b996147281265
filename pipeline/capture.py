"""Updates recorded once and replayed: a GPU is given thousands of small kernels in one call.

An update of a recurrent population is thousands of kernels of microseconds, and Python asks for
them more slowly than a GPU runs them. A CUDA graph asks for all of them at once, but replays
addresses and Python numbers as they were: so everything that an update reads or writes has to stay
where it is, and whatever changes from one to the next has to be a tensor. Batches, and the state
carried from batch to batch, are copied to where the recording reads them; updates are counted on
the device; schedules write their rates in place.

None of that is particular to CUDA: without a recorder the same calls run one after the other, and
with one that returns its argument they run on the very buffers a recording would use.

Shapes: N members.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FunctionType, MethodType, ModuleType
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from tasks.base import Batch

Trained = TypeVar("Trained")

WARMUP = 3
"""Updates of one shape that run as they come before the next is recorded: libraries choose their
kernels and take their memory in them, which a recording cannot hold."""


Advance = Callable[[Trained, Tensor, Tensor, Any], tuple[Tensor, Any]]
"""One update in place: from inputs, targets and state to losses (N,) and the state after.

It reads no value back from the device and, from one call to the next, no Python number that
changes. A state is None or tensors in tuples, lists and dictionaries.
"""


class Recorder(Protocol):
    """What can record a run of kernels."""

    def aside(self) -> AbstractContextManager[None]:
        """Where to run what is to be recorded later."""
        ...

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """What does, each time it is called, as `run` would. Recording itself does nothing.

        Raises RuntimeError where `run` does what cannot be recorded.
        """
        ...


class CudaGraphs:
    """Records CUDA graphs on a stream of its own."""

    def __init__(self, device: str | torch.device) -> None:
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    @contextmanager
    def aside(self) -> Iterator[None]:
        """See `Recorder`: on the stream, between what came before and what comes after."""
        outside = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            yield
        outside.wait_stream(self._stream)

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """See `Recorder`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), torch.cuda.graph(graph, stream=self._stream):
            run()
        replay: Callable[[], None] = graph.replay
        return replay


class Steps(Generic[Trained]):
    """A population's updates, one after the other.

    Args:
        advance: one of them.
        recorder: None runs each as it comes. Otherwise batches of a shape that has come `WARMUP`
            times running are replayed; other shapes, such as an epoch's last and smaller batch,
            run as they come. Should recording fail, a warning says why, and all do.
    """

    def __init__(self, advance: Advance[Trained], recorder: Recorder | None = None) -> None:
        self._advance, self._recorder = advance, recorder
        self.restart()

    @property
    def is_recorded(self) -> bool:
        """Whether there is a recording to replay."""
        return self._recording is not None

    def restart(self) -> None:
        """Drops the recording: tensors of the population are no longer where they were."""
        self._recording: _Recording | None = None
        self._layout: _Layout | None = None
        self._repeats = 0
        self._like: tuple[Tensor, Any] | None = None
        self.forget()

    def forget(self) -> None:
        """The next update starts from no state."""
        self._state: Any = None

    def __call__(self, trained: Trained, batch: Batch) -> Tensor:
        """One update. Returns its losses (N,), which the next call may overwrite."""
        if batch.is_start:
            self.forget()
        if self._recorder is None:
            return self._as_it_comes(trained, batch)
        layout = _layout(batch)
        self._repeats = self._repeats + 1 if layout == self._layout else 1
        self._layout = layout
        recording = self._recording
        if (recording is None or recording.layout != layout) and self._repeats > WARMUP:
            recording = self._recorded(trained, batch)
        if recording is None or not recording.fits(layout, self._state):
            with self._aside():
                return self._as_it_comes(trained, batch)
        loss_N = recording(batch, self._state)
        self._state = recording.state
        return loss_N

    def _aside(self) -> AbstractContextManager[None]:
        return nullcontext() if self._recorder is None else self._recorder.aside()

    def _as_it_comes(self, trained: Trained, batch: Batch) -> Tensor:
        loss_N, self._state = self._advance(trained, batch.inputs, batch.targets, self._state)
        if self._recorder is not None:
            self._like = loss_N, self._state
        return loss_N

    def _recorded(self, trained: Trained, batch: Batch) -> "_Recording | None":
        """A recording for batches of this shape, which is kept; None where there can be none."""
        assert self._recorder is not None
        assert self._like is not None
        # The old one goes first: the two need not fit side by side.
        self._recording = None
        try:
            # The update before was of this shape too, and left what the buffers are to be like.
            recording = _Recording(batch, *self._like)
            recording.make(self._recorder, self._advance, trained)
        except RuntimeError as error:
            warnings.warn(
                "updates could not be recorded and will run kernel by kernel, with the same "
                f"results but more slowly: {error}",
                RuntimeWarning,
                stacklevel=3,
            )
            self._recorder = None
            return None
        self._recording = recording
        return recording


class _Recording:
    """One update on buffers that stay where they are."""

    def __init__(self, batch: Batch, loss_N: Tensor, state: Any) -> None:
        self.layout = _layout(batch)
        self.state = _zeros_like(state)
        self._inputs = torch.empty_like(batch.inputs, memory_format=torch.contiguous_format)
        self._targets = torch.empty_like(batch.targets, memory_format=torch.contiguous_format)
        self._loss_N = torch.empty_like(loss_N)
        self._replay: Callable[[], None] | None = None
        self._held: list[Tensor] = []

    def make(self, recorder: Recorder, advance: Advance[Trained], trained: Trained) -> None:
        """Records; runs nothing."""

        def run() -> None:
            loss_N, after = advance(trained, self._inputs, self._targets, self.state)
            self._loss_N.copy_(loss_N)
            _copy(after, self.state)

        self._replay = recorder.record(run)
        # Replays write to memory that whoever took it may give back, as for a larger batch.
        self._held = tensors_in(trained)

    def fits(self, layout: "_Layout", state: Any) -> bool:
        """Whether a batch of this layout and this state fit the buffers."""
        if layout != self.layout:
            return False
        shapes = [[t.shape for t in _leaves(each)] for each in (self.state, state)]
        return state is None or shapes[0] == shapes[1]

    def __call__(self, batch: Batch, state: Any) -> Tensor:
        assert self._replay is not None
        self._inputs.copy_(batch.inputs)
        self._targets.copy_(batch.targets)
        if state is None:
            for part in _leaves(self.state):
                part.zero_()
        elif state is not self.state:
            _copy(state, self.state)
        self._replay()
        return self._loss_N


_Layout = tuple[Any, ...]


def _layout(batch: Batch) -> _Layout:
    return (
        batch.inputs.shape,
        batch.inputs.dtype,
        batch.targets.shape,
        batch.targets.dtype,
    )


def _zeros_like(state: Any) -> Any:
    """Buffers for a state, all zero, which is where every state starts."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        return torch.zeros_like(state)
    if type(state) in (tuple, list):
        return type(state)(_zeros_like(part) for part in state)
    if type(state) is dict:
        return {name: _zeros_like(part) for name, part in state.items()}
    raise RuntimeError(
        "a carried state must be None or tensors in tuples, lists and dictionaries; "
        f"got a {type(state).__name__}"
    )


def _leaves(state: Any) -> list[Tensor]:
    """The tensors of a state in order; one that stands there twice comes twice."""
    if isinstance(state, Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state or ()
    return [leaf for part in parts for leaf in _leaves(part)]


def _copy(source: Any, target: Any) -> None:
    for theirs, ours in zip(_leaves(source), _leaves(target), strict=True):
        ours.copy_(theirs)


def tensors_in(root: Any) -> list[Tensor]:
    """All tensors that can be reached from an object, in a fixed order, each once."""
    found: list[Tensor] = []
    seen: set[int] = set()
    waiting: list[Any] = [root]
    while waiting:
        here = waiting.pop()
        if id(here) in seen or isinstance(here, _CLOSED):
            continue
        seen.add(id(here))
        if isinstance(here, Tensor):
            found.append(here)
            continue
        if isinstance(here, dict):
            parts = list(here.values())
        elif isinstance(here, (tuple, list)):
            parts = list(here)
        else:
            parts = list(getattr(here, "__dict__", {}).values())
        waiting += reversed(parts)
    return found


_CLOSED = (str, bytes, int, float, bool, type(None), type, ModuleType, FunctionType, MethodType)
