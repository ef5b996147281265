"""Standard error of a time average over several sequences, autocorrelation included.

Within a sequence, the variance of a mean over time is the spectral density at frequency 0. It is
taken from an autoregression of the blocks, whose order Akaike's criterion chooses (as in Heidel-
berger & Welch 1981 and later `coda`): growth along a flow oscillates, which batch means mistake
for noise, and errors come out three times too large (Lorenz 1963). Between sequences, the spread
of their means gives the variance without any assumption about time. Where both agree they are
pooled; where the sequences differ by more than chance allows, their spread is right.

Intervals of ±1.96 errors cover the truth in 90–98 % of runs once a run is ten correlation times
long. An exponent that is exactly 0, that of the direction of a flow, is bounded better than its
error says: its sum over time does not spread like √T but not at all.

Shapes: N members, B sequences, K exponents, M blocks.
"""

import math

import torch
from scipy.stats import chi2
from scipy.stats import t as student
from torch import Tensor

MOST_BLOCKS = 128
"""Blocks of a sequence are joined down to this many: an order of 20 then spans enough time."""


def standard_error(logs_NBKM: Tensor, block_steps_M: Tensor) -> Tensor:
    """Standard error (N, K) of Σ logs / Σ steps, averaged over sequences, per step.

    NaN where nothing can be known: a single sequence of a single block, or growth of −inf.

    Example:
        >>> logs = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0, -1.0]).reshape(1, 1, 1, 8)
        >>> error = standard_error(logs, torch.ones(8))
        >>> 0.1 < error.item() < 0.5  # of independent blocks it would be 0.38
        True
    """
    between = _variance_between(logs_NBKM, block_steps_M)
    within = _variance_within(logs_NBKM, block_steps_M)
    if within is None:
        return between.sqrt()
    variance, freedom = within
    num_sequences = logs_NBKM.shape[1]
    if num_sequences > 1:
        others = num_sequences - 1
        pooled = (freedom * variance + others * between) / (freedom + others)
        by_chance = float(chi2.ppf(0.95, others)) / others
        variance = torch.where(between > by_chance * variance, between, pooled)
    return variance.sqrt()


def _variance_between(logs_NBKM: Tensor, block_steps_M: Tensor) -> Tensor:
    """Variance (N, K) of the mean over sequences from their spread; NaN for one sequence."""
    means_NBK = logs_NBKM.sum(-1) / block_steps_M.sum()
    num_sequences = means_NBK.shape[1]
    if num_sequences == 1:
        return torch.full_like(means_NBK[:, 0], math.nan)
    return means_NBK.var(1, correction=1) / num_sequences


def _variance_within(logs_NBKM: Tensor, block_steps_M: Tensor) -> tuple[Tensor, Tensor] | None:
    """Variance (N, K) of the mean over sequences from time alone, and its degrees of freedom."""
    # A last block cut short would weigh as much as the others; it is left out here.
    is_whole = (block_steps_M == block_steps_M.max()).to(logs_NBKM.device)
    rates = (logs_NBKM / block_steps_M.to(logs_NBKM.device))[..., is_whole]
    size = max(1, rates.shape[-1] // MOST_BLOCKS)
    B, M = rates.shape[1], rates.shape[-1] // size
    if M < 2:
        return None
    joined = rates[..., : M * size].reshape(*rates.shape[:-1], M, size).mean(-1)
    covariance = _autocovariance(joined, min(int(10 * math.log10(M)), M // 4))
    density, order = _density_at_zero(covariance, B * M)
    # Means were subtracted that have an error themselves, density / M in every covariance.
    density, order = _density_at_zero(covariance + (density / M).unsqueeze(-1), B * M)
    freedom = torch.clamp(B * M / (order + 1) - 1, min=1.0)
    quantile = torch.as_tensor(student.ppf(0.975, freedom.cpu().numpy())).to(density) / 1.96
    return density * quantile.square() / (B * M), freedom


def _autocovariance(rates_NBKM: Tensor, most: int) -> Tensor:
    """(N, K, lag) for lags 0 … most, all sequences together."""
    centred = rates_NBKM - rates_NBKM.mean(-1, keepdim=True)
    B, M = centred.shape[1], centred.shape[-1]
    lags = [
        (centred[..., lag:] * centred[..., : M - lag]).sum((1, -1)) / (B * M)
        for lag in range(most + 1)
    ]
    return torch.stack(lags, dim=-1)


def _density_at_zero(covariance_NKP: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """σ²/(1 − Σφ)² of the best autoregression, and its order, by Levinson's recursion."""
    variance = covariance_NKP[..., 0]
    phi = torch.zeros_like(covariance_NKP[..., 1:])
    density, order = variance, torch.zeros_like(variance)
    best = count * variance.log()
    for p in range(1, covariance_NKP.shape[-1]):
        past = phi[..., : p - 1]
        rest = covariance_NKP[..., p] - (past * covariance_NKP[..., 1:p].flip(-1)).sum(-1)
        reflection = torch.where(variance > 0, rest / variance, 0.0)
        phi = phi.clone()
        phi[..., : p - 1] = past - reflection.unsqueeze(-1) * past.flip(-1)
        phi[..., p - 1] = reflection
        variance = variance * (1 - reflection.square())
        criterion = count * variance.log() + 2 * p
        is_better = criterion < best
        best = torch.where(is_better, criterion, best)
        unbiased = variance * count / max(1, count - p - 1)
        density = torch.where(is_better, unbiased / (1 - phi.sum(-1)).square(), density)
        order = torch.where(is_better, float(p), order)
    return density, order
