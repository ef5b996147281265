"""The frames of all members and sequences on their way through maps, whole or one by one.

One by one where they are triangular and the maps know how to leave out the zeros: each frame then
stays in the cache, and threads share them out.

Shapes: N members, B sequences, D state, K tangents.
"""

from dataclasses import replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from pipeline.dynamics.halves import HalfDiagonal, HalvedStairs, eliminate_halves
from pipeline.dynamics.hands import Hands
from pipeline.dynamics.orthonormal import Eliminated, Method, eliminate, factorise, log_gauge
from pipeline.dynamics.staircase import Shear, Stairs

AnyStairs: TypeAlias = Stairs | HalvedStairs


class Map(Protocol):
    """The derivative of one application of the map."""

    def __call__(self, Q_NBDK: Tensor) -> Tensor:
        """J Q, (N, B, D', K)."""
        ...


@runtime_checkable
class StairMap(Map, Protocol):
    """A map that can leave out the zeros of triangular frames."""

    def move(
        self,
        member: int,
        sequence: int,
        frame: Stairs,
        out_KD: Tensor,
        *,
        may_shear: bool,
    ) -> Shear | None:
        """Writes J of one frame into `out_KD`, transposed; D' = D.

        With `may_shear` the result may be in other coordinates than those of the state, in which
        elimination finds more zeros for the next map; it returns which.
        """
        ...


@runtime_checkable
class HalfDiagonalMap(StairMap, Protocol):
    """A map, half of whose derivative may be diagonal."""

    def halves(self, member: int, sequence: int, shear: Any) -> HalfDiagonal | None:
        """J from the coordinates `shear` into those it names; None where it has no such halves."""
        ...


class Frames:
    """The frames of all members and sequences, as one tensor or one by one.

    Example:
        >>> frames = Frames(torch.eye(2).expand(1, 1, 2, 2), "householder", False, Hands(1))
        >>> logs, depth = frames.carry(0, lambda Q: 3 * Q, [0])
        >>> logs.exp().round().tolist(), frames.whole().abs().tolist()
        ([[[3.0, 3.0]]], [[[[1.0, 0.0], [0.0, 1.0]]]])
    """

    def __init__(self, Q_NBDK: Tensor, method: Method, rectangular: bool, hands: Hands) -> None:
        self._whole_NBDK = Q_NBDK
        self._method, self._rectangular, self._hands = method, rectangular, hands
        self._apart: list[list[AnyStairs]] = []
        # log|U_ii| of what the first frames were divided by, until it enters their logs.
        self._divided_NBK: Tensor | None = None
        # One for each share of the frames that some thread carries.
        self._spares_KD: list[Tensor] = []
        self._shares: list[list[tuple[int, int]]] = []

    def carry(self, step: int, J: Map, due: list[int]) -> tuple[Tensor, Tensor] | None:
        """Through one map, with a factorisation of the members that are due.

        Returns their logs and depth (members due, B, K), None where none is.
        """
        is_apart = self._method == "lu" and self._whole_NBDK.device.type == "cpu"
        if is_apart and isinstance(J, StairMap):
            found = self._carry_apart(J, due)
        else:
            found = self._carry_whole(step, J, due)
        if found is None or self._divided_NBK is None:
            return found
        logs, depth = found
        logs = logs + self._divided_NBK[due]
        self._divided_NBK[due] = 0
        return logs, depth

    def _carry_whole(self, step: int, J: Map, due: list[int]) -> tuple[Tensor, Tensor] | None:
        Q = self.whole()
        V = J(Q)
        _check_shape(V, Q, step, self._rectangular)
        self._apart, self._spares_KD = [], []
        self._whole_NBDK = V
        if not due:
            return None
        members = torch.tensor(due, device=V.device)
        if len(due) == V.shape[0]:
            self._whole_NBDK, logs, depth = factorise(V, self._method)
        else:
            part, logs, depth = factorise(V[members], self._method)
            self._whole_NBDK = V.mT.index_copy(0, members, part.mT).mT
        return logs, depth

    def _carry_apart(self, J: StairMap, due: list[int]) -> tuple[Tensor, Tensor] | None:
        """One frame after another, in memory that is used again: each then stays in the cache,
        and no step pays for fresh pages, which cost as much as a tenth of its products."""
        halved = J if isinstance(J, HalfDiagonalMap) else None
        if not self._apart:
            self._start_apart(halved)

        def carried(share: int) -> list[Eliminated]:
            found = []
            for n, b in self._shares[share]:
                frame, V_KD = self._apart[n][b], self._spares_KD[share]
                self._apart[n][b], eliminated = _moved(J, halved, n, b, frame, V_KD, n in due)
                if eliminated is not None:
                    found.append(eliminated)
                self._spares_KD[share] = frame.Q_KD
            return found

        found = [f for part in self._hands.each(carried, len(self._shares)) for f in part]
        if not due:
            return None
        logs, depth = (torch.stack([f[i] for f in found]) for i in (0, 1))
        shape = (len(due), -1, logs.shape[-1])
        return logs.view(shape), depth.view(shape)

    def _start_apart(self, halved: HalfDiagonalMap | None) -> None:
        """Triangular frames from the first step on; those that sequences share are made once."""
        starts: dict[int, tuple[AnyStairs, Tensor]] = {}
        logs: list[Tensor] = []
        for n, Q_BDK in enumerate(self._whole_NBDK):
            self._apart.append([])
            for b, Q in enumerate(Q_BDK):
                key = Q.data_ptr()
                if key not in starts:
                    starts[key] = _start(Q, halved, n, b)
                frame, log = starts[key]
                # Copies: what is shared is not to be overwritten.
                self._apart[n].append(replace(frame, Q_KD=frame.Q_KD.clone()))
                logs.append(log)
        N, B = len(self._apart), len(self._apart[0])
        self._divided_NBK = torch.stack(logs).view(N, B, -1)
        self._shares = self._hands.shares([(n, b) for n in range(N) for b in range(B)])
        self._spares_KD = [torch.empty_like(self._apart[0][0].Q_KD) for _ in self._shares]

    def whole(self) -> Tensor:
        """The frames, (N, B, D, K)."""
        if not self._apart:
            return self._whole_NBDK
        N, B = len(self._apart), len(self._apart[0])
        whole_NBKD = self._apart[0][0].Q_KD.new_empty(N, B, *self._apart[0][0].Q_KD.shape)
        for n, frames in enumerate(self._apart):
            for b, frame in enumerate(frames):
                frame.write(whole_NBKD[n, b])
        return whole_NBKD.mT

    def log_gauge(self) -> Tensor:
        """log R_ii (N, B, K) of the frames themselves."""
        if not self._apart:
            return log_gauge(self._whole_NBDK)

        def gauges_of(share: int) -> list[Tensor]:
            gauges = []
            for n, b in self._shares[share]:
                spare_KD = self._spares_KD[share]
                ends = self._apart[n][b].write(spare_KD)
                gauges.append(log_gauge(spare_KD.mT[None, None], ends[None, None]))
            return gauges

        parts = self._hands.each(gauges_of, len(self._shares))
        gauges = [gauge for part in parts for gauge in part]
        N, B = len(self._apart), len(self._apart[0])
        return torch.stack(gauges).view(N, B, -1)


def _start(
    Q_DK: Tensor, halved: HalfDiagonalMap | None, member: int, sequence: int
) -> tuple[AnyStairs, Tensor]:
    """F and log|U_ii| (K,) of Q = F U; halved if the map is."""
    Q_KD = Q_DK.mT.clone(memory_format=torch.contiguous_format)
    is_square = Q_KD.shape[0] == Q_KD.shape[1]
    if is_square and halved is not None and halved.halves(member, sequence, None) is not None:
        found = HalvedStairs.start(Q_KD)
        if found is not None:
            return found
        Q_KD.copy_(Q_DK.mT)
    eliminated = eliminate(Q_KD)
    return Stairs(Q_KD, eliminated.order), eliminated.logs


def _moved(
    J: StairMap,
    halved: HalfDiagonalMap | None,
    member: int,
    sequence: int,
    frame: AnyStairs,
    out_KD: Tensor,
    is_due: bool,
) -> tuple[AnyStairs, Eliminated | None]:
    """A frame after one map, in `out_KD`, eliminated if that is due. `halved` is J if it is so."""
    if is_due and halved is not None and (isinstance(frame, HalvedStairs) or frame.is_split):
        halves = halved.halves(member, sequence, frame.shear)
        if halves is not None and isinstance(frame, Stairs):
            frame = HalvedStairs.of(frame) or frame
        if halves is not None and isinstance(frame, HalvedStairs):
            found = eliminate_halves(frame, halves, out_KD)
            if found is not None:
                return found
    whole = frame.stairs() if isinstance(frame, HalvedStairs) else frame
    shear = J.move(member, sequence, whole, out_KD, may_shear=is_due)
    if not is_due:
        return Stairs(out_KD), None
    eliminated = eliminate(out_KD)
    return Stairs(out_KD, eliminated.order, shear), eliminated


def _check_shape(V: Tensor, Q: Tensor, step: int, rectangular: bool) -> None:
    after, before, k = V.shape[-2], Q.shape[-2], Q.shape[-1]
    if after != before and not rectangular:
        raise ValueError(
            f"exponents per step need square maps; map {step} is {after} × {before}. Pass `steps` "
            "to count the growth over that many maps, or take ftle.max_ftle for the largest "
            "singular value of their product"
        )
    if after < k:
        raise ValueError(f"k must be at most the rows of every map; map {step} has {after}, k={k}")
