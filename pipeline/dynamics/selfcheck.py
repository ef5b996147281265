"""Checks that every spectrum makes on itself: tangents against autodiff, growth against det J.

Shapes: N members, B sequences, D state, K exponents, M time blocks.
"""

import math
from typing import Any

import torch
from torch import Tensor

from pipeline.dynamics.arithmetic import log_abs_det
from pipeline.dynamics.frames import Map
from pipeline.dynamics.orthonormal import factorise, pick
from pipeline.dynamics.propagate import Orbit


class SelfCheck:
    """Compares the tangents that are used with what is known about them independently."""

    def __init__(self, orbit: Orbit, frame: Tensor, warmup: int, counted: int) -> None:
        self._orbit, self._warmup, self._frame = orbit, warmup, frame
        self._is_full = frame.shape[-1] == orbit.tangent_size
        choice = torch.Generator().manual_seed(counted)
        self._step = warmup + int(torch.randint(counted, (), generator=choice))
        q = torch.randn(orbit.tangent_size, generator=choice, dtype=torch.float64)
        self._probe = (q / q.norm()).to(dtype=orbit.dtype, device=orbit.device)
        self._autodiff: Tensor | None = None
        self._single: Tensor | None = None
        self._log_det: Tensor | None = None
        self._has_gap = False

    def __call__(self, step: int, J: Map) -> None:
        """Looks at every map before the frame passes through it."""
        if step == self._step and hasattr(J, "autodiff"):
            self._autodiff = self._compare_with_autodiff(J)
        if self._is_full and hasattr(J, "log_abs_det"):
            log_det = J.log_abs_det()
            # Maps between different spaces have none, nor has a product that holds one of them.
            self._has_gap |= log_det is None
            if log_det is not None and step >= self._warmup:
                log_det = log_det.double()
                self._log_det = log_det if self._log_det is None else self._log_det + log_det
        if self._is_full and step == self._step and self._log_det is None and hasattr(J, "dense"):
            self._single = self._compare_determinant(J)

    def _compare_with_autodiff(self, J: Any) -> Tensor:
        shape = (self._orbit.num_members, self._orbit.num_sequences, -1)
        q = self._probe.expand(*shape)
        ours, reference = J(q.unsqueeze(-1)).squeeze(-1), J.autodiff(q)
        scale = torch.linalg.vector_norm(reference, dim=-1)
        difference = torch.linalg.vector_norm(ours - reference, dim=-1)
        relative = torch.where(difference == 0, 0.0, difference / scale)
        return relative.double().amax(1)

    def _compare_determinant(self, J: Any) -> Tensor | None:
        """|Σ log R_ii − log|det J|| per dimension of the frame given, through the same methods."""
        dense: Tensor = J.dense()
        if dense.shape[-1] != dense.shape[-2]:
            return None
        N, B, D, _ = dense.shape
        method = pick(D, D, self._orbit.dtype, self._orbit.device)
        grown = factorise(J(self._frame.expand(N, B, D, D)), method).logs.sum(-1)
        known = log_abs_det(dense)
        difference: Tensor = torch.where(grown == known, 0.0, (grown - known).abs()).amax(1)
        return difference / D

    def errors(self, logs_NBKM: Tensor, counted: int) -> dict[str, Tensor]:
        """Name → error (N,) of every check that could be made."""
        found: dict[str, Tensor] = {}
        if self._autodiff is not None:
            found["autodiff"] = self._autodiff
        if self._single is not None:
            found["log_det"] = self._single
        if self._log_det is not None and not self._has_gap:
            total = logs_NBKM.sum((-1, -2))
            difference = torch.where(total == self._log_det, 0.0, (total - self._log_det).abs())
            found["sum_rule"] = difference.amax(1) / counted / self._orbit.tangent_size
        return found

    def passed(self, errors: dict[str, Tensor], is_singular_N: Tensor) -> Tensor:
        """(N,) True where every error is one that rounding explains; NaN explains none.

        Determinants say nothing of members whose maps are singular to rounding: rounding would be
        compared with rounding.
        """
        # √ε for the sum: with a fixed T_ON, half of the digits may be lost between two QRs.
        eps = torch.finfo(self._orbit.dtype).eps
        allowed = {"autodiff": 1e5 * eps, "sum_rule": math.sqrt(eps), "log_det": math.sqrt(eps)}
        passed = torch.ones(self._orbit.num_members, dtype=torch.bool, device=self._orbit.device)
        for name, error in errors.items():
            is_close = error <= allowed[name]
            passed &= is_close if name == "autodiff" else is_close | is_singular_N
        return passed
