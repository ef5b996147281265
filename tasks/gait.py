"""Simulated motion capture: joint angles of figures that walk, in the layout of real recordings.

A central pattern generator without dynamics: every angle is a few harmonics of one gait phase, left
and right half a cycle apart, and the phase runs at a rate that wanders. What makes next frames hard
to foretell is what makes real ones so: cadence and stride that differ between recordings and drift
within them. Real data in the same layout: `tasks/mocap.py`.

Shapes: F frames, C columns (three a joint), J joints, K harmonics.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.base import generator_for

FRAMES_PER_SECOND = 120
"""As the real recordings have them."""

GAITS = {"stroll": 0.7, "walk": 0.95, "limp": 0.8, "jog": 1.3, "run": 1.6}
"""Gait cycles a second, by name."""

_NUM_RECORDINGS, _NUM_FRAMES, _NUM_HARMONICS = 6, 601, 3
# (joint, side, radians of swing about its three axes); 0 is an axis that is locked, as a knee's.
_JOINTS = (
    ("root turn", 0, (0.05, 0.08, 0.04)),
    ("spine", 0, (0.06, 0.10, 0.05)),
    ("neck", 0, (0.05, 0.08, 0.04)),
    *((name, side, swing) for side in (0, 1) for name, swing in (
        ("hip", (0.45, 0.10, 0.12)),
        ("knee", (0.55, 0.0, 0.0)),
        ("ankle", (0.25, 0.0, 0.08)),
        ("shoulder", (0.35, 0.08, 0.10)),
        ("elbow", (0.30, 0.0, 0.0)),
        ("wrist", (0.10, 0.06, 0.0)),
    )),
)  # fmt: skip


@dataclass(frozen=True)
class Recording:
    """One uninterrupted take.

    Attributes:
        action: what is done in it.
        number: tells takes of one action and part apart.
        is_test: whether it belongs to the part that is kept for the test.
        frames: (F, C) float64; the first frame is a rest pose, as in the real files.
    """

    action: str
    number: int
    is_test: bool
    frames: Tensor


def recordings(seed: int) -> Iterator[Recording]:
    """Six takes of each gait, five to learn from and one for the test, of one figure."""
    body = generator_for(seed, "gait", "body")
    K, J = _NUM_HARMONICS, len(_JOINTS)
    decay = torch.arange(1, K + 1, dtype=torch.float64) ** -1.5
    for gait, cadence in GAITS.items():
        weight_JK3 = decay[:, None] * _normal(body, J, K, 3)
        phase_JK3 = 2 * math.pi * torch.rand(J, K, 3, generator=body, dtype=torch.float64)
        for number in range(1, _NUM_RECORDINGS + 1):
            take = generator_for(seed, "gait", gait, number)
            frames = _take(gait, cadence, weight_JK3, phase_JK3, take)
            yield Recording(gait, number, number == _NUM_RECORDINGS, frames)


def _take(
    gait: str, cadence: float, weight_JK3: Tensor, phase_JK3: Tensor, take: torch.Generator
) -> Tensor:
    """(F, C): the rest pose, then motion. Root position first, then the joints' angles."""
    F, J = _NUM_FRAMES - 1, len(_JOINTS)
    rate = cadence * float(torch.exp(0.1 * _normal(take, 1)))
    turn_F = 2 * math.pi * torch.cumsum(rate * (1 + 0.15 * _drift(F, take)), 0) / FRAMES_PER_SECOND
    stride_F = 1 + 0.15 * _drift(F, take)
    swing_J3 = torch.tensor([swing for _, _, swing in _JOINTS], dtype=torch.float64)
    side_J = torch.tensor([side for _, side, _ in _JOINTS], dtype=torch.float64)
    if gait == "limp":
        swing_J3 = swing_J3 * (1 - 0.5 * side_J)[:, None]
    K = torch.arange(1, _NUM_HARMONICS + 1, dtype=torch.float64)
    angle_FJK = (turn_F[:, None] + math.pi * side_J)[..., None] * K
    waves_FJ3 = (weight_JK3 * torch.cos(angle_FJK[..., None] + phase_JK3)).sum(2)
    pose_J3 = swing_J3 * 0.3 * _normal(take, J, 3)
    angles_FJ3 = pose_J3 + swing_J3 * stride_F[:, None, None] * waves_FJ3
    angles_FJ3 = angles_FJ3 + (swing_J3 > 0) * 0.002 * _normal(take, F, J, 3)
    advance_F = torch.cumsum(1.2 * rate * stride_F, 0) / FRAMES_PER_SECOND
    root_F3 = torch.stack([0.03 * torch.sin(turn_F), 1 + 0.02 * torch.cos(2 * turn_F), advance_F])
    moving = torch.cat([root_F3.mT, angles_FJ3.flatten(1)], dim=1)
    rest = torch.zeros_like(moving[:1])
    rest[:, :3] = moving[:1, :3]
    return torch.cat([rest, moving])


def _drift(F: int, take: torch.Generator) -> Tensor:
    """A stationary wander (F,) of mean 0 and variance 1, with a memory of half a second."""
    keep = math.exp(-2 / FRAMES_PER_SECOND)
    kicks = math.sqrt(1 - keep**2) * _normal(take, F)
    value, values = float(_normal(take, 1)), []
    for kick in kicks.tolist():
        value = keep * value + kick
        values.append(value)
    return torch.tensor(values, dtype=torch.float64)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)
