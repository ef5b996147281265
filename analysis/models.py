"""A predictor that outlives its process: the table it was fitted on, stored without pickle.

What is stored is small and open: `training.parquet`, one line a trial with all that had been seen
of it by the end of one epoch (see `trial_table`) and how it ended, and `predictor.json`, which
names the predictor, its settings and its epoch. Loading fits again, to the same bits: nothing has
to be unpickled, neither our fits nor scikit-learn's, and a fit can be read with any tool. The
folder around it is an MLflow model with a signature (`mlflow.pyfunc.load_model`), whose loader is
`_load_pyfunc` below; no code is stored with it, because stored code is run on loading just as a
pickle is.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from analysis.forecaster import TENTH, Forecaster, ModelError, spelled
from analysis.trial_table import TRIAL
from pipeline import parquet_file, plain_file
from tasks.base import Config

FORMAT = 1
_FOLDER, _TRAINING, _DESCRIPTION = "predictor", "training.parquet", "predictor.json"
_OUTCOME = "outcome"


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
        number = seen[TRIAL] if TRIAL in seen else pd.Series(seen.index, index=seen.index)
        return pd.DataFrame({TRIAL: number.astype("int64"), **spelled(found, limit)})


def _write(forecaster: Forecaster, data: Path) -> None:
    table = forecaster.seen.rename_axis(TRIAL).reset_index()
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
        text = json.dumps(plain_file.json_of(data / _DESCRIPTION))
        number = int(json.loads(text)["format"])
        if number > FORMAT:
            raise ModelError(
                f"{data}: format {number} is newer than this program reads ({FORMAT}); "
                "upgrade lyapsweep"
            )
        found = TypeAdapter(_Description).validate_json(text)
        with plain_file.opened(path) as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()  # type: ignore[arg-type]
        if digest != found.sha256:
            raise ModelError(
                f"{path}: its sha256 is not the one in {_DESCRIPTION}; the file was changed or "
                "cut short after it was saved"
            )
        with path.open("rb") as source:
            stored = parquet_file.read(source).replace_schema_metadata(None)
        odd = [field.name for field in stored.schema if not _is_ours(field.type)]
        if odd:
            raise ModelError(f"{path}: column {odd[0]} must hold numbers, text or lists of numbers")
        table = stored.to_pandas()
        if not len(table):
            raise ModelError(f"{path}: holds no trial")
        if len(set(table.columns)) < len(table.columns):
            raise ModelError(f"{path}: columns must have distinct names")
        seen = table.set_index(TRIAL)
        outcome = seen.pop(_OUTCOME).astype(float)
        missing = {*found.sampled, f"val_loss@{found.epoch}"} - set(seen)
        if missing:
            raise ModelError(f"{path}: columns missing: {', '.join(sorted(missing))}")
    except FileNotFoundError as error:
        raise ModelError(
            f"{error.filename}: no such file; a saved predictor has {_DESCRIPTION} and {_TRAINING}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, OverflowError, pa.ArrowException) as error:
        if isinstance(error, ModelError):
            raise
        brief = (str(error).splitlines() or [""])[0]
        raise ModelError(f"{data}: not a saved predictor ({brief})") from error
    return Forecaster(
        found.sweep, found.epoch, found.predictor, found.config, found.sampled, seen, outcome,
        found.fixed,
    )  # fmt: skip


def _is_ours(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        kind = kind.value_type
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string)
    return any(test(kind) for test in tests)


def _signature(forecaster: Forecaster) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    needed = {*forecaster.sampled, f"val_loss@{forecaster.epoch}"}
    columns: list[Any] = [ColSpec(DataType.long, TRIAL, required=False)]
    for name in map(str, forecaster.seen):
        column: pd.Series = forecaster.seen[name]
        kind: Any = DataType.string
        if pd.api.types.is_numeric_dtype(column):
            kind = DataType.double
        elif _holds_lists(column):
            kind = Array(DataType.double)
        columns.append(ColSpec(kind, name, required=name in needed))
    number = ColSpec(DataType.long, TRIAL)
    names = ("final_loss", "low", "high", "best_tenth", "diverges")
    return ModelSignature(
        Schema(columns), Schema([number, *(ColSpec(DataType.double, n) for n in names)])
    )


def _requirements() -> list[str]:
    from importlib.metadata import version

    names = ("lyapsweep", "numpy", "pandas", "pyarrow", "scikit-learn", "scipy")
    return [f"{name}=={version(name)}" for name in names]


def _holds_lists(column: pd.Series) -> bool:
    return any(isinstance(v, list | np.ndarray) for v in column)
