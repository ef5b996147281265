"""Coordinates of an LSTM's state in which Gaussian elimination leaves h the shorter rows.

Only the rows of h enter products with weights, so the sooner they end in a triangular frame, the
fewer operations. With h' = w + d c', where w is what the output gate adds and d = o sech² c',

    ĥ = h'/e,    ĉ = c' − h'/e,    e = max(d, 1/16)

are as good coordinates as h' and c': the exponents do not depend on them. ĥ is about c', and ĉ
about −w/e, which is small as long as c' says most about h'; pivots are then found among ĥ first.
Moreover ĉ is computed from w itself: in (h', c') the weakest directions are differences of large
numbers, and the smallest exponents lose digits that they keep here. Units shut off by their
output gate, d < 1/16, hold on to their own h'; nothing depends on which pivots are found but time.

Shapes: H units, K tangents, D state, E entries of what comes in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

LEAST = 1 / 16


class Mix(NamedTuple):
    """How the rows of the result consist of c' and w, each (H,): those of h and those of c."""

    h_by_c: Tensor
    h_by_w: Tensor
    c_by_c: Tensor
    c_by_w: Tensor

    @classmethod
    def plain(cls, h_by_c: Tensor) -> "Mix":
        """h' and c' themselves, given d."""
        one = torch.ones_like(h_by_c)
        return cls(h_by_c, one, one, torch.zeros_like(one))

    @classmethod
    def sheared(cls, h_by_c: Tensor) -> "Mix":
        """ĥ and ĉ, given d."""
        e = h_by_c.clamp(min=LEAST)
        share = h_by_c / e
        return cls(share, e.reciprocal(), 1 - share, -e.reciprocal())


@dataclass(frozen=True)
class Shear:
    """The coordinates (ĥ, ĉ) of every layer, given e of each, (H,)."""

    e: tuple[Tensor, ...]

    @classmethod
    def of(cls, h_by_c: Sequence[Tensor]) -> "Shear":
        """Those after a step whose layers have these d."""
        return cls(tuple(d.clamp(min=LEAST) for d in h_by_c))

    def undo(self, Q_KD: Tensor, ends_D: Tensor) -> None:
        """(h, c) from (ĥ, ĉ) in place: a frame, given transposed, and where its rows end."""
        start = 0
        for e in self.e:
            H = len(e)
            h, c = slice(start, start + H), slice(start + H, start + 2 * H)
            Q_KD[:, c] += Q_KD[:, h]
            Q_KD[:, h] *= e
            ends_D[c] = torch.maximum(ends_D[c], ends_D[h])
            start += 2 * H
