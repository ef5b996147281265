"""Regression on a few covariates without a formula: any smooth main effect, any smooth pair.

A Gaussian-process regression whose kernel is a weighted sum of parts: for each covariate a
straight line and curves of two widths, for pairs of covariates a surface. The weights are variance
components, learned by restricted maximum likelihood (Patterson & Thompson 1971), so that a
covariate without influence costs next to nothing (automatic relevance); the noise is then chosen
anew by exact leave-one-out. Restricted likelihood projects the intercept out, hence the centring.

Shapes: n trials, d covariates, C parts of the kernel, q columns smoothed at once.
"""

from itertools import combinations

import numpy as np
from scipy import linalg

WIDTHS = (0.4, 1.2)  # of curves, in standard deviations of the covariate
_PAIR_WIDTH = 0.8
_NUM_STEPS = 12
_TINY = 1e-9
_LEAST_NOISE = 1e-3  # of the variance: fewer trials than parts could be fitted perfectly
PENALTIES = np.logspace(-2, 2, 13)


def parts(Z: np.ndarray, num_paired: int) -> tuple[np.ndarray, np.ndarray]:
    """The kernel's parts between all trials, (C, n, n), each of mean variance 1, and their units.

    Z: (n, d), standardised. The first `num_paired` covariates also enter in pairs.
    """
    K = _raw(Z, Z, num_paired)
    unit = np.trace(K, axis1=1, axis2=2) / len(Z) - K.mean(axis=(1, 2))
    K /= unit[:, None, None]
    return K, unit


def between(
    Z: np.ndarray, others: np.ndarray, num_paired: int, unit: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Parts between other trials and those fitted on, (C, others, n), and each other's own."""
    cross = _raw(others, Z, num_paired)
    cross /= unit[:, None, None]
    return cross, _own(others, num_paired) / unit[:, None]


def _raw(A: np.ndarray, B: np.ndarray, num_paired: int) -> np.ndarray:
    pairs = list(combinations(range(num_paired), 2))
    each = 1 + len(WIDTHS)
    found = np.empty((each * A.shape[1] + len(pairs), len(A), len(B)))
    bumps: list[np.ndarray] = []
    for i, (a, b) in enumerate(zip(A.T, B.T, strict=True)):
        line, *curves = found[each * i : each * (i + 1)]
        np.multiply.outer(a, b, out=line)
        square = (a[:, None] - b) ** 2
        for curve, width in zip(curves, WIDTHS, strict=True):
            np.exp(np.divide(square, -2 * width**2, out=curve), out=curve)
        if i < num_paired:
            bumps.append(np.exp(-square / (2 * _PAIR_WIDTH**2)) + line / 2)
    for pair, (i, j) in zip(found[each * A.shape[1] :], pairs, strict=True):
        np.multiply(bumps[i], bumps[j], out=pair)
    return found


def _own(Z: np.ndarray, num_paired: int) -> np.ndarray:
    """`_raw` between each of the trials and itself, (C, trials)."""
    ones, found = np.ones(len(Z)), []
    for z in Z.T:
        found += [z * z, *(ones for _ in WIDTHS)]
    bumps = [1 + z * z / 2 for z in Z.T[:num_paired]]
    found += [bumps[i] * bumps[j] for i, j in combinations(range(num_paired), 2)]
    return np.stack(found)


def learn(K: np.ndarray, Y: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Weights of the parts in units of the noise, (C,), for columns Y, (n, q), of one kind.

    Fixed-point steps on the restricted likelihood; columns share their weights. Of the trials in K
    only those in `rows`, to which Y belongs, enter.
    """
    C, n = len(K), len(Y)
    rows = np.arange(n) if rows is None else rows
    Y = Y - Y.mean(axis=0)
    Y = Y / np.maximum(Y.std(axis=0), 1e-12)
    q = Y.shape[1]
    # Matrices are symmetric. Every step passes three times through all parts, which do not fit
    # into a cache: half of them, cut out once, take half the time.
    i, j = np.tril_indices(n)
    halves, place = K[:, rows[i], rows[j]], i * n + j
    counted = np.where(i == j, 1.0, 2.0)
    weights, noise = np.full(C, 0.7 / C), 0.3
    for _ in range(_NUM_STEPS):
        V = np.zeros((n, n))
        V.ravel()[place] = weights @ halves
        V[np.diag_indices(n)] += noise
        P = _inverse(V)
        ones = P.sum(axis=0)
        P -= np.outer(ones, ones) / ones.sum()
        A = P @ Y
        fitted = halves @ (counted * (A @ A.T).ravel()[place]) / q
        expected = halves @ (counted * P.ravel()[place])
        # A part that is constant among these trials neither fits nor is expected to. Steps are
        # longer than the plain ones, which crawl where a weight goes to 0.
        ratio = np.maximum(fitted, 0) / np.maximum(expected, _TINY)
        weights = weights * np.minimum(ratio, 100) ** 0.75
        noise = max(noise * float((A * A).sum() / q / np.trace(P)), _LEAST_NOISE)
    return np.asarray(weights / noise)


class Smoother:
    """A fitted kernel: hat matrices for any penalty from one factorisation."""

    def __init__(self, K: np.ndarray) -> None:
        """K: (n, n), the weighted sum of parts among the trials fitted on."""
        self._n = len(K)
        self._means = K.mean(axis=0)
        self._mean = float(self._means.mean())
        centred = K - self._means - self._means[:, None] + self._means.mean()
        s, self._U = linalg.eigh(centred, check_finite=False, driver="evd")
        self._s = np.maximum(s, 0)
        self._square = self._U**2

    def choose(self, Y: np.ndarray) -> np.ndarray:
        """For each column of Y, (n, q), the penalty of least leave-one-out error."""
        Y = Y - Y.mean(axis=0)
        projected = self._U.T @ Y
        errors = []
        for penalty in PENALTIES:
            shrink = self._s / (self._s + penalty)
            rest = Y - self._U @ (shrink[:, None] * projected)
            kept = 1 - 1 / self._n - self._square @ shrink
            errors.append(((rest / kept[:, None]) ** 2).mean(axis=0))
        return np.asarray(PENALTIES[np.argmin(errors, axis=0)])

    def hat(self, penalty: float) -> np.ndarray:
        """The matrix that takes values to fitted ones, (n, n)."""
        H = (self._U * (self._s / (self._s + penalty))) @ self._U.T
        return np.asarray(H + 1 / self._n)

    def left_out(self, penalty: float) -> np.ndarray:
        """The matrix that takes values to their leave-one-out errors, (n, n)."""
        H = self.hat(penalty)
        return np.asarray((np.eye(self._n) - H) / (1 - np.diag(H))[:, None])

    def beyond(self, K: np.ndarray, penalty: float) -> np.ndarray:
        """The matrix that takes values to predictions for others; K: (others, n)."""
        K = K - self._means
        K = K - K.mean(axis=1, keepdims=True)
        S = ((K @ self._U) / (self._s + penalty)) @ self._U.T
        # Rows sum to 1, so that a constant is predicted as itself.
        return np.asarray(S - S.mean(axis=1, keepdims=True) + 1 / self._n)

    def uncertainty(self, K: np.ndarray, own: np.ndarray, penalty: float) -> np.ndarray:
        """Variance of the predictions for others in units of the noise's, (others,)."""
        centred = K - self._means
        about = own - 2 * K.mean(axis=1) + self._mean
        centred = centred - centred.mean(axis=1, keepdims=True)
        known = ((centred @ self._U) ** 2 / (self._s + penalty)).sum(axis=1)
        return np.asarray(np.maximum(about - known, 0) / penalty + 1 / self._n)


def weighted(K: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted sum of the parts."""
    return np.asarray(np.tensordot(weights, K, 1))


def _inverse(V: np.ndarray) -> np.ndarray:
    """Of a positive definite matrix, of which the lower half is read."""
    L, _ = linalg.lapack.dpotrf(V, lower=1, overwrite_a=1)
    half, _ = linalg.lapack.dpotri(L, lower=1, overwrite_c=1)
    inverse = half + half.T  # LAPACK leaves zeros above the diagonal
    inverse[np.diag_indices(len(V))] /= 2
    return np.asarray(inverse)
