"""Which activations are dropped in training: one stream of random bits a member, drawn for all.

Member n's draw of update u is words u·2³² … of SplitMix64 (Steele, Lea & Flood 2014, fig. 15)
seeded with that member's seed; 16 bits decide on one activation. A draw is a function of seed,
update and place alone: the same in any company, on every device and in both precisions, without
256 calls to generators at an update of 32 members of 8 layers, and with one number a member as
its whole state.

Shapes: N members, M activations.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_PER_WORD = 4  # activations decided by one word of 64 bits
_LEVELS = 1 << 16
_BLOCK = 1 << 15  # words mixed at a time, so that they stay in a core's second cache

_ALL = slice(None)


def _signed(word: int) -> int:
    """The int64 of the same 64 bits; torch has no arithmetic on uint64."""
    return (word + (1 << 63)) % (1 << 64) - (1 << 63)


_GAMMA = 0x9E3779B97F4A7C15
_STRIDE = _signed((_GAMMA << 32) % (1 << 64))
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None))


def num_words(num_members: int, num_activations: int) -> int:
    """Words of memory that a draw needs."""
    return num_members * -(-num_activations // _PER_WORD)


class DropoutStreams:
    """Where the members' streams stand.

    Args:
        seeds: one a member.
    """

    def __init__(self, seeds: Sequence[int], device: str | torch.device = "cpu") -> None:
        words = [[_signed(seed % (1 << 64))] for seed in seeds]
        self.position_N1 = torch.tensor(words, dtype=torch.int64, device=device)
        """The state: what a checkpoint has to keep."""
        self._places = torch.empty(0, dtype=torch.int64, device=device)

    def draw(
        self, num_activations: int, members: slice = _ALL, into: Tensor | None = None
    ) -> Tensor:
        """Uniform int16 numbers (N, M) of these members for the update that is on.

        into: memory for them, int64 of at least `num_words(N, M)`.
        """
        start_N1 = self.position_N1[members]
        num_members, num_words = len(start_N1), -(-num_activations // _PER_WORD)
        if into is None:
            into = start_N1.new_empty(num_members * num_words)
        words = into[: num_members * num_words].view(num_members, num_words)
        if self._places.numel() < num_words:
            self._places = torch.arange(num_words, device=words.device) * _signed(_GAMMA)
        places = self._places[:num_words]
        block = max(1, _BLOCK // num_words) if words.device.type == "cpu" else num_members
        for first in range(0, num_members, block):
            rows = slice(first, first + block)
            _mix(torch.add(start_N1[rows], places, out=words[rows]))
        return words.view(torch.int16)[:, :num_activations]

    def advance(self) -> None:
        """The next update is on."""
        self.position_N1 += _STRIDE

    def select(self, members: Tensor) -> None:
        """Keeps these members, in this order."""
        self.position_N1 = self.position_N1[members]


def _mix(z: Tensor) -> None:
    """SplitMix64's finaliser in place. int64 products wrap, and `>>` copies the sign."""
    shifted = torch.empty_like(z)
    for shift, factor in _MIX:
        torch.bitwise_right_shift(z, shift, out=shifted)
        z.bitwise_xor_(shifted.bitwise_and_((1 << (64 - shift)) - 1))
        if factor is not None:
            z.mul_(_signed(factor))


class DropoutRates(nn.Module):
    """One rate a member; inverted dropout, so that what is kept is scaled by 1/(1 − rate).

    Rates are rounded to 1/65,536, and the scale is that of the rounded rate.

    Attributes:
        rates: (N,) float64.
        keep_from_N11: numbers of a draw from here on keep their activation.
        scale_N11: 1/(1 − rate).
        is_on: whether any member drops anything. Where none does, a mask would be 1 throughout.
    """

    rates: Tensor
    keep_from_N11: Tensor
    scale_N11: Tensor

    def __init__(
        self, rates: Sequence[float], dtype: torch.dtype, device: str | torch.device
    ) -> None:
        super().__init__()
        exact = torch.tensor(rates, dtype=torch.float64)
        levels = (exact * _LEVELS).round().clamp(max=_LEVELS - 1)
        scale = (1 / (1 - levels / _LEVELS)).to(dtype)
        buffers = {
            "rates": (exact, True),
            "keep_from_N11": ((levels - _LEVELS // 2).to(torch.int16).view(-1, 1, 1), False),
            "scale_N11": (scale.view(-1, 1, 1), False),
        }
        for name, (values, persistent) in buffers.items():
            self.register_buffer(name, values.to(device), persistent=persistent)
        self.is_on = bool((levels > 0).any())

    def mask(self, drawn: Tensor, out: Tensor, members: slice = _ALL) -> Tensor:
        """1 where an activation (N, D, B) is kept and 0 where not, without the scale.

        `members` says which of them `drawn` is of.
        """
        kept: Tensor = torch.ge(drawn, self.keep_from_N11[members], out=out)
        return kept
