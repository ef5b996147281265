"""Somebody's tables of spectra and losses, checked whole, as networks in our units.

Nothing is mended: whatever cannot be right (a line twice, a gap, a NaN, two units) is refused with
the place where it stands, before anything is written anywhere.

Policy for losses: from the first one that is no finite number, or that has risen by
`diverged_rise` above the lowest so far, a network counts as diverged, and its later lines are left
out as a trial of ours would have ended there. A finite loss after one that is none is refused.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.external.columns import Columns, TableError
from pipeline.external.mapping import Mapping

TO_NATS = {"bits/step": math.log(2), "nats/step": 1.0, "bits": math.log(2), "nats": 1.0, "1": 1.0}
FEWEST = 2


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Exponents in nats per step, in the table's order, with standard errors where known."""

    exponents: np.ndarray
    error: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Published:
    """One network.

    Attributes:
        name: as in the tables.
        settings: by our dotted names.
        state_size: number of exponents of the whole state.
        losses: by epoch, to its end or to where it diverged.
        spectra: by epoch, likewise.
        diverged_at: epoch, or None.
    """

    name: Any
    settings: dict[str, Any]
    state_size: int
    losses: dict[int, float]
    spectra: dict[int, Spectrum]
    diverged_at: int | None


@dataclass(frozen=True, eq=False)
class Tables:
    """What was read: the networks in order of their names, units as found, files by sha256."""

    networks: tuple[Published, ...]
    units: dict[str, str]
    files: dict[str, dict[str, str]]


def read(mapping: Mapping, spectra: Path, losses: Path) -> Tables:
    """Reads and checks both tables. Raises TableError."""
    one, two = mapping.exponents, mapping.losses
    exponents = Columns.read(
        spectra,
        mapping,
        [one.epoch, one.index, one.value],
        [one.unit_column, one.state_size, one.standard_error, one.spread],
    )
    curves = Columns.read(losses, mapping, [two.epoch, two.value], [two.unit_column])
    names = _names(exponents, curves, mapping.trial)
    units = {
        "exponents": exponents.unit(one.unit, one.unit_column, ("bits/step", "nats/step")),
        "losses": curves.unit(two.unit, two.unit_column, ("nats", "bits", "1")),
    }
    settings = _settings(mapping, exponents, curves, names)
    found = _losses(mapping, curves, names, TO_NATS[units["losses"]])
    measured, sizes = _spectra(mapping, exponents, names, TO_NATS[units["exponents"]])
    networks = []
    for i, name in enumerate(names):
        if i not in found:
            raise TableError(
                f"{losses}: no loss of {mapping.trial} {name!r}, which {spectra} has spectra of; "
                "add its losses or take it out of the spectra"
            )
        curve, diverged_at = _until_divergence(found[i], mapping.diverged_rise, losses, name)
        kept = _kept(measured.get(i, {}), curve, diverged_at, spectra, name)
        networks.append(Published(name, settings[i], sizes.get(i, 0), curve, kept, diverged_at))
    _check_ends(networks, losses)
    _check_twins(networks, measured, losses)
    return Tables(tuple(networks), units, {"spectra": exponents.file, "losses": curves.file})


def _names(exponents: Columns, curves: Columns, trial: str) -> list[Any]:
    """All networks, sorted; names must be of one kind in both tables."""
    kinds = []
    for table in (exponents, curves):
        column = table.columns[trial]
        if column.null_count:
            raise TableError(f"{table.path}: {column.null_count} lines have no {trial}")
        if pa.types.is_integer(column.type):
            try:
                table.columns[trial], kind = column.cast(pa.int64()), "whole numbers"
            except pa.ArrowInvalid as error:
                raise TableError(
                    f"{table.path}: column {trial} must hold numbers below 2^63 ({error})"
                ) from error
        elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            table.columns[trial], kind = column.cast(pa.large_string()), "text"
        else:
            raise TableError(
                f"{table.path}: column {trial} must hold whole numbers or text, holds {column.type}"
            )
        kinds.append(kind)
    if kinds[0] != kinds[1]:
        raise TableError(
            f"column {trial} must name networks alike in both tables, but it holds {kinds[0]} in "
            f"{exponents.path} and {kinds[1]} in {curves.path}"
        )
    found = {*exponents.columns[trial].unique().to_pylist()}
    found |= {*curves.columns[trial].unique().to_pylist()}
    if len(found) < FEWEST:
        raise TableError(f"{curves.path}: {len(found)} network, at least {FEWEST} are needed")
    return sorted(found)


def _settings(
    mapping: Mapping, exponents: Columns, curves: Columns, names: list[Any]
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{} for _ in names]
    for column, setting in mapping.settings.items():
        tables = [t for t in (curves, exponents) if column in t.columns]
        if not tables:
            raise TableError(
                f"{curves.path} and {exponents.path}: no column {column}, which the mapping's "
                "settings name"
            )
        for table in tables:
            for i, value in table.of_each(column, names).items():
                former = found[i].setdefault(setting, value)
                if not _is_same(former, value):
                    raise TableError(
                        f"column {column} must agree in both tables, but for {mapping.trial} "
                        f"{names[i]!r} {curves.path} has {former!r} and {exponents.path} {value!r}"
                    )
        lacking = [names[i] for i in range(len(names)) if setting not in found[i]]
        if lacking:
            raise TableError(
                f"{tables[0].path}: column {column} says nothing of {mapping.trial} "
                f"{lacking[0]!r}, which the other table has"
            )
    return found


def _is_same(a: Any, b: Any) -> bool:
    """Numbers may have been stored in single precision in one table."""
    if isinstance(a, float) or isinstance(b, float):
        return isinstance(a, int | float) and math.isclose(a, b, rel_tol=1e-6)
    return bool(a == b)


def _losses(
    mapping: Mapping, table: Columns, names: list[Any], to_nats: float
) -> dict[int, dict[int, float]]:
    codes = table.codes(names)
    epochs = table.whole(mapping.losses.epoch, mapping.losses.shift)
    values = table.numbers(mapping.losses.value) * to_nats
    order = np.lexsort((epochs, codes))
    codes, epochs, values = codes[order], epochs[order], values[order]
    twice = np.flatnonzero((np.diff(codes) == 0) & (np.diff(epochs) == 0))
    if len(twice):
        i = twice[0]
        raise TableError(
            f"{table.path}: each loss must occur once, but {mapping.trial} {names[codes[i]]!r} has "
            f"several lines of epoch {epochs[i]}"
        )
    found: dict[int, dict[int, float]] = {}
    for code, epoch, value in zip(codes.tolist(), epochs.tolist(), values.tolist(), strict=True):
        found.setdefault(code, {})[epoch] = value
    return found


def _until_divergence(
    curve: dict[int, float], rise: float | None, path: Path, name: Any
) -> tuple[dict[int, float], int | None]:
    kept: dict[int, float] = {}
    lowest, diverged_at = math.inf, None
    for epoch, loss in curve.items():
        if diverged_at is None:
            kept[epoch] = loss
            if not math.isfinite(loss) or (rise is not None and loss > lowest + rise):
                diverged_at = epoch
            lowest = min(lowest, loss) if math.isfinite(loss) else lowest
        elif math.isfinite(loss) and not math.isfinite(kept[diverged_at]):
            raise TableError(
                f"{path}: the loss of {name!r} is {kept[diverged_at]:g} at epoch {diverged_at} and "
                f"{loss:g} at epoch {epoch}; a network that diverged has no finite loss after that"
            )
    return kept, diverged_at


def _spectra(
    mapping: Mapping, table: Columns, names: list[Any], to_nats: float
) -> tuple[dict[int, dict[int, Spectrum]], dict[int, int]]:
    """Spectra by network and epoch, and each network's state size."""
    spec = mapping.exponents
    codes, epochs = table.codes(names), table.whole(spec.epoch, spec.shift)
    index, values = table.whole(spec.index), table.numbers(spec.value) * to_nats
    errors = None
    if spec.standard_error is not None:
        errors = table.numbers(spec.standard_error) * to_nats
    elif spec.spread is not None:
        errors = table.numbers(spec.spread) * to_nats / math.sqrt(spec.sequences or 1)
    if errors is not None and (errors < 0).any():
        raise TableError(f"{table.path}: column {spec.standard_error or spec.spread} is negative")
    order = np.lexsort((index, epochs, codes))
    codes, epochs, index, values = codes[order], epochs[order], index[order], values[order]
    errors = None if errors is None else errors[order]
    is_new = np.r_[True, (np.diff(codes) != 0) | (np.diff(epochs) != 0)]
    starts = np.flatnonzero(is_new)
    counts = np.diff(np.r_[starts, len(codes)])
    place = np.arange(len(codes)) - np.repeat(starts, counts)
    twice = np.flatnonzero(~is_new[1:] & (np.diff(index) == 0))
    if len(twice):
        i = twice[0]
        raise TableError(
            f"{table.path}: each exponent must occur once, but {mapping.trial} "
            f"{names[codes[i]]!r} has several lines of index {index[i]} at epoch {epochs[i]}"
        )
    first = int(index.min())
    gap = np.flatnonzero(index != place + first)
    if len(gap) or first > 1:
        i = gap[0] if len(gap) else 0
        raise TableError(
            f"{table.path}: column {spec.index} must number exponents 0, 1, … or 1, 2, …, but "
            f"{mapping.trial} {names[codes[i]]!r} at epoch {epochs[i]} has {index[i]} where "
            f"{place[i] + min(first, 1)} was due"
        )
    found: dict[int, dict[int, Spectrum]] = {}
    for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
        part = slice(start, start + count)
        spectrum = Spectrum(values[part], None if errors is None else errors[part])
        found.setdefault(int(codes[start]), {})[int(epochs[start])] = spectrum
    return found, _sizes(mapping, table, names, found)


def _sizes(
    mapping: Mapping,
    table: Columns,
    names: list[Any],
    found: dict[int, dict[int, Spectrum]],
) -> dict[int, int]:
    counts: dict[int, int] = {}
    for i, spectra in found.items():
        each = {epoch: len(s.exponents) for epoch, s in spectra.items()}
        if len(set(each.values())) > 1:
            said = ", ".join(f"{n} at epoch {epoch}" for epoch, n in each.items())
            raise TableError(
                f"{table.path}: a network must have as many exponents at every epoch, but "
                f"{mapping.trial} {names[i]!r} has {said}"
            )
        counts[i] = next(iter(each.values()))
    column = mapping.exponents.state_size
    if column is None:
        if len(set(counts.values())) > 1:
            few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
            raise TableError(
                f"{table.path}: {mapping.trial} {names[few]!r} has {counts[few]} exponents and "
                f"{names[many]!r} has {counts[many]}: networks of other widths, or spectra cut "
                "short? Name the column with the size of the state in the mapping, "
                "exponents.state_size"
            )
        return counts
    sizes = table.of_each(column, names)
    for i, size in sizes.items():
        if not isinstance(size, int) or size < counts[i]:
            raise TableError(
                f"{table.path}: column {column} must be the number of exponents of the whole "
                f"state, but {mapping.trial} {names[i]!r} has {counts[i]} exponents and {size!r} "
                "there"
            )
    return sizes


def _kept(
    spectra: dict[int, Spectrum],
    curve: dict[int, float],
    diverged_at: int | None,
    path: Path,
    name: Any,
) -> dict[int, Spectrum]:
    """Those up to where the network diverged, each of them numbers."""
    end = math.inf
    if diverged_at is not None:
        end = diverged_at if math.isfinite(curve[diverged_at]) else diverged_at - 1
    kept = {epoch: s for epoch, s in spectra.items() if epoch <= end}
    for epoch, spectrum in kept.items():
        # −∞ is an exponent: a direction that a step annihilates.
        bad = np.flatnonzero(np.isnan(spectrum.exponents) | (spectrum.exponents == math.inf))
        if len(bad):
            raise TableError(
                f"{path}: every exponent must be a number or -inf, but {name!r} has "
                f"{spectrum.exponents[bad[0]]:g} at epoch {epoch}, place {bad[0]}; take such a "
                "spectrum out of the table"
            )
    return kept


def _check_ends(networks: list[Published], path: Path) -> None:
    """A final loss is one of the same epoch in all that did not diverge."""
    ends: dict[int, Any] = {}
    for network in networks:
        if network.diverged_at is None:
            ends.setdefault(max(network.losses), network.name)
    if len(ends) > 1:
        (early, a), (late, b), *_ = sorted(ends.items())
        raise TableError(
            f"{path}: losses must end at one epoch for all networks that did not diverge, but "
            f"{a!r} ends at epoch {early} and {b!r} at {late}; take those that ended early out, "
            "or cut the others"
        )


def _check_twins(
    networks: list[Published], measured: dict[int, dict[int, Spectrum]], path: Path
) -> None:
    """The same numbers under two names: a network that would count twice."""
    seen: dict[bytes, Any] = {}
    for i, network in enumerate(networks):
        digest = hashlib.sha256(np.array(list(network.losses.items())).tobytes())
        for epoch, spectrum in measured.get(i, {}).items():
            digest.update(np.array([epoch]).tobytes() + spectrum.exponents.tobytes())
        former = seen.setdefault(digest.digest(), network.name)
        if former != network.name:
            raise TableError(
                f"{path}: {former!r} and {network.name!r} have exactly the same losses and "
                "exponents; a network that counts twice makes every interval too narrow. Take one "
                "of them out"
            )
