"""Next-character prediction on running text, as CharRNN (Vogt et al. 2022, Figs. 4 and 5).

The text is split by position into train, validation and test. Each split is cut into
`batch_size` parallel streams, read in windows of `seq_len` characters whose hidden state is
carried from window to window. A target is always the character that really follows, also at
the end of a window or stream (the published code wraps it to the window's first character).

Shapes: N members, B streams, T steps, O characters of the alphabet.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from tasks import base, datasets
from tasks.base import Batch, Bounds, MissingDataError, Split, UnsuitableError
from tasks.cross_entropy import cross_entropy

TEXTS = ("pydoc", "war_and_peace")
# Of a packed text when it is unpacked; who has more of it has the room to keep it unpacked.
_MOST_BYTES = 2**27


class CharText(base.Task):
    """Predict the next character. Loss: cross-entropy in nats per character."""

    @dataclass(frozen=True, kw_only=True)
    class Config(base.Config):
        """Which text, and how it is cut.

        text: pydoc (comes with Python), war_and_peace (to be fetched), or the path of a UTF-8
            text file, which may be gzipped (`.gz`).
        batch_size: streams read side by side.
        seq_len: characters in one window, through which gradients flow.
        characters: use only the first so many; None for all.
        train, validation: shares of the text, from its start; the rest is the test split.
        """

        text: str = "pydoc"
        batch_size: Annotated[int, Bounds(ge=1)] = 32
        seq_len: Annotated[int, Bounds(ge=1)] = 64
        characters: Annotated[int, Bounds(ge=2)] | None = None
        train: Annotated[float, Bounds(gt=0, lt=1)] = 0.8
        validation: Annotated[float, Bounds(gt=0, lt=1)] = 0.1

    input_kind = "tokens"
    score_name = "bits_per_character"
    higher_is_better = False

    alphabet: str
    splits: dict[Split, Tensor]

    def __init__(
        self,
        config: Config,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        """Reads and encodes the text; contiguous reading leaves nothing for `seed` to decide."""
        self.config = config
        text = load_text(config.text)
        if config.characters is not None:
            if config.characters > len(text):
                raise UnsuitableError(
                    f"characters must be at most {len(text)}, the length of text "
                    f"{config.text!r}, got {config.characters}"
                )
            text = text[: config.characters]
        code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        letters, codes = np.unique(code_points, return_inverse=True)
        if len(letters) < 2:
            raise UnsuitableError(
                f"text {config.text!r} must hold at least 2 different characters, "
                f"holds {len(letters)}"
            )
        self.alphabet = "".join(map(chr, letters))
        self.input_size = self.output_size = len(letters)
        self.chance_loss = math.log(len(letters))
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self.splits = _split(torch.from_numpy(codes.astype(np.int64)).to(device), config)
        self.num_updates = self._stream_length("train") // config.seq_len

    def training_batches(self, epoch: int) -> Iterator[Batch]:
        """The same windows in every epoch: text is read in order."""
        return self._windows("train", self.num_updates * self.config.seq_len)

    def batches(self, split: Split) -> Iterator[Batch]:
        """The split in order, state carried; the last window is as short as need be."""
        return self._windows(split, self._stream_length(split))

    def per_example(self, outputs_N: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of outputs (N, B, T, O) with targets (B, T), in nats: (N, B T)."""
        return {"loss": cross_entropy(outputs_N, targets).flatten(1)}

    def summarise(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds `bits_per_character` and `perplexity` (per character; inf where exp overflows)."""
        loss = means["loss"]
        return means | {"bits_per_character": loss / math.log(2), "perplexity": loss.exp()}

    def probe_inputs(self, count: int, steps: int | None, generator: torch.Generator) -> Batch:
        """`count` stretches of validation text from random places, (count, steps) int64."""
        steps = self.config.seq_len if steps is None else steps
        text = self.splits["validation"]
        num_places = len(text) - steps
        if num_places < 1:
            raise UnsuitableError(
                f"steps of a probe must be at most {len(text) - 1}, one less than the "
                f"validation split's characters, got {steps}"
            )
        start = torch.randint(
            num_places, (count, 1), generator=generator, device=generator.device
        ).to(text.device)
        places = start + torch.arange(steps, device=text.device)
        return Batch(text[places], text[places + 1])

    def _stream_length(self, split: Split) -> int:
        # One less, because the last character is only ever a target.
        return (len(self.splits[split]) - 1) // self.config.batch_size

    def _windows(self, split: Split, end: int) -> Iterator[Batch]:
        B, length = self.config.batch_size, self._stream_length(split)
        text = self.splits[split]
        inputs, targets = text[: B * length].view(B, -1), text[1 : B * length + 1].view(B, -1)
        for start in range(0, end, self.config.seq_len):
            window = slice(start, min(start + self.config.seq_len, end))
            yield Batch(inputs[:, window].contiguous(), targets[:, window].contiguous(), start == 0)


def load_text(text: str) -> str:
    """A text by name or path. Line ends stay as they are; a byte-order mark is dropped.

    Raises MissingDataError, CorruptDataError, UnsuitableError (not UTF-8).
    """
    if text == "pydoc":
        return datasets.pydoc_text()
    if text == "war_and_peace":
        return datasets.read(text)[0].decode()
    path = Path(text).expanduser().absolute()
    if not path.is_file():
        raise MissingDataError(
            f"text must be one of {', '.join(TEXTS)} or the path of a file, "
            f"got {text!r}; there is no file {path}"
        )
    try:
        with datasets.open_plain(path) as source:
            data = source.read()
        if path.suffix == ".gz":
            data = datasets.gunzipped(data, _MOST_BYTES, f"text {path}")
        return data.decode("utf-8-sig")
    except datasets.CorruptDataError:
        raise
    except OSError as error:
        raise datasets.CorruptDataError(f"text {path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise UnsuitableError(
            f"text {path} must be UTF-8; byte {error.start} is not ({error.reason})"
        ) from error


def _split(text: Tensor, config: CharText.Config) -> dict[Split, Tensor]:
    """Train, validation and test by position, each long enough for one window a stream."""
    if config.train + config.validation >= 1:
        raise UnsuitableError(
            f"train + validation must be below 1, to leave a test split, "
            f"got {config.train} + {config.validation}"
        )
    first = round(len(text) * config.train)
    second = round(len(text) * (config.train + config.validation))
    splits: dict[Split, Tensor] = {
        "train": text[:first],
        "validation": text[first:second],
        "test": text[second:],
    }
    name, shortest = min(splits.items(), key=lambda item: len(item[1]))
    room, needed = len(shortest) - 1, config.batch_size * config.seq_len
    if room < needed:
        share = len(shortest) / len(text)
        choices = [f"a text of {math.ceil((needed + 2) / share)} characters"] if share else []
        if room >= config.seq_len:
            choices.append(f"batch_size at most {room // config.seq_len}")
        if room >= config.batch_size:
            choices.append(f"seq_len at most {room // config.batch_size}")
        raise UnsuitableError(
            f"text {config.text!r} is too short: batch_size {config.batch_size} x seq_len "
            f"{config.seq_len} needs {needed + 1} characters in every split, the {name} split "
            f"has {len(shortest)}; what would work: {', or '.join(choices) or 'a longer text'}"
        )
    return splits
