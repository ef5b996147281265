"""Foretell the next frame of motion capture, 25 frames at a time (after Vogt et al. 2022, Fig. 4).

Real data are the CMU recordings as exponential maps, 38 joints of 3 numbers at 120 frames a second
(Li, Zhang, Lee, Lee, CVPR 2018); `simulated` makes figures that walk (`gait.py`) and needs none.
What is done to both, in this order:

1. The first frame of every file is a rest pose and is dropped; then every `stride`-th is kept.
2. Recordings, not windows, are dealt to the splits, so that no frame is in two of them: the test
   recordings are those that came as such; the last fifth of an action's others is for validation.
3. Joints that leap by more than a radian from a frame to the next in some training recording are
   dropped: nobody turns so fast; there the coordinates wrap. Columns that do not vary are dropped.
4. Mean and standard deviation of the training frames normalise all splits.

Shapes: N members, B windows, T frames of a window, F frames, C columns, I = O columns kept.
"""

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from tasks import base, datasets, gait
from tasks.base import Batch, Bounds, MissingDataError, Split, UnsuitableError, generator_for
from tasks.gait import Recording
from tasks.sequences import Sequences

CMU_ACTIONS = ("basketball", "jumping", "running", "soccer", "walking")
"""Those of the eight with recordings in both parts of the table that we know."""

_LEAP = 1.0
_STILL = 1e-4
_SHARE = 5
_ROOT = 3  # columns of the root's position, in other units than radians


class Mocap(base.Task):
    """Next frame. Loss: mean squared error over columns, in variances of the training frames."""

    @dataclass(frozen=True, kw_only=True)
    class Config(base.Config):
        """Which recordings, and how they are cut.

        source: simulated (from the seed), or cmu (real; $LYAPSWEEP_DATA/cmu_mocap.parquet).
        actions: which of them; None: all gaits, or the five of CMU that every split has.
        seq_len: T, frames of a window.
        stride: every so many recorded frames are one step; 2 is 60 frames a second.
        hop: steps between the starts of training windows; they overlap where it is below
            seq_len. Windows for validation and test never do.
        batch_size: windows of one update.
        """

        source: Literal["simulated", "cmu"] = "simulated"
        actions: tuple[str, ...] | None = None
        seq_len: Annotated[int, Bounds(ge=2)] = 25
        stride: Annotated[int, Bounds(ge=1)] = 2
        hop: Annotated[int, Bounds(ge=1)] = 5
        batch_size: Annotated[int, Bounds(ge=1)] = 32

    input_kind = "sequence"
    score_name = "rmse"
    higher_is_better = False

    columns: tuple[int, ...]
    persistence_loss: float
    """Validation loss of saying that nothing moves."""

    def __init__(
        self,
        config: Config,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        """Reads or simulates, deals out, normalises and cuts."""
        self.config, self.seed = config, seed
        dealt = dealt_out(_chosen(config, seed))
        kept = {
            split: [r.frames[1 :: config.stride] for r in recordings]
            for split, recordings in dealt.items()
        }
        self.columns = usable_columns([r.frames[1:] for r in dealt["train"]])
        together = torch.cat(kept["train"])[:, list(self.columns)]
        mean_I, spread_I = together.mean(0), together.std(0, correction=0)
        normal = {
            split: [(frames[:, list(self.columns)] - mean_I) / spread_I for frames in recordings]
            for split, recordings in kept.items()
        }
        self.fingerprint = _fingerprint(normal)
        self._windows: dict[Split, Sequences] = {}
        for split, recordings in normal.items():
            cut = windows(recordings, config.seq_len, config.hop if split == "train" else None)
            if len(cut) == 0:
                raise UnsuitableError(
                    f"seq_len {config.seq_len} at stride {config.stride} needs "
                    f"{config.seq_len + 1} steps in one recording, those of the {split} split "
                    f"have at most {max(map(len, recordings))}"
                )
            placed = cut.to(device, dtype)
            self._windows[split] = Sequences(placed[:, :-1], placed[:, 1:])
        self._takes = [frames.to(device, dtype) for frames in normal["validation"]]
        self.input_size = self.output_size = len(self.columns)
        self.num_updates = -(-len(self._windows["train"].inputs) // config.batch_size)
        self.chance_loss = float(self._windows["train"].targets.double().square().mean())
        seen = self._windows["validation"]
        self.persistence_loss = float((seen.targets - seen.inputs).double().square().mean())

    def training_batches(self, epoch: int) -> Iterator[Batch]:
        """All training windows in an order of this epoch; the last batch may be smaller."""
        train = self._windows["train"]
        order = torch.randperm(
            len(train.inputs), generator=generator_for(self.seed, "train", epoch)
        ).to(train.inputs.device)
        for rows in torch.split(order, self.config.batch_size):
            yield Batch(train.inputs[rows], train.targets[rows])

    def batches(self, split: Split) -> Iterator[Batch]:
        """All windows of a split, recording by recording."""
        return self._windows[split].in_order()

    def per_example(self, outputs_N: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Squared error of outputs (N, B, T, O), mean over columns: (N, B T)."""
        return {"loss": (outputs_N - targets).square().mean(-1).flatten(1)}

    def summarise(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds `rmse`, in standard deviations of the training frames."""
        return means | {"rmse": means["loss"].sqrt()}

    def probe_inputs(self, count: int, steps: int | None, generator: torch.Generator) -> Batch:
        """`count` validation windows, or stretches of `steps` steps from anywhere in a recording.

        Stretches do not go on from one recording into another; they may overlap.
        """
        if steps is None:
            return self._windows["validation"].probe(count, None, generator)
        places = [max(0, len(frames) - steps) for frames in self._takes]
        if sum(places) == 0:
            raise UnsuitableError(
                f"steps of a probe must be at most {max(map(len, self._takes)) - 1}, one less than "
                f"the longest validation recording has, got {steps}"
            )
        if count > sum(places):
            raise UnsuitableError(
                f"a probe may take at most {sum(places)} stretches of {steps} steps from the "
                f"validation recordings, got {count}"
            )
        stretches = []
        drawn = torch.randint(
            sum(places), (count,), generator=generator, device=generator.device
        ).tolist()
        for place in drawn:
            for frames, available in zip(self._takes, places, strict=True):
                if place < available:
                    stretches.append(frames[place : place + steps + 1])
                    break
                place -= available
        together = torch.stack(stretches)
        return Batch(together[:, :-1], together[:, 1:])


def dealt_out(recordings: Iterable[Recording]) -> dict[Split, list[Recording]]:
    """Recordings by split: those for the test as they came, the last fifth of each action's others.

    Raises UnsuitableError where a split gets none.
    """
    dealt: dict[Split, list[Recording]] = {"train": [], "validation": [], "test": []}
    others: dict[str, list[Recording]] = defaultdict(list)
    for recording in recordings:
        (dealt["test"] if recording.is_test else others[recording.action]).append(recording)
    for _, takes in sorted(others.items()):
        in_order = sorted(takes, key=lambda take: take.number)
        # A single take is for training: it cannot be in two splits.
        held = -(-len(in_order) // _SHARE) if len(in_order) > 1 else 0
        dealt["train"] += in_order[: len(in_order) - held]
        dealt["validation"] += in_order[len(in_order) - held :]
    for split, takes in dealt.items():
        if not takes:
            names = sorted({r.action for part in dealt.values() for r in part})
            raise UnsuitableError(
                f"actions {', '.join(names)} leave the {split} split without a recording; of cmu "
                f"those that work alone are {', '.join(CMU_ACTIONS)}"
            )
    return dealt


def usable_columns(training: list[Tensor]) -> tuple[int, ...]:
    """Columns that vary, of joints that never leap, judged by the training recordings alone.

    Of root positions, the first three columns, no leap is asked: they are no angles.
    """
    spread_C = torch.cat(training).std(0, correction=0)
    # A recording of one frame has no step to the next.
    leaps = [f.diff(dim=0).abs().amax(0) for f in training if len(f) > 1]
    leap_C = torch.stack(leaps).amax(0) if leaps else torch.zeros_like(spread_C)
    of_joint = leap_C.view(-1, 3).amax(1).repeat_interleave(3)
    of_joint[:_ROOT] = 0
    usable = (spread_C >= _STILL) & (of_joint <= _LEAP)
    return tuple(usable.nonzero().flatten().tolist())


def windows(recordings: list[Tensor], seq_len: int, hop: int | None) -> Tensor:
    """(B, T + 1, I): inputs and the frame after each; None: windows that share no step."""
    pieces = [
        frames.unfold(0, seq_len + 1, hop or seq_len + 1).transpose(1, 2)
        for frames in recordings
        if len(frames) > seq_len
    ]
    return torch.cat(pieces) if pieces else torch.empty(0, seq_len + 1, 0)


def _chosen(config: Mocap.Config, seed: int) -> list[Recording]:
    """The recordings of the actions asked for. Raises UnsuitableError for an unknown action."""
    is_real = config.source == "cmu"
    found = list(read_cmu() if is_real else gait.recordings(seed))
    names = sorted({recording.action for recording in found})
    every = CMU_ACTIONS if is_real else tuple(gait.GAITS)
    wanted = every if config.actions is None else config.actions
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise UnsuitableError(
            f"actions must be among those of {config.source}, {', '.join(names)}; got "
            f"{', '.join(unknown)}"
        )
    return [recording for recording in found if recording.action in wanted]


def read_cmu() -> Iterator[Recording]:
    """The recordings of CMU. Raises MissingDataError, CorruptDataError."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDataError(
            "data set cmu_mocap is a Parquet table, and pyarrow, which reads it, is not "
            "installed; run `pip install pyarrow`, or set source to simulated"
        ) from error
    try:
        (data,) = datasets.read("cmu_mocap")
    except datasets.CorruptDataError:
        raise
    except MissingDataError as error:
        raise MissingDataError(f"{error}; or set source to simulated") from error
    table = parquet.read_table(io.BytesIO(data))
    names = [name for name in table.column_names if name.startswith("x")]
    frames = torch.stack([torch.tensor(table[name].to_numpy()) for name in names], dim=1).double()
    keys = list(zip(*(table[n].to_pylist() for n in ("action", "sequence", "split")), strict=True))
    starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
    for start, end in zip(starts, [*starts[1:], len(keys)], strict=True):
        action, number, split = keys[start]
        yield Recording(action, number, split == "test", frames[start:end])


def _fingerprint(normal: dict[Split, list[Tensor]]) -> str:
    digest = hashlib.sha256()
    for split, recordings in normal.items():
        for frames in recordings:
            digest.update(f"{split} {tuple(frames.shape)}".encode())
            digest.update(frames.contiguous().numpy().data)
    return digest.hexdigest()
