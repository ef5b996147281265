"""A predictor that outlives its process: the table it was fitted on, stored without pickle.

What is stored is small and open: `training.parquet`, one line a trial with all that had been seen
of it by the end of one epoch and how it ended, and `predictor.json`, which names the predictor, its
settings and its epoch. Every predictor is deterministic, so that fitting it again on that table
gives the same predictor to the last bit: nothing has to be unpickled, neither our fits nor
scikit-learn's, and a fit can be read with any tool. The folder around it is an MLflow model with a
signature (`mlflow.pyfunc.load_model`), whose loader is `_load_pyfunc` below; no code is stored with
it, because stored code is run on loading just as a pickle is.

Trials come as a table: one line a trial, a column for each sampled setting, `quantity@epoch` for
each scalar (`val_loss@2`), `quantity@epoch` with lists for spectra, and `state_size` where a
spectrum holds fewer exponents than the state has.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError
from scipy import stats

from analysis import divergence as dv
from analysis import features as ft
from analysis import inputs
from analysis.frame import AnalysisError, EarlyView
from analysis.predictors.base import CannotPredictError, Predictor
from pipeline import catalog, records
from tasks.base import Config

FORMAT = 1
LEVEL = 0.9
TENTH = 0.1
_FOLDER, _TRAINING, _DESCRIPTION = "predictor", "training.parquet", "predictor.json"
_OUTCOME, _SIZE, _TRIAL = "outcome", "state_size", "trial"
_EPOCHS, _SPECTRUM = "trainer.epochs", "lyapunov.spectrum"
# With fewer diverged trials than this a regression on them is noise: all have the same rate.
_MIN_CASES = dv.MIN_CASES
_HAZARD: tuple[tuple[inputs.Group, ...], ...] = (
    ("settings", "loss", "norms", "spectrum"),
    ("settings", "loss", "norms"),
)


class ModelError(AnalysisError):
    """A stored predictor that cannot be used; the message says why."""


@dataclass(frozen=True, kw_only=True)
class _Description(Config):
    """What `predictor.json` holds; sha256 is of `training.parquet`."""

    format: int
    sweep: str
    epoch: int
    predictor: str
    config: dict[str, Any]
    sampled: tuple[str, ...]
    fixed: dict[str, str]
    sha256: str


@dataclass(frozen=True, eq=False)
class Forecast:
    """How trials will end: diverged, or with a final loss from a (log-)normal distribution.

    Attributes:
        mean, sd: of the final loss, or of its logarithm, of a trial that does not diverge.
        diverges: the probability that it does.
        is_log: whether mean and sd are of the logarithm.

    All are indexed by trial; NaN for a trial that cannot be treated.
    """

    mean: pd.Series
    sd: pd.Series
    diverges: pd.Series
    is_log: bool

    def quantile(self, level: float) -> pd.Series:
        """The final loss that a trial which does not diverge stays below, so probably."""
        value = self.mean + float(stats.norm.ppf(level)) * self.sd
        return pd.Series(np.exp(value) if self.is_log else value)

    def below(self, loss: float) -> pd.Series:
        """The probability to end with at most this loss; a diverged trial never does."""
        if self.is_log and loss <= 0:
            return pd.Series(0.0, index=self.mean.index).where(self.mean.notna())
        limit = np.log(loss) if self.is_log else loss
        reached = stats.norm.cdf((limit - self.mean) / self.sd)
        return (1 - self.diverges) * pd.Series(reached, index=self.mean.index)


@dataclass(frozen=True, eq=False)
class Fit:
    """A predictor fitted on trials of one view, with how often these diverged.

    Attributes:
        outcome: final loss of the trials fitted on; NaN of those that diverged.
    """

    predictor: Predictor
    outcome: pd.Series
    is_log: bool

    @classmethod
    def on(cls, view: EarlyView, outcome: pd.Series, predictor: Predictor) -> "Fit":
        """Learns from the trials in `outcome`'s index. Raises CannotPredictError."""
        finite = outcome[np.isfinite(outcome)]
        is_log = bool((finite > 0).all())
        fresh = type(predictor)(predictor.config)
        target = np.log(finite) if is_log else finite
        return cls(fresh.fit(view, target), outcome, is_log)

    def foretell(self, view: EarlyView, trials: pd.Index) -> Forecast:
        """Trials of a view that also holds those fitted on."""
        found = self.predictor.predict(view, trials)
        return Forecast(found.mean, found.sd, self._hazard(view, trials), self.is_log)

    def _hazard(self, view: EarlyView, trials: pd.Index) -> pd.Series:
        is_case = self.outcome.isna()
        cases, n = int(is_case.sum()), len(is_case)
        if min(cases, n - cases) >= _MIN_CASES:
            for groups in _HAZARD:
                try:
                    return dv.probability(view, is_case, groups, trials)
                except CannotPredictError:
                    continue
        # Jeffreys' estimate: none of twenty is not never.
        return pd.Series((cases + 0.5) / (n + 1), index=trials)


@dataclass(frozen=True, eq=False)
class Forecaster:
    """A predictor with all it was fitted on: foretells trials of any sweep at the same epoch.

    Attributes:
        sweep: where the trials fitted on come from.
        epoch: at whose end trials are foretold.
        name, config: of the predictor.
        sampled: settings by which trials may be told apart.
        seen: what had been seen by `epoch`, one line a trial fitted on (see the module).
        outcome: final loss by trial; NaN of those that diverged.
        fixed: settings that were the same in all trials fitted on.
    """

    sweep: str
    epoch: int
    name: str
    config: Mapping[str, Any]
    sampled: tuple[str, ...]
    seen: pd.DataFrame
    outcome: pd.Series
    fixed: Mapping[str, str]

    @classmethod
    def of(
        cls, sweep: str, view: EarlyView, outcome: pd.Series, name: str, predictor: Predictor
    ) -> "Forecaster":
        """From trials of a view and how they ended."""
        params = view.params.loc[outcome.index]
        fixed = {
            str(key): str(params[key].iloc[0])
            for key in params
            if key not in view.sampled and params[key].map(str).nunique() == 1
        }
        config = json.loads(json.dumps(asdict(predictor.config)))
        seen = seen_of(view).loc[outcome.index]
        known = [c for c in map(str, seen) if "@" not in c or _is_any_known(seen[c])]
        return cls(sweep, view.epoch, name, config, view.sampled, seen[known], outcome, fixed)

    @cached_property
    def predictor(self) -> Predictor:
        """Of the name and with the settings stored; not fitted."""
        kind: type[Predictor] = catalog.load("predictors", self.name)
        try:
            # Through JSON: strict about types, yet lists may stand for tuples.
            config = TypeAdapter(kind.Config).validate_json(json.dumps(dict(self.config)))
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            where = ".".join(map(str, fault["loc"]))
            raise ModelError(
                f"predictor {self.name!r} {where}: {fault['msg']}, got {fault['input']!r}"
            ) from error
        return kind(config)

    @cached_property
    def digest(self) -> str:
        """sha256 of what it is made of, to tell two fits of one predictor apart."""
        lists = self.seen.map(lambda v: v.tolist() if isinstance(v, np.ndarray) else v)
        table = [lists.index.tolist(), list(lists), lists.to_numpy(object).tolist()]
        made_of = [self.name, dict(self.config), self.epoch, table, self.outcome.tolist()]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()

    @cached_property
    def fit(self) -> Fit:
        """On the table, anew. Raises CannotPredictError."""
        number = range(len(self.seen))
        view = view_of(self.seen.set_axis(number), self.epoch, self.sampled)
        return Fit.on(view, self.outcome.set_axis(number), self.predictor)

    def foretell(self, seen: pd.DataFrame) -> Forecast:
        """Of trials in a table such as `seen_of` makes; NaN for those it cannot treat.

        But for rounding, a trial's forecast does not depend on the others in the table. Settings
        beyond those fitted on count as at their edge. Raises ModelError for a setting that is not
        there.
        """
        new, admitted = self._admitted(seen)
        num_fitted, index = len(self.seen), seen.index
        joint = pd.concat([self.seen, new[admitted]], ignore_index=True)
        view = view_of(joint, self.epoch, self.sampled)
        trials = pd.RangeIndex(num_fitted, len(joint))
        empty = pd.Series(np.nan, index=index)
        if not len(trials):
            return Forecast(empty, empty, empty, self.fit.is_log)
        found = self.fit.foretell(view, trials)
        mean, sd, diverges = (
            column.set_axis(index[admitted]).reindex(index)
            for column in (found.mean, found.sd, found.diverges)
        )
        return Forecast(mean, sd, diverges, self.fit.is_log)

    def differing(self, fixed: Mapping[str, str]) -> list[str]:
        """Settings that were fixed here and are other ones there: `task.name (a, there b)`."""
        return [
            f"{key} ({value}, there {fixed[key]})"
            for key, value in self.fixed.items()
            if key in fixed and fixed[key] != value and key != "seed"
        ]

    def _admitted(self, seen: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
        """The table with our columns, and which of its trials can be treated.

        Whether a column is logged is decided over all trials of a view, so that a newcomer from
        beyond what was fitted on would change what the others' columns mean: none is let in.
        """
        missing = [name for name in self.sampled if name not in seen]
        if missing:
            raise ModelError(
                f"predictor {self.name!r} knows trials by the settings "
                f"{', '.join(self.sampled)}, and these trials have no {', '.join(missing)}; "
                "a predictor without settings would work, such as last_seen_loss"
            )
        new = seen.reindex(columns=self.seen.columns)
        admitted = np.isfinite(pd.to_numeric(new[f"val_loss@{self.epoch}"], errors="coerce"))
        for name in self.sampled:
            known = self.seen[name]
            if pd.api.types.is_numeric_dtype(known):
                values = pd.to_numeric(new[name], errors="coerce")
                admitted &= np.isfinite(values)
                new[name] = values.clip(known.min(), known.max())
            else:
                new[name] = new[name].map(str)
                admitted &= new[name].isin(known.unique())
        for column in map(str, self.seen):
            is_logged = column.split("@")[0] in _LOGGED and (self.seen[column].dropna() > 0).all()
            if "@" in column and is_logged:
                admitted &= ~(pd.to_numeric(new[column], errors="coerce") <= 0)
        return new, admitted.to_numpy(bool)


_LOGGED = ("val_loss", "train_loss", "gradient_norm", "weight_norm")


def seen_of(view: EarlyView) -> pd.DataFrame:
    """An EarlyView as one line a trial (see the module)."""
    table = pd.DataFrame(index=view.trials)
    for name in dict.fromkeys((*view.sampled, _EPOCHS)):
        if name in view.params:
            column = view.params[name]
            table[name] = column.astype(float) if ft.is_number(column) else column.map(str)
    rows = view.scalars
    # Book-keeping of a measurement (`lyapunov.self_check.sum_rule`) foretells nothing.
    rows = rows[rows["quantity"].str.count(r"\.") < 2]
    wide = rows.set_index(["trial", "quantity", "epoch"])["value"].unstack(["quantity", "epoch"])
    quantities, epochs = (wide.columns.get_level_values(level) for level in (0, 1))
    wide.columns = pd.Index([f"{q}@{e}" for q, e in zip(quantities, epochs, strict=True)])
    table = table.join(wide[sorted(wide.columns)])
    for quantity in _curves(view):
        values = view.arrays(quantity)
        table[f"{quantity}@{view.epoch}"] = [_listed(values.get(t)) for t in view.trials]
    sizes = view.state_sizes
    if sizes:
        table[_SIZE] = [float(sizes.get(t, np.nan)) for t in view.trials]
    return table


def view_of(seen: pd.DataFrame, epoch: int, sampled: Iterable[str]) -> EarlyView:
    """The EarlyView of such a table, its trials being numbered by the index."""
    trials = seen.index.to_numpy(np.int32)
    parts = []
    for column in map(str, seen):
        quantity, at, when = column.rpartition("@")
        if not at:
            continue
        values = seen[column].to_numpy()
        if pd.api.types.is_numeric_dtype(seen[column]):
            known = ~np.isnan(values.astype(float))
            lists = pa.ListArray.from_arrays(
                pa.array(np.arange(known.sum() + 1), pa.int32()),
                pa.array(values[known].astype(float)),
            )
            parts.append(_rows(quantity, int(when), trials[known], lists, is_scalar=True))
        else:
            known = np.array([_length(v) > 0 for v in values], dtype=bool)
            if not known.any():
                continue
            lists = pa.array([np.asarray(v, float) for v in values[known]], pa.list_(pa.float64()))
            sizes = seen[_SIZE].to_numpy(float)[known] if _SIZE in seen else None
            parts.append(
                _rows(quantity, int(when), trials[known], lists, is_scalar=False, sizes=sizes)
            )
    table = pa.concat_tables(parts) if parts else records.SCHEMA.empty_table()
    params = seen[[c for c in map(str, seen) if "@" not in c and c != _SIZE]]
    return EarlyView(epoch, params.rename_axis(_TRIAL), tuple(sampled), table.combine_chunks())


def save(forecaster: Forecaster, folder: Path) -> None:
    """As an MLflow model in a new folder. Raises ModelError where there is something already."""
    # First, for it sets what MLflow reads from the environment when it is imported.
    from pipeline import mlflow_store  # noqa: F401

    import mlflow.pyfunc  # isort: skip

    if folder.exists():
        raise ModelError(f"{folder}: exists already; a predictor is saved to a new folder")
    data = folder.parent / f".{folder.name}.tmp" / _FOLDER
    data.mkdir(parents=True)
    try:
        _write(forecaster, data)
        with warnings.catch_warnings():
            # An example would be a copy of lines that the training table holds.
            warnings.filterwarnings("ignore", message=".*input example.*")
            mlflow.pyfunc.save_model(
                folder,
                loader_module=__name__,
                data_path=str(data),
                signature=_signature(forecaster),
                pip_requirements=_requirements(),
                metadata={"sweep": forecaster.sweep, "epoch": forecaster.epoch,
                          "predictor": forecaster.name},
            )  # fmt: skip
    finally:
        for path in data.glob("*"):
            path.unlink()
        data.rmdir()
        data.parent.rmdir()


def load(folder: Path) -> Forecaster:
    """From a folder that `save` made; reads its table and its description, runs nothing.

    Raises ModelError for a file that is missing, was changed, or is of a newer format.
    """
    data = folder / "data" / _FOLDER
    return _read(data if data.is_dir() else folder)


def _load_pyfunc(path: str) -> "_Served":
    """What MLflow calls to load one."""
    return _Served(_read(Path(path)))


@dataclass(frozen=True, eq=False)
class _Served:
    """A Forecaster as MLflow wants it: a table in, a table out."""

    forecaster: Forecaster

    def predict(
        self, trials: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """One line a trial; the best tenth is that of the trials fitted on."""
        seen = trials.reset_index(drop=True)
        found = self.forecaster.foretell(seen)
        known = np.sort(self.forecaster.outcome.fillna(np.inf).to_numpy(float))
        limit = float(known[max(1, round(TENTH * len(known))) - 1])
        number = seen[_TRIAL] if _TRIAL in seen else pd.Series(seen.index, index=seen.index)
        return pd.DataFrame({_TRIAL: number.astype("int64"), **spelled(found, limit)})


def spelled(forecast: Forecast, best: float) -> dict[str, pd.Series]:
    """final_loss (median), low, high (the central 90 %), best_tenth, diverges; by trial."""
    return {
        "final_loss": forecast.quantile(0.5),
        "low": forecast.quantile((1 - LEVEL) / 2),
        "high": forecast.quantile((1 + LEVEL) / 2),
        "best_tenth": forecast.below(best),
        "diverges": forecast.diverges,
    }


def _write(forecaster: Forecaster, data: Path) -> None:
    table = forecaster.seen.rename_axis(_TRIAL).reset_index()
    table[_OUTCOME] = forecaster.outcome.to_numpy(float)
    columns = {
        c: pa.array(table[c].tolist(), pa.list_(pa.float64())) if _holds_lists(table[c])
        else pa.array(table[c].tolist())
        for c in table
    }  # fmt: skip
    path = data / _TRAINING
    pq.write_table(pa.table(columns), path, compression="zstd")
    description = _Description(
        format=FORMAT,
        sweep=forecaster.sweep,
        epoch=forecaster.epoch,
        predictor=forecaster.name,
        config=dict(forecaster.config),
        sampled=forecaster.sampled,
        fixed=dict(forecaster.fixed),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    (data / _DESCRIPTION).write_text(json.dumps(asdict(description), indent=1, sort_keys=True))


def _read(data: Path) -> Forecaster:
    path = data / _TRAINING
    try:
        text = (data / _DESCRIPTION).read_bytes()
        number = int(json.loads(text)["format"])
        if number > FORMAT:
            raise ModelError(
                f"{data}: format {number} is newer than this program reads ({FORMAT}); "
                "upgrade lyapsweep"
            )
        found = TypeAdapter(_Description).validate_json(text)
        if hashlib.sha256(path.read_bytes()).hexdigest() != found.sha256:
            raise ModelError(
                f"{path}: its sha256 is not the one in {_DESCRIPTION}; the file was changed or "
                "cut short after it was saved"
            )
        with path.open("rb") as source:
            table = pq.read_table(source).replace_schema_metadata(None).to_pandas()
        seen = table.set_index(_TRIAL)
        outcome = seen.pop(_OUTCOME).astype(float)
        missing = {*found.sampled, f"val_loss@{found.epoch}"} - set(seen)
        if missing:
            raise ModelError(f"{path}: columns missing: {', '.join(sorted(missing))}")
    except FileNotFoundError as error:
        raise ModelError(
            f"{error.filename}: no such file; a saved predictor has {_DESCRIPTION} and {_TRAINING}"
        ) from error
    except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
        if isinstance(error, ModelError):
            raise
        brief = (str(error).splitlines() or [""])[0]
        raise ModelError(f"{data}: not a saved predictor ({brief})") from error
    return Forecaster(
        found.sweep, found.epoch, found.predictor, found.config, found.sampled, seen, outcome,
        found.fixed,
    )  # fmt: skip


def _signature(forecaster: Forecaster) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    needed = {*forecaster.sampled, f"val_loss@{forecaster.epoch}"}
    columns: list[Any] = [ColSpec(DataType.long, _TRIAL, required=False)]
    for name in map(str, forecaster.seen):
        column: pd.Series = forecaster.seen[name]
        kind: Any = DataType.string
        if pd.api.types.is_numeric_dtype(column):
            kind = DataType.double
        elif _holds_lists(column):
            kind = Array(DataType.double)
        columns.append(ColSpec(kind, name, required=name in needed))
    number = ColSpec(DataType.long, _TRIAL)
    names = ("final_loss", "low", "high", "best_tenth", "diverges")
    return ModelSignature(
        Schema(columns), Schema([number, *(ColSpec(DataType.double, n) for n in names)])
    )


def _requirements() -> list[str]:
    from importlib.metadata import version

    names = ("lyapsweep", "numpy", "pandas", "pyarrow", "scikit-learn", "scipy")
    return [f"{name}=={version(name)}" for name in names]


def _rows(
    quantity: str,
    epoch: int,
    trials: np.ndarray,
    values: pa.ListArray,
    *,
    is_scalar: bool,
    sizes: np.ndarray | None = None,
) -> pa.Table:
    n = len(trials)
    none = pa.array([[]] * n, pa.list_(pa.int32()))
    lengths = pc.list_value_length(values).to_pylist()
    details = ["{}"] * n
    if quantity == _SPECTRUM and sizes is not None:
        details = [
            "{}" if np.isnan(size) else json.dumps({"state_size": int(size)}) for size in sizes
        ]
    content = {
        "sweep": [""] * n, "trial": trials, "epoch": np.full(n, epoch), "update": np.zeros(n, int),
        "quantity": [quantity] * n,
        "axes": [[] if is_scalar else ["place"]] * n,
        "shape": none if is_scalar else [[length] for length in lengths],
        "values": values, "unit": [""] * n, "error": [None] * n, "marks": [None] * n,
        "flags": [[]] * n, "details": details, "seconds": [None] * n, "time_ms": np.zeros(n, int),
    }  # fmt: skip
    return pa.table(content, schema=records.SCHEMA)


def _curves(view: EarlyView) -> list[str]:
    """Quantities with one axis that were measured at the view's epoch."""
    rows = view.table.filter(
        pc.and_(
            pc.equal(view.table["epoch"], view.epoch),
            pc.equal(pc.list_value_length(view.table["shape"]), 1),
        )
    )
    return sorted(pc.unique(rows["quantity"]).to_pylist())


def _listed(values: np.ndarray | None) -> list[float]:
    return [] if values is None else [float(v) for v in values]


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list | tuple | np.ndarray) else 0


def _holds_lists(column: pd.Series) -> bool:
    return any(isinstance(v, list | np.ndarray) for v in column)


def _is_any_known(column: pd.Series) -> bool:
    if pd.api.types.is_numeric_dtype(column):
        return bool(column.notna().any())
    return any(_length(v) > 0 for v in column)
