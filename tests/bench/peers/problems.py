"""What the peers learn: points of a spiral, letters of invented words; and the ranges they search.

Light, so that a driver that trains nothing itself need not import torch. Nothing is imported
from lyapsweep: what the peers cost is theirs.
"""

import math
import random

import numpy as np

RANGES = {"learning_rate": (1e-3, 0.3), "init_scale": (0.1, 5.0), "dropout": (0.0, 0.3)}
ALPHABET = "abcdefghijkl"


def data_of(problem):
    """The data of `mlp10`, `mlp50`, `lstm16` or `lstm64`: kind and width in one word."""
    return spiral() if problem.startswith("mlp") else letters()


def drawn(count, seed=0):
    """`count` independent settings from RANGES, for programs without a sampler."""
    source = random.Random(seed)
    low_rate, high_rate = map(math.log, RANGES["learning_rate"])
    low_scale, high_scale = map(math.log, RANGES["init_scale"])
    return [
        {
            "learning_rate": math.exp(source.uniform(low_rate, high_rate)),
            "init_scale": math.exp(source.uniform(low_scale, high_scale)),
            "dropout": source.uniform(*RANGES["dropout"]),
        }
        for _ in range(count)
    ]


def spiral(points=4000, seed=0):
    """Two arms with noise: (points, 2) float32 and classes, in random order."""
    source = np.random.default_rng(seed)
    half = points // 2
    turn, radius = np.linspace(0.1, 2 * np.pi, half), np.linspace(0.1, 1, half)
    arms = [
        np.stack([radius * np.cos(turn + shift), radius * np.sin(turn + shift)], axis=1)
        for shift in (0, np.pi)
    ]
    inputs = np.concatenate(arms) + 0.05 * source.standard_normal((points, 2))
    classes = np.repeat([0, 1], half)
    order = source.permutation(points)
    return inputs[order].astype(np.float32), classes[order]


def text(characters=22_500, seed=0):
    """Words drawn from two hundred invented ones, as a string."""
    source = random.Random(seed)
    words = ["".join(source.choices(ALPHABET, k=source.randint(2, 6))) for _ in range(200)]
    written = " ".join(source.choices(words, k=characters // 2))
    return written[:characters]


def letters():
    """The text as (codes, size of the alphabet)."""
    written = text()
    codes = {letter: code for code, letter in enumerate(sorted(set(written)))}
    return np.array([codes[letter] for letter in written]), len(codes)
