"""How a sweep becomes known to a store, and how its settings come back from there unchanged."""

import secrets

from pipeline.config import SweepConfig, check, hash_of
from pipeline.provenance import provenance
from pipeline.publishing import SweepError
from pipeline.rows import now_ms
from pipeline.sizing import settled
from pipeline.store import NameInUseError, NoSuchSweepError, Store, SweepInfo


def check_free(name: str, store: Store) -> None:
    """Raises NameInUseError where the store has a sweep of this name."""
    try:
        store.sweep(name)
    except NoSuchSweepError:
        return
    raise NameInUseError(f"a sweep named {name!r} exists already; `lyapsweep resume {name}`?")


def create(config: SweepConfig, name: str, store: Store) -> SweepInfo:
    """Makes a sweep known to the store, settled: `stored_config` plans what it always will.

    Raises NameInUseError.
    """
    config = settled(config)
    info = SweepInfo(
        name=name,
        sweep_id=secrets.token_hex(8),
        config=config.tree,
        config_hash=config.hash,
        num_trials=config.trials,
        created_ms=now_ms(),
        provenance=provenance(),
    )
    store.create_sweep(info)
    return info


def stored_config(info: SweepInfo) -> SweepConfig:
    """The configuration a sweep was created with, checked again.

    Raises ConfigError, and SweepError where it is not what it was.
    """
    found = hash_of(info.config)
    if found != info.config_hash:
        raise SweepError(
            f"sweep {info.name!r}: its stored settings must be those it was created with, whose "
            f"sha256 begins {info.config_hash[:12]}, but now it begins {found[:12]}: somebody "
            "changed them. Put them back, or start another sweep with the new ones"
        )
    if "imported" in info.config:
        raise SweepError(
            f"sweep {info.name!r}: only a sweep that was trained here can be trained on, but its "
            f"spectra were imported from {info.config['imported']['source']}; report, predict and "
            "replay read it, and an import that broke off goes on by the same import-spectra"
        )
    return check(info.config, source=f"sweep {info.name!r}")
