"""The whole spectrum, squeezed to a few numbers by PCA or an autoencoder, then a regression.

Vogt, Zheng & Shlizerman 2022 (arXiv 2204.04876) for the autoencoder. Spectra of any width are read
off at the same places i/N from the largest exponent to the smallest; what squeezes them is fitted
on the trials fitted on, and so is the regression on the latent numbers, settings and losses.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import pandas as pd

from analysis import inputs
from analysis.early_view import EarlyView
from analysis.features import sorted_spectra
from analysis.predictors.base import CannotPredictError, Prediction, Predictor, PredictorConfig
from analysis.predictors.ridge import best
from tasks.base import Bounds

_NUM_PLACES = 24
_HIDDEN = 16
_NUM_UPDATES = 300
_RATE = 0.01


class LatentSpectrum(Predictor):
    """Ridge regression on a few latent numbers of the spectrum, beside other groups."""

    is_costly = True

    @dataclass(frozen=True, kw_only=True)
    class Config(PredictorConfig):
        """squeeze: how; size: latent numbers; beside: groups used with them."""

        squeeze: Literal["pca", "autoencoder"] = "pca"
        size: Annotated[int, Bounds(ge=1)] = 4
        beside: tuple[inputs.Group, ...] = ("settings", "loss")

    variants: ClassVar = {
        "settings + loss seen + latent spectrum (PCA)": Config(),
        "settings + loss seen + latent spectrum (autoencoder)": Config(squeeze="autoencoder"),
    }

    @property
    def sees_spectrum(self) -> bool:
        """Always: that is what is squeezed."""
        return True

    def fit(self, view: EarlyView, target: pd.Series) -> Self:
        """Squeezes the spectra of these trials, then regresses."""
        spectra = _spectra(view).reindex(target.index)
        known = spectra.dropna()
        if len(known) < inputs.MIN_TRIALS or float(known.std(ddof=0).max()) == 0:
            raise CannotPredictError(f"{len(known)} trials have a whole spectrum that varies")
        self._mean = known.to_numpy(float).mean(axis=0)
        centred = known.to_numpy(float) - self._mean
        self._size = min(self.config.size, *centred.shape)
        self._encode = _pca(centred, self._size) if self.config.squeeze == "pca" else (
            _autoencoder(centred, self._size))  # fmt: skip
        whole = self._columns(view)
        self._scale = inputs.Scale.of(whole.reindex(target.index))
        X, y = self._scale(whole, target.index), target.to_numpy(float)
        self._centre, self._offset = X.mean(axis=0), float(y.mean())
        U, s, Vt = np.linalg.svd(X - self._centre, full_matrices=False)
        self._weights, left_out, _ = best(U, s, Vt, y - self._offset)
        self._sd = inputs.spread(left_out)
        return self

    def predict(self, view: EarlyView, trials: pd.Index) -> Prediction:
        """The regression, with the spread of the leave-one-out errors for all."""
        X = self._scale(self._columns(view), trials)
        mean = self._offset + (X - self._centre) @ self._weights
        return Prediction(pd.Series(mean, index=trials), pd.Series(self._sd, index=trials))

    def explain(self) -> pd.DataFrame:
        """Columns by the size of their weight."""
        terms = [name.replace(inputs.SETTING, "") for name in self._scale.names]
        table = pd.DataFrame({"term": terms, "weight": self._weights})
        return table.sort_values("weight", key=abs, ascending=False, ignore_index=True)

    def _columns(self, view: EarlyView) -> pd.DataFrame:
        spectra = _spectra(view)
        latent = np.full((len(spectra), self._size), np.nan)
        known = spectra.notna().all(axis=1).to_numpy(bool)
        latent[known] = self._encode(spectra[known].to_numpy(float) - self._mean)
        names = [f"latent {i + 1}" for i in range(self._size)]
        found = pd.DataFrame(latent, index=spectra.index, columns=names)
        if not self.config.beside:
            return found
        return inputs.table(view, self.config.beside).join(found)


@lru_cache(maxsize=8)
def _spectra(view: EarlyView) -> pd.DataFrame:
    found = sorted_spectra(view, _NUM_PLACES)
    if found.empty:
        raise CannotPredictError(f"no spectrum was measured at epoch {view.epoch}")
    return found.reindex(view.trials)


def _pca(centred: np.ndarray, size: int) -> inputs.Foretell:
    _, _, Vt = np.linalg.svd(centred, full_matrices=False)
    return lambda new: np.asarray(new @ Vt[:size].T)


def _autoencoder(centred: np.ndarray, size: int) -> inputs.Foretell:
    """Two layers in, two layers out, by Adam on the squared reconstruction error."""
    rng = np.random.default_rng(0)
    width, scale = centred.shape[1], float(centred.std())
    X = centred / scale
    shapes = [(width, _HIDDEN), (_HIDDEN, size), (size, _HIDDEN), (_HIDDEN, width)]
    W = [rng.normal(size=shape) / shape[0] ** 0.5 for shape in shapes]
    first, second = ([np.zeros(shape) for shape in shapes] for _ in range(2))
    for update in range(1, _NUM_UPDATES + 1):
        hidden_in = np.tanh(X @ W[0])
        latent = hidden_in @ W[1]
        hidden_out = np.tanh(latent @ W[2])
        error = 2 * (hidden_out @ W[3] - X) / X.size
        back_out = (error @ W[3].T) * (1 - hidden_out**2)
        back_latent = back_out @ W[2].T
        back_in = (back_latent @ W[1].T) * (1 - hidden_in**2)
        gradients = [X.T @ back_in, hidden_in.T @ back_latent, latent.T @ back_out]
        gradients.append(hidden_out.T @ error)
        for i, gradient in enumerate(gradients):
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
            mean, square = first[i] / (1 - 0.9**update), second[i] / (1 - 0.999**update)
            W[i] -= _RATE * mean / (np.sqrt(square) + 1e-8)
    inside, outside = W[0] / scale, W[1]
    return lambda new: np.asarray(np.tanh(new @ inside) @ outside)
