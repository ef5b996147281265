"""Networks that others trained and measured, published into a store as trials of a sweep.

The sweep is known to the store first, as running; then come the trials, each spooled and published
as a trained one is; then it is complete. Until then the same import goes on where it was broken
off, and nothing else may take the name.
"""

import contextlib
import secrets
from typing import Any

import numpy as np

from pipeline import records
from pipeline.config import hash_of
from pipeline.diagnostics.base import Mark
from pipeline.dynamics import derived
from pipeline.external.mapping import NUMBER, Mapping
from pipeline.external.tables import TO_NATS, Published, Spectrum, Tables
from pipeline.home import Home
from pipeline.provenance import provenance
from pipeline.records import TrialHeader, TrialRecord
from pipeline.rows import Row, now_ms
from pipeline.store import (
    NameInUseError,
    NoSuchSweepError,
    Store,
    StoreError,
    SweepInfo,
    TrialStart,
)

_FINISHED = ("complete", "diverged")


def import_sweep(tables: Tables, mapping: Mapping, name: str, store: Store, home: Home) -> int:
    """Publishes all networks; returns how many an earlier, broken import had left to do.

    Raises NameInUseError, LockedError, StoreError, OSError.
    """
    with home.lock():
        info = _created(tables, mapping, name, store)
        done = {n for n, state in store.states(name).items() if state in _FINISHED}
        sampled = _varying(tables)
        try:
            for number, network in enumerate(tables.networks):
                if number not in done:
                    record = _record(number, network, info, mapping, tables, sampled)
                    _publish(record, store, home)
        except BaseException:
            with contextlib.suppress(StoreError):
                store.set_state(name, "interrupted")
            raise
        store.set_state(name, "complete")
    return len(tables.networks) - len(done)


def check_free(tables: Tables, mapping: Mapping, name: str, store: Store) -> SweepInfo | None:
    """The unfinished import of the same tables under this name, if there is one.

    Raises NameInUseError where the name stands for anything else.
    """
    try:
        info = store.sweep(name)
    except NoSuchSweepError:
        return None
    if "imported" not in info.config:
        raise NameInUseError(
            f"a sweep named {name!r} exists already and was trained here; choose another --name"
        )
    if info.state == "complete":
        raise NameInUseError(
            f"{name!r} was imported already (from {info.config['imported']['source']}); "
            f"`lyapsweep report {name}` reads it, another --name imports again"
        )
    if info.config_hash != hash_of(_tree(tables, mapping)):
        raise NameInUseError(
            f"an import named {name!r} was broken off, but of other tables or with another "
            "mapping; repeat that one, or choose another --name"
        )
    return info


def _created(tables: Tables, mapping: Mapping, name: str, store: Store) -> SweepInfo:
    former = check_free(tables, mapping, name, store)
    if former is not None:
        return former
    tree = _tree(tables, mapping)
    info = SweepInfo(
        name=name,
        sweep_id=secrets.token_hex(8),
        config=tree,
        config_hash=hash_of(tree),
        num_trials=len(tables.networks),
        created_ms=now_ms(),
        provenance={**provenance(), **_origin(tables, mapping)},
    )
    store.create_sweep(info)
    return info


def _origin(tables: Tables, mapping: Mapping) -> dict[str, Any]:
    return {
        "imported_from": mapping.source,
        **{f"{kind}_{key}": v for kind, f in tables.files.items() for key, v in f.items()},
    }


def _tree(tables: Tables, mapping: Mapping) -> dict[str, Any]:
    """What stands for a conf: where all came from, and the settings as a conf would have them."""
    tree: dict[str, Any] = {
        "imported": {
            "source": mapping.source,
            "files": tables.files,
            "units": tables.units,
            "mapping": mapping.plain,
        },
        "trials": len(tables.networks),
        "sampler": {"name": mapping.sampler},
    }
    varying = _varying(tables)
    shared = {**mapping.constants, **tables.networks[0].settings}
    for name, value in shared.items():
        if name in varying:
            if mapping.sampler != "grid":
                continue  # Values seen do not tell the range they were drawn from.
            seen = {n.settings[name] for n in tables.networks}
            value = {"choice": sorted(seen, key=lambda v: (str(type(v)), v))}
        section, *path, last = name.split(".")
        node = tree.setdefault(section, {})
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def _varying(tables: Tables) -> tuple[str, ...]:
    first = tables.networks[0].settings
    return tuple(
        sorted(k for k, v in first.items() if any(n.settings[k] != v for n in tables.networks))
    )


def _record(
    number: int,
    network: Published,
    info: SweepInfo,
    mapping: Mapping,
    tables: Tables,
    sampled: tuple[str, ...],
) -> TrialRecord:
    last = max([*network.losses, *network.spectra])
    header = TrialHeader(
        sweep=info.name,
        trial=number,
        trial_uid=f"{info.sweep_id}/{number}",
        seed=0,
        state="complete" if network.diverged_at is None else "diverged",
        params={NUMBER: network.name, **mapping.constants, **network.settings},
        sampled=sampled,
        value=network.losses[max(network.losses)] if network.diverged_at is None else None,
        diverged_at=None
        if network.diverged_at is None
        else network.diverged_at * mapping.updates_per_epoch,
        epochs=last,
        epochs_planned=max(max([*n.losses, *n.spectra]) for n in tables.networks),
        start_ms=info.created_ms,
        end_ms=info.created_ms,
        provenance={**_origin(tables, mapping), "seed": "unknown"},
    )
    found = _rows(network, mapping, tables.units, info.created_ms)
    return TrialRecord(header, records.to_table(info.name, number, found))


def _rows(network: Published, mapping: Mapping, units: dict[str, str], time_ms: int) -> list[Row]:
    """As training would have left them: by epoch, the loss first."""
    found = []
    unit = units["losses"]
    about = {"imported": mapping.source, **_conversion(unit), **mapping.losses.details}
    for epoch in sorted({*network.losses, *network.spectra}):
        update = epoch * mapping.updates_per_epoch
        if epoch in network.losses:
            found.append(
                Row(
                    epoch,
                    update,
                    "val_loss",
                    np.array(network.losses[epoch]),
                    unit="nats" if unit == "bits" else unit,
                    flags=("diverged",) if epoch == network.diverged_at else (),
                    details=about,
                    time_ms=time_ms,
                )
            )
        if epoch in network.spectra:
            found += _spectrum_rows(
                epoch, update, network.spectra[epoch], network.state_size, mapping, units, time_ms
            )
    return found


def _spectrum_rows(
    epoch: int,
    update: int,
    spectrum: Spectrum,
    state_size: int,
    mapping: Mapping,
    units: dict[str, str],
    time_ms: int,
) -> list[Row]:
    """The spectrum and the scalars that a measurement of ours reads off it."""
    exponents, spec = spectrum.exponents, mapping.exponents
    k = len(exponents)
    details: dict[str, Any] = {
        "imported": mapping.source,
        "state": spec.state,
        "state_size": state_size,
        "k": k,
        **({} if spec.sequences is None else {"sequences": spec.sequences}),
        **_conversion(units["exponents"]),
        **spec.details,
    }
    marks = (exponents == -np.inf) * int(Mark.MINUS_INFINITY)
    values = derived.features(exponents, state_size, near_zero_threshold=spec.near_zero)
    over = {**details, "over": "all exponents" if k == state_size else f"the {k} leading exponents"}
    top = int(exponents.argmax())
    error = spectrum.error

    def row(name: str, value: Any, unit: str = "1", **more: Any) -> Row:
        more.setdefault("details", details)
        return Row(
            epoch, update, f"lyapunov.{name}", np.asarray(value), unit=unit, time_ms=time_ms, **more
        )

    return [
        row("spectrum", exponents, "nats/step", axes=("exponent",), error=error,
            marks=marks.astype(np.uint8)),
        row("max", exponents[top], "nats/step", error=None if error is None else error[top]),
        row("mean", values["mean"], "nats/step", details=over),
        row("sum", values["sum"], "nats/step", details=over),
        row("kaplan_yorke", values["kaplan_yorke"],
            flags=("needs_more_exponents",) if np.isnan(values["kaplan_yorke"]) else ()),
        row("near_zero", values["near_zero"], details={**details, "threshold": spec.near_zero}),
    ]  # fmt: skip


def _conversion(unit: str) -> dict[str, Any]:
    return {"unit_in_table": unit, "multiplied_by": TO_NATS[unit]}


def _publish(record: TrialRecord, store: Store, home: Home) -> None:
    header = record.header
    path = home.spool_path(header.trial)
    records.write(record, path)
    store.begin_trial(header.sweep, TrialStart.of(header))
    store.publish(header.sweep, path)
    path.unlink()
