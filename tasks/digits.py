"""Handwritten digits as flat vectors: MNIST (LeCun, Cortes, Burges), or scikit-learn's 8x8 set.

Shapes: N members, B images, I = height x width pixels.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from tasks import base, datasets
from tasks.base import Batch, Bounds, Split, UnsuitableError, generator_for
from tasks.cross_entropy import accuracy, cross_entropy
from tasks.datasets import CorruptDataError
from tasks.examples import Examples

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

# The last images of the 8x8 set: a fifth, as large a share as leaves the other splits useful.
_TEST_SIZE_8X8 = 360


# Unpacked; MNIST has 47 megabytes.
_MOST_BYTES = 2**28


class Digits(base.Task):
    """Tell ten digits apart. Loss: cross-entropy in nats."""

    @dataclass(frozen=True, kw_only=True)
    class Config(base.Config):
        """Which digits, and how they are cut and scaled.

        data: digits8x8 (1,797 images, comes with scikit-learn; the last 360 are the test split)
            or mnist (to be fetched; its own test split).
        train_size: use only the first so many training images; None for all.
        validation: share cut from the end of the training images.
        scaling: unit: pixels in [0, 1]. centred: minus the mean over all pixels of the training
            split in use. standardised: and divided by their standard deviation.
        shift: training images are displaced anew in each epoch, each by at most so many pixels
            down or up and to a side, both drawn uniformly; what comes in is background.
        """

        data: Literal["digits8x8", "mnist"] = "digits8x8"
        train_size: Annotated[int, Bounds(ge=1)] | None = None
        batch_size: Annotated[int, Bounds(ge=1)] = 64
        validation: Annotated[float, Bounds(gt=0, lt=1)] = 0.1
        scaling: Literal["unit", "centred", "standardised"] = "standardised"
        shift: Annotated[int, Bounds(ge=0, le=8)] = 0

    input_kind = "vector"
    score_name = "accuracy"
    higher_is_better = True
    chance_loss = math.log(10)
    output_size = 10

    def __init__(
        self,
        config: Config,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        """Loads the images; `seed` decides the order of training batches, not the splits."""
        self.config = config
        self.seed = seed
        source = load_mnist() if config.data == "mnist" else _load_digits8x8()
        pixels, labels = _cut(source, config)
        centre, scale = _scaling(pixels["train"], source.brightest, config.scaling)
        self._background = -centre / scale
        self.examples = Examples(
            {
                split: torch.tensor(values)
                .to(device, dtype)
                .div_(source.brightest)
                .sub_(centre)
                .div_(scale)
                for split, values in pixels.items()
            },
            {
                split: torch.from_numpy(values.astype(np.int64)).to(device)
                for split, values in labels.items()
            },
        )
        self.input_size = pixels["train"].shape[1]
        self.num_updates = self.examples.num_updates(config.batch_size)
        self.fingerprint = self.examples.fingerprint()

    def training_batches(self, epoch: int) -> Iterator[Batch]:
        """All training images, shuffled anew each epoch; the last batch may be smaller."""
        order = generator_for(self.seed, "order", epoch)
        batches = self.examples.shuffled(self.config.batch_size, order)
        if not self.config.shift:
            return batches
        displacing = generator_for(self.seed, "shift", epoch)
        return (Batch(self._displaced(b.inputs, displacing), b.targets) for b in batches)

    def _displaced(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Images (B, I), each by a displacement of its own."""
        most, side = self.config.shift, math.isqrt(self.input_size)
        images = inputs.view(-1, side, side)
        wide = torch.nn.functional.pad(images, (most,) * 4, value=self._background)
        drawn = torch.randint(2 * most + 1, (2, len(images), 1), generator=generator)
        rows, columns = drawn.to(inputs.device) + torch.arange(side, device=inputs.device)
        at = (rows[:, :, None] * wide.shape[2] + columns[:, None, :]).flatten(1)
        return wide.flatten(1).gather(1, at)

    def batches(self, split: Split) -> Iterator[Batch]:
        """A whole split in the order of its files."""
        return self.examples.in_order(split)

    def per_example(self, outputs_N: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Loss, and accuracy (0 or 1), of outputs (N, B, 10): (N, B). NaN gives NaN in both."""
        loss = self.losses(outputs_N, targets)
        return {"loss": loss, "accuracy": accuracy(outputs_N, targets, loss)}

    def losses(self, outputs_N: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of outputs (N, B, 10): (N, B)."""
        return cross_entropy(outputs_N, targets)

    def probe_inputs(self, count: int, steps: int | None, generator: torch.Generator) -> Batch:
        """`count` different validation images; `steps` has no meaning here."""
        return self.examples.drawn(count, generator)


@dataclass(frozen=True)
class Images:
    """Images (B, height, width) and labels (B,) for training and testing, all uint8."""

    name: str
    train: tuple[Bytes, Bytes]
    test: tuple[Bytes, Bytes]
    brightest: int


def load_mnist() -> Images:
    """MNIST from its four idx files. Raises MissingDataError, CorruptDataError."""
    paths = [file.path for file in datasets.data_set("mnist").files]
    images, labels, test_images, test_labels = map(parse_idx, datasets.read("mnist"), paths)
    return Images("mnist", (images, labels), (test_images, test_labels), 255)


def _load_digits8x8() -> Images:
    images, labels = datasets.digits8x8()
    rest = slice(None, -_TEST_SIZE_8X8)
    test = slice(-_TEST_SIZE_8X8, None)
    return Images("digits8x8", (images[rest], labels[rest]), (images[test], labels[test]), 16)


def parse_idx(data: bytes, name: str) -> Bytes:
    """The array of bytes in an idx file, gzipped or not; `name` is what errors call it.

    Layout: two zero bytes, the type (8, unsigned byte), the number of axes, each axis as a
    big-endian 32-bit count, then the values. Raises CorruptDataError where `data` departs from it.
    """
    if data[:2] == b"\x1f\x8b":
        data = datasets.gunzipped(data, _MOST_BYTES, name)
    if len(data) < 4:
        raise CorruptDataError(f"{name} must start with 4 bytes of idx magic, holds {len(data)}")
    zeros, kind, num_axes = struct.unpack_from(">HBB", data)
    if zeros != 0 or kind != 8 or num_axes == 0:
        raise CorruptDataError(
            f"{name} must start with the idx magic 00 00 08 and a number of axes, "
            f"starts with {data[:4].hex(' ')}"
        )
    start = 4 + 4 * num_axes
    if len(data) < start:
        raise CorruptDataError(f"{name} must hold {num_axes} axis lengths, ends before the last")
    shape = struct.unpack_from(f">{num_axes}I", data, 4)
    if len(data) - start != math.prod(shape):
        raise CorruptDataError(
            f"{name} must hold {' x '.join(map(str, shape))} = {math.prod(shape)} values, "
            f"holds {len(data) - start}"
        )
    try:
        return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
    except ValueError as error:  # Axes of length 0 beside more, or longer ones, than arrays have.
        raise CorruptDataError(f"{name} has axes that no array can have ({error})") from error


def _cut(source: Images, config: Digits.Config) -> tuple[dict[Split, Bytes], dict[Split, Bytes]]:
    available = len(source.train[0])
    num_validation = max(1, round(available * config.validation))
    most = available - num_validation
    if most < 1:
        raise UnsuitableError(
            f"validation must leave at least 1 of {available} training images, "
            f"got {config.validation}"
        )
    if config.train_size is not None and config.train_size > most:
        raise UnsuitableError(
            f"train_size must be at most {most} ({source.name} has {available} training images, "
            f"of which validation {config.validation} takes {num_validation}), "
            f"got {config.train_size}"
        )
    num_train = most if config.train_size is None else config.train_size
    pixels = source.train[0].reshape(available, -1)
    test_pixels = source.test[0].reshape(len(source.test[0]), -1)
    labels = source.train[1]
    return (
        {"train": pixels[:num_train], "validation": pixels[most:], "test": test_pixels},
        {"train": labels[:num_train], "validation": labels[most:], "test": source.test[1]},
    )


def _scaling(train: Bytes, brightest: int, scaling: str) -> tuple[float, float]:
    """What to subtract from pixels in [0, 1], and what to divide them by then.

    One number for all pixels: those of the margin never vary, so their own scale would be 0.
    """
    values = np.bincount(train.ravel(), minlength=brightest + 1)
    grey = np.arange(len(values)) / brightest
    mean = float(values @ grey) / train.size
    deviation = math.sqrt(float(values @ (grey - mean) ** 2) / train.size)
    if scaling == "unit":
        return 0.0, 1.0
    return mean, deviation if scaling == "standardised" else 1.0
