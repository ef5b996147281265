"""Draws docs/images/accuracy-law.png: which exponents survive rounding between two QRs.

    python tests/bench/accuracy_law.py [FILE]

A driven tanh network of 64 units, its Jacobians multiplied over T_ON steps before they are
re-orthonormalised. Within a block column i of the product decays as exp(T_ON (λ_i − λ_1)) beside
the first; where that is below rounding, what QR returns there is rounding itself, and the exponent
read off it lies on a plateau at λ_1 − ln(1/ε) / T_ON. The flag `at_floor` marks what is affected.
"""

import math
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from pipeline.dynamics.spectrum import lyapunov_spectrum

UNITS, STEPS, GAIN = 64, 2000, 1.5
PLACES = Path(__file__).parents[2] / "docs" / "images" / "accuracy-law.png"


def jacobians(units: int = UNITS, steps: int = STEPS, gain: float = GAIN) -> torch.Tensor:
    """Of h' = tanh(g W h), W_ij ~ N(0, 1/N), along an orbit, (T, N, N)."""
    generator = torch.Generator().manual_seed(0)
    W = gain * torch.randn(units, units, dtype=torch.float64, generator=generator) / units**0.5
    h = torch.randn(units, dtype=torch.float64, generator=generator)
    found = []
    for step in range(steps + 200):
        a = W @ h
        h = torch.tanh(a)
        if step >= 200:
            found.append(W / torch.cosh(a).square()[:, None])
    return torch.stack(found)


def draw(path: Path) -> None:
    """One panel a precision, one line a T_ON; hollow where flagged."""
    J = jacobians()
    truth = lyapunov_spectrum(J, t_on=1).exponents
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.2), sharey=True, layout="constrained")
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]
    for axis, (dtype, name, blocks) in zip(
        axes,
        ((torch.float64, "float64", (5, 10, 20, 50)), (torch.float32, "float32", (2, 5, 10, 20))),
        strict=True,
    ):
        axis.plot(range(1, UNITS + 1), truth, color="0.15", linewidth=3, label="T_ON = 1, float64")
        epsilon = torch.finfo(dtype).eps
        for colour, t_on in zip(colours, blocks, strict=True):
            found = lyapunov_spectrum(J, t_on=t_on, dtype=dtype)
            exponents, floor = found.exponents, found.at_floor
            index = torch.arange(1, UNITS + 1)
            axis.plot(index[~floor], exponents[~floor], ".", color=colour, label=f"T_ON = {t_on}")
            axis.plot(index[floor], exponents[floor], "o", color=colour, fillstyle="none")
            plateau = float(truth[0]) - math.log(1 / epsilon) / t_on
            if plateau > float(truth[-1]):
                axis.axhline(plateau, color=colour, linewidth=0.8, linestyle=":")
        axis.set_title(name)
        axis.set_xlabel("exponent i")
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, loc="lower left")
    axes[0].set_ylabel("λ_i as reported [nats/step]")
    axes[0].set_ylim(float(truth[-1]) - 0.4, float(truth[0]) + 0.4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PLACES
    torch.set_num_threads(1)
    draw(target)
    print(target)
