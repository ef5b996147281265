"""Tables of others become sweeps of ours: exact in units, refused where anything is amiss.

Made-up tables: networks over learning rate and dropout with spectra after epochs 2 and 4 and
losses of epochs 0 to 4. Every fault is tried on both tables that would import without it.
"""

import hashlib
import json
import math
import pickle
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis import evidence
from analysis import features as ft
from analysis.frame import SweepFrame
from analysis.sections import reproduce, run
from pipeline import cli, records
from pipeline.creating import stored_config
from pipeline.external import mapping as mappings
from pipeline.external.cli import import_spectra
from pipeline.external.columns import TableError
from pipeline.external.mapping import Mapping
from pipeline.external.sweep import check_free, import_sweep
from pipeline.external.tables import read
from pipeline.faults import ConfigError
from pipeline.folder_store import FolderStore
from pipeline.home import Home, LockedError
from pipeline.publishing import SweepError
from pipeline.store import NameInUseError, Store, open_store

MAPPING = """\
source: made up
trial: net
exponents:
  epoch: epoch
  index: i
  value: lam
  unit: bits/step
  state: hidden
  spread: sd
  sequences: 4
  details: {steps: 100}
losses: {epoch: epoch, value: loss, unit: nats, details: {correction: none}}
settings: {lr: trainer.learning_rate, drop: network.dropout, width: network.units}
constants: {task.name: char_text, network.name: lstm}
sampler: grid
updates_per_epoch: 10
"""
EPOCHS, MEASURED, K = 4, (2, 4), 6
LN2 = math.log(2)


def tables(n: int = 8, k: int = K, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Spectra and losses of n networks, `net` counting from 10 in steps of 3."""
    rng = np.random.default_rng(seed)
    net = 10 + 3 * np.arange(n)
    shared = pd.DataFrame(
        {"net": net, "lr": 0.001 * (1 + np.arange(n) % 4), "drop": 0.1 * (np.arange(n) // 4),
         "width": 64}
    )  # fmt: skip
    spectra = shared.merge(pd.DataFrame({"epoch": MEASURED}), how="cross")
    spectra = spectra.merge(pd.DataFrame({"i": range(k)}), how="cross")
    spectra["lam"] = (-0.1 - 0.3 * spectra["i"] + 0.05 * rng.normal(size=len(spectra))).astype(
        "float32"
    )
    spectra["sd"] = 0.02 + 0.01 * rng.random(len(spectra))
    losses = shared.merge(pd.DataFrame({"epoch": range(EPOCHS + 1)}), how="cross")
    losses["loss"] = 4 * np.exp(-0.4 * losses["epoch"]) + 0.1 * rng.random(len(losses)) + 0.2
    return spectra, losses


class Case:
    """A folder with a mapping and two tables, and a store beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spectra, self.losses = tables()
        self.settings: tuple[str, ...] = ()
        self.store: Store = FolderStore(folder / "store")

    def mapping(self) -> Mapping:
        path = self.folder / "mapping.yaml"
        path.write_text(MAPPING)
        return mappings.load(path, self.settings)

    def files(self) -> tuple[Path, Path]:
        paths = self.folder / "S.parquet", self.folder / "L.parquet"
        for table, path in zip((self.spectra, self.losses), paths, strict=True):
            table.to_parquet(path, index=False)
        return paths

    def run(self, name: str = "theirs") -> SweepFrame:
        mapping = self.mapping()
        read_in = read(mapping, *self.files())
        self.store.prepare()
        import_sweep(read_in, mapping, name, self.store, Home.of(name, str(self.folder / "home")))
        return SweepFrame.from_store(self.store, name)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def values(frame: SweepFrame, number: int, quantity: str, epoch: int) -> np.ndarray:
    rows = [
        r
        for r in frame.table.to_pylist()
        if (r["trial"], r["quantity"], r["epoch"]) == (number, quantity, epoch)
    ]
    assert len(rows) == 1
    return np.array(rows[0]["values"])


@pytest.mark.parametrize("kind", ["folder", "mlflow"])
def test_what_is_imported_is_what_the_tables_say(case: Case, kind: str) -> None:
    if kind == "mlflow":
        case.store = open_store(f"sqlite:///{case.folder / 'mlflow.db'}")
    frame = case.run()
    assert len(frame.headers) == 8
    for number, net in enumerate(10 + 3 * np.arange(8)):
        header = frame.headers[number]
        assert header.params["imported.trial"] == net
        mine = case.spectra[case.spectra["net"] == net]
        assert header.params["trainer.learning_rate"] == mine["lr"].iloc[0]
        for epoch in MEASURED:
            at = mine[mine["epoch"] == epoch].sort_values("i")
            nats = at["lam"].to_numpy(float) * LN2
            np.testing.assert_allclose(
                values(frame, number, "lyapunov.spectrum", epoch), nats, rtol=1e-15
            )
            assert values(frame, number, "lyapunov.max", epoch) == nats.max()
            assert values(frame, number, "lyapunov.mean", epoch) == pytest.approx(nats.mean())
            assert values(frame, number, "lyapunov.near_zero", epoch) == (abs(nats) < 0.05).sum()
        curve = case.losses[case.losses["net"] == net].set_index("epoch")["loss"]
        for epoch in range(EPOCHS + 1):
            assert values(frame, number, "val_loss", epoch) == curve[epoch]
        assert header.value == curve[EPOCHS]
        assert (header.state, header.epochs, header.epochs_planned) == ("complete", 4, 4)
    assert frame.target.tolist() == case.losses[case.losses["epoch"] == EPOCHS]["loss"].tolist()
    assert frame.sampled == ("network.dropout", "trainer.learning_rate")
    assert frame.unit("lyapunov.spectrum") == "nats/step"
    assert frame.unit("val_loss") == "nats"
    assert frame.info.state == "complete"
    assert frame.info.num_trials == 8
    assert set(case.store.states("theirs").values()) == {"complete"}


def test_records_say_where_they_come_from_and_in_which_convention(case: Case) -> None:
    frame = case.run()
    said = frame.details("lyapunov.spectrum")
    assert said["imported"] == ["made up"]
    assert said["state"] == ["hidden"]
    assert said["state_size"] == [K]
    assert said["unit_in_table"] == ["bits/step"]
    assert said["multiplied_by"] == [LN2]
    assert said["steps"] == [100]
    assert frame.details("val_loss")["correction"] == ["none"]
    spectrum = next(r for r in frame.table.to_pylist() if r["quantity"] == "lyapunov.spectrum")
    first = case.spectra.iloc[:K]
    np.testing.assert_allclose(spectrum["error"], first["sd"] * LN2 / 2, rtol=1e-14)
    assert spectrum["update"] == 20
    about = frame.info.config["imported"]
    for kind, path in zip(("spectra", "losses"), case.files(), strict=True):
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        assert about["files"][kind] == {"name": path.name, "sha256": sha}
        assert frame.headers[0].provenance[f"{kind}_sha256"] == sha
    assert about["mapping"]["exponents"]["unit"] == "bits/step"
    assert about["units"] == {"exponents": "bits/step", "losses": "nats"}
    # A grid's values are what its settings were drawn from.
    assert str(frame.ranges["network.dropout"]) == "choice of 0.0, 0.1"
    assert frame.info.config["network"]["units"] == 64


def test_bits_and_nats_are_the_same_sweep(case: Case) -> None:
    in_bits = case.run("in-bits")
    case.spectra = case.spectra.astype({"lam": float})
    for name in ("lam", "sd"):
        case.spectra[name] *= LN2
    case.losses["loss"] /= LN2
    case.settings = ("exponents.unit=nats/step", "losses.unit=bits")
    in_nats = case.run("in-nats")
    for one, other in zip(in_bits.table.to_pylist(), in_nats.table.to_pylist(), strict=True):
        assert one["quantity"] == other["quantity"]
        assert one["unit"] == other["unit"]
        np.testing.assert_allclose(one["values"], other["values"], rtol=1e-13)


def test_the_order_of_lines_and_how_columns_are_stored_do_not_matter(case: Case) -> None:
    plain = case.run("plain")
    case.spectra = case.spectra.sample(frac=1, random_state=1)
    case.losses = case.losses.sample(frac=1, random_state=2)
    case.spectra["epoch"] = case.spectra["epoch"].astype(float)
    case.spectra["i"] += 1
    case.losses["lr"] = case.losses["lr"].astype("float32")
    case.losses["drop"] = case.losses["drop"].astype("category")
    other = case.run("other")
    assert records.content_hash(plain.table) == records.content_hash(other.table)


def test_networks_may_be_named_by_words(case: Case) -> None:
    case.spectra["net"] = "n" + case.spectra["net"].astype(str)
    case.losses["net"] = ("n" + case.losses["net"].astype(str)).astype("category")
    frame = case.run()
    assert [h.params["imported.trial"] for h in frame.headers][:2] == ["n10", "n13"]


def test_epochs_counted_otherwise_are_shifted(case: Case) -> None:
    case.spectra["epoch"] -= 1
    case.settings = ("exponents.shift=1",)
    assert case.run().measured_epochs == list(MEASURED)


def test_a_spectrum_beside_the_last_loss_foretells_nothing(case: Case) -> None:
    """Spectra of epochs 2 and 4, the last loss of epoch 2: nothing of it lies ahead at 2."""
    case.losses = case.losses[case.losses["epoch"] <= 2]
    frame = case.run()
    assert frame.final_epoch == 4
    assert len(frame.target) == 8
    assert len(frame.target_at(1)) == 8
    assert frame.target_at(2).empty


def test_a_network_without_spectra_still_has_its_losses(case: Case) -> None:
    case.spectra = case.spectra[case.spectra["net"] != 13]
    frame = case.run()
    assert len(frame.target) == 8
    assert set(frame.spectra("lyapunov.spectrum")["trial"]) == set(range(8)) - {1}


def test_widths_may_differ_where_the_state_is_known(case: Case) -> None:
    """Of twice the width, and of that only as many exponents for one network."""
    wide, wide_losses = tables(4, 2 * K, seed=1)
    for table in (wide, wide_losses):
        table["net"] += 100
        table["width"] = 128
    wide = wide[(wide["net"] != 110) | (wide["i"] < K)]
    case.spectra = pd.concat([case.spectra, wide])
    case.spectra["size"] = np.where(case.spectra["width"] == 128, 2 * K, K)
    case.losses = pd.concat([case.losses, wide_losses])
    case.settings = ("exponents.state_size=size",)
    frame = case.run()
    kinds = frame.spectra_measured.set_index(["trial", "epoch"])
    assert kinds.loc[(0, 2), ["k", "state_size"]].tolist() == [K, K]
    assert kinds.loc[(8, 2), ["k", "state_size"]].tolist() == [K, 2 * K]
    assert kinds.loc[(9, 2), ["k", "state_size"]].tolist() == [2 * K, 2 * K]
    assert "network.units" in frame.sampled
    places = ft.sorted_spectra(frame.early_view(2), 5)
    assert set(places.index) == set(range(12)) - {8}  # whose last exponents are not known


# Divergence.


def test_a_loss_that_is_no_number_is_a_divergence(case: Case) -> None:
    case.losses.loc[(case.losses["net"] == 13) & (case.losses["epoch"] >= 3), "loss"] = math.nan
    case.spectra.loc[(case.spectra["net"] == 13) & (case.spectra["epoch"] == 4), "lam"] = math.nan
    frame = case.run()
    header = frame.headers[1]
    assert (header.state, header.diverged_at, header.value) == ("diverged", 30, None)
    rows = [r for r in frame.table.to_pylist() if r["trial"] == 1]
    assert {r["epoch"] for r in rows} == {0, 1, 2, 3}
    assert [r["flags"] for r in rows if r["epoch"] == 3] == [["diverged"]]
    assert 1 not in frame.target.index
    assert len(frame.target) == 7


def test_a_loss_that_rises_too_far_is_a_divergence_where_the_mapping_says_so(case: Case) -> None:
    at = (case.losses["net"] == 13) & (case.losses["epoch"] >= 3)
    case.losses.loc[at, "loss"] = [3.0, 1.2]
    assert case.run("all").headers[1].state == "complete"
    case.settings = ("diverged_rise=0.5",)
    frame = case.run("stable")
    assert frame.headers[1].state == "diverged"
    assert values(frame, 1, "val_loss", 3) == 3.0
    assert {r["epoch"] for r in frame.table.to_pylist() if r["trial"] == 1} == {0, 1, 2, 3}


def test_an_annihilated_direction_is_an_exponent(case: Case) -> None:
    case.spectra.loc[case.spectra.index[K - 1], "lam"] = -math.inf
    frame = case.run()
    assert values(frame, 0, "lyapunov.spectrum", 2)[-1] == -math.inf
    row = next(r for r in frame.table.to_pylist() if r["quantity"] == "lyapunov.spectrum")
    assert row["marks"][-1] == 2


# Bad tables.


def drop(column: str, of: str = "spectra") -> Callable[[Case], None]:
    return lambda c: setattr(c, of, getattr(c, of).drop(columns=column))


def put(of: str, line: int, column: str, value: Any) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        table = getattr(case, of)
        if isinstance(value, str) or value is None:
            table[column] = table[column].astype(object)
        elif isinstance(value, float):
            table[column] = table[column].astype(float)
        table.loc[table.index[line], column] = value

    return change


def twice(of: str) -> Callable[[Case], None]:
    return lambda c: setattr(c, of, pd.concat([getattr(c, of), getattr(c, of).iloc[[7]]]))


def without(of: str, line: int) -> Callable[[Case], None]:
    return lambda c: setattr(c, of, getattr(c, of).drop(index=line))


def units(of: str, column: str, words: list[str]) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        table = getattr(case, of)
        table[column] = [words[i % len(words)] for i in range(len(table))]
        section = {"spectra": "exponents", "losses": "losses"}[of]
        case.settings = (f"{section}.unit=null", f"{section}.unit_column={column}")

    return change


def twins(case: Case) -> None:
    for of in ("spectra", "losses"):
        table = getattr(case, of)
        copy = table[table["net"] == 10].assign(net=200)
        setattr(case, of, pd.concat([table, copy]))


def cut(case: Case) -> None:
    case.spectra = case.spectra[(case.spectra["net"] != 13) | (case.spectra["i"] < 3)]


def cut_once(case: Case) -> None:
    at = (case.spectra["net"] == 13) & (case.spectra["epoch"] == 4)
    case.spectra = case.spectra[~at | (case.spectra["i"] < 3)]


def too_wide(case: Case) -> None:
    case.settings = ("exponents.state_size=width",)
    case.spectra["width"] = 5
    case.losses["width"] = 5


def empty(case: Case) -> None:
    case.losses = case.losses.iloc[:0]


def one_network(case: Case) -> None:
    case.spectra = case.spectra[case.spectra["net"] == 10]
    case.losses = case.losses[case.losses["net"] == 10]


def no_rate(case: Case) -> None:
    drop("lr")(case)
    drop("lr", "losses")(case)


def other_rates(case: Case) -> None:
    case.losses["lr"] *= 2


def as_text(case: Case) -> None:
    case.spectra["lam"] = case.spectra["lam"].astype(str)


def words_and_numbers(case: Case) -> None:
    case.losses["net"] = case.losses["net"].astype(str)


def ends_early(case: Case) -> None:
    case.losses = case.losses[(case.losses["net"] != 13) | (case.losses["epoch"] < 3)]


def recovers(case: Case) -> None:
    put("losses", 7, "loss", math.nan)(case)


def without_losses(case: Case) -> None:
    case.losses = case.losses[case.losses["net"] != 13]


def beyond_any_column(case: Case) -> None:
    case.losses["net"] = case.losses["net"].astype("uint64") + np.uint64(2**63)


BAD: dict[str, tuple[Callable[[Case], None], list[str]]] = {
    "no exponents": (drop("lam"), ["S.parquet", "columns missing: lam", "there are", "--mapping"]),
    "no name": (drop("net", "losses"), ["L.parquet", "columns missing: net"]),
    "no setting": (no_rate, ["no column lr"]),
    "exponent twice": (twice("spectra"), ["once", "10", "index 1 at epoch 4"]),
    "loss twice": (twice("losses"), ["once", "13", "several lines of epoch 2"]),
    "network twice": (twins, ["10 and 200", "exactly the same"]),
    "NaN exponent": (put("spectra", 3, "lam", math.nan), ["10 has nan at epoch 2, place 3"]),
    "infinite exponent": (put("spectra", 3, "lam", math.inf), ["inf", "place 3"]),
    "text for numbers": (as_text, ["column lam must hold numbers"]),
    "negative spread": (put("spectra", 3, "sd", -1.0), ["sd is negative"]),
    "loss recovers from NaN": (recovers, ["loss of 13 is nan at epoch 2", "at epoch 3"]),
    "two units of exponents": (
        units("spectra", "u", ["bits/step", "nats/step"]),
        ["one unit", "bits/step and nats/step"],
    ),
    "two units of losses": (units("losses", "u", ["bits", "nats"]), ["bits and nats"]),
    "strange unit": (units("losses", "u", ["dB"]), ["must say nats or bits", "'dB'"]),
    "spectra without losses": (without_losses, ["no loss of net 13", "S.parquet"]),
    "losses end early": (ends_early, ["13 ends at epoch 2 and 10 at 4"]),
    "half an epoch": (put("spectra", 3, "epoch", 2.5), ["epoch", "whole numbers", "2.5"]),
    "epoch without number": (put("losses", 3, "epoch", math.nan), ["whole numbers", "nan"]),
    "negative epoch": (put("losses", 0, "epoch", -1), ["from 0", "-1"]),
    "epoch beyond float64": (
        put("spectra", 3, "epoch", 2**53 + 1),
        ["epoch must be from 0", "e+15"],
    ),
    "name beyond int64": (beyond_any_column, ["L.parquet", "net must hold numbers below 2^63"]),
    "an exponent is missing": (without("spectra", 8), ["10 at epoch 4", "has 3 where 2"]),
    "other numbers of exponents": (cut, ["13 has 3", "10 has 6", "exponents.state_size"]),
    "fewer exponents later": (cut_once, ["13", "6 at epoch 2, 3 at epoch 4"]),
    "more exponents than states": (too_wide, ["6 exponents and 5 there"]),
    "setting changes": (put("losses", 3, "lr", 0.5), ["lr", "one value", "10", "0.5"]),
    "setting is empty": (put("losses", 3, "lr", math.nan), ["lr has no value", "10"]),
    "settings disagree": (other_rates, ["agree in both", "lr"]),
    "names disagree": (words_and_numbers, ["whole numbers", "text", "alike"]),
    "no name in a line": (put("losses", 3, "net", None), ["1 lines have no net"]),
    "no line": (empty, ["L.parquet", "no line"]),
    "one network": (one_network, ["at least 2"]),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_tables_are_refused_before_anything_is_written(case: Case, fault: str) -> None:
    change, says = BAD[fault]
    change(case)
    with pytest.raises(TableError) as refused:
        case.run()
    for words in says:
        assert words in str(refused.value)
    assert not (case.folder / "store").exists()
    assert not (case.folder / "home").exists()


def test_files_that_are_no_tables_are_refused(case: Case) -> None:
    spectra, losses = case.files()
    losses.write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(TableError, match=r"L\.parquet.*Parquet"):
        read(case.mapping(), spectra, losses)
    with pytest.raises(TableError, match="No such file"):
        read(case.mapping(), spectra, case.folder / "none.parquet")
    with pytest.raises(TableError, match="directory"):
        read(case.mapping(), case.folder, losses)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["exponents.unit=furlong"], "exponents.unit"),
        (["exponents.unit=null"], "either `unit` or `unit_column`"),
        (["exponents.unit_column=u"], "either `unit` or `unit_column`"),
        (["exponents.sequences=null"], "spread needs `sequences`"),
        (["exponents.state=cell"], "exponents.state"),
        (["losses.loss=x"], "losses.loss: unknown key"),
        (["trial=null"], "trial"),
        (["settings.lr=learning_rate"], "task.…, network.…, trainer.…"),
        (["settings.lr=trainer.choice"], "task.…, network.…, trainer.…"),
        (["settings.lr=network.units"], "named twice"),
        (["settings.lr=network.name.x"], "hold others as well"),
        (["diverged_rise=-1"], "diverged_rise"),
        (["="], "key=value"),
    ],
)
def test_bad_mappings_are_refused(case: Case, settings: list[str], says: str) -> None:
    case.settings = tuple(settings)
    with pytest.raises(ConfigError) as refused:
        case.mapping()
    assert says in str(refused.value)


def test_a_mapping_is_found_by_name_or_path(tmp_path: Path) -> None:
    assert mappings.load(mappings.find("vogt2022")).exponents.unit == "bits/step"
    with pytest.raises(ConfigError, match=r"ship with lyapsweep: .*vogt2022"):
        mappings.find("none")
    bad = tmp_path / "bad.yaml"
    for text in ("a: [", "- a\n", "a: !!python/object/apply:os.system [ls]\n"):
        bad.write_text(text)
        with pytest.raises(ConfigError, match=r"bad\.yaml"):
            mappings.load(mappings.find(str(bad)))


# Twice, and broken off.


def test_the_same_name_twice_is_refused(case: Case) -> None:
    case.run()
    before = {p: p.read_bytes() for p in (case.folder / "store").rglob("*") if p.is_file()}
    with pytest.raises(NameInUseError, match="imported already"):
        case.run()
    after = {p: p.read_bytes() for p in (case.folder / "store").rglob("*") if p.is_file()}
    assert before == after


def test_the_name_of_a_trained_sweep_is_refused(case: Case) -> None:
    case.run("first")
    info = case.store.sweep("first")
    case.store.create_sweep(replace(info, name="theirs", config={"trials": 8}))
    with pytest.raises(NameInUseError, match="trained here"):
        case.run()


class BrokenError(Exception):
    """What ends an import from outside."""


@pytest.mark.parametrize("kind", ["folder", "mlflow"])
@pytest.mark.parametrize("step", ["begin_trial", "publish", "set_state"])
def test_an_import_that_was_broken_off_goes_on(
    case: Case, kind: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{case.folder / 'mlflow.db'}" if kind == "mlflow" else ""
    if uri:
        case.store = open_store(uri)
    case.spectra, case.losses = tables(4)
    whole = case.run("whole")
    real, calls = getattr(type(case.store), step), []

    def breaks(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if step == "set_state" or len(calls) == 3:
            raise BrokenError
        real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(type(case.store), step, breaks)
        with pytest.raises(BrokenError):
            case.run()
    if uri:
        case.store = open_store(uri)  # as another process would
    assert case.store.sweep("theirs").state != "complete"
    frame = case.run()
    assert frame.info.state == "complete"
    assert records.content_hash(frame.table) == records.content_hash(whole.table)
    assert not list((case.folder / "home").rglob("trial-*"))


def test_other_tables_do_not_go_on_with_an_import(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any) -> None:
        raise BrokenError

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "publish", breaks)
        with pytest.raises(BrokenError):
            case.run()
    mapping, first = case.mapping(), read(case.mapping(), *case.files())
    assert check_free(first, mapping, "theirs", case.store) is not None
    case.losses["loss"] += 0.1
    with pytest.raises(NameInUseError, match="broken off"):
        case.run()
    case.losses["loss"] -= 0.1
    case.settings = ("updates_per_epoch=11",)
    with pytest.raises(NameInUseError, match="broken off"):
        case.run()


def test_two_imports_at_once_are_refused(case: Case) -> None:
    with Home.of("theirs", str(case.folder / "home")).lock(), pytest.raises(LockedError):
        case.run()


# As a user sees it.


def test_the_command(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(case.folder)
    case.losses.loc[(case.losses["net"] == 13) & (case.losses["epoch"] == 4), "loss"] = math.inf
    case.mapping()
    spectra, losses = case.files()
    options = ["--spectra", str(spectra), "--losses", str(losses), "--mapping", "mapping.yaml"]
    words = [*options, "--name", "theirs", "--store", "folder:kept", "sampler=random"]
    app = cli.typer.Typer()
    app.command()(import_spectra)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [
        "theirs: 8 networks",
        "spectra: 6 exponents at epochs 2, 4, from bits/step to nats/step",
        "losses: epochs 0 to 4, from nats",
        "diverged: 13 at epoch 4",
        "report: lyapsweep report theirs",
    ]
    config = FolderStore(case.folder / "kept").sweep("theirs").config
    assert config["sampler"] == {"name": "random"}
    # Values seen are not the range they were drawn from.
    assert "dropout" not in config["network"]
    assert json.loads(json.dumps(config)) == config


def test_nothing_is_pickled(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    files = case.files()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pickled")

    for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, refuse)
    mapping = case.mapping()
    case.store.prepare()
    home = Home.of("theirs", str(case.folder / "home"))
    import_sweep(read(mapping, *files), mapping, "theirs", case.store, home)
    assert len(SweepFrame.from_store(case.store, "theirs").headers) == 8


def test_analysis_reads_a_sweep_without_times(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody recorded what training and measuring cost."""
    for name, few in (("NUM_PERMUTATIONS", 9), ("NUM_FOLDS", 3), ("NUM_REPEATS", 1)):
        monkeypatch.setattr(evidence, name, few)
    case.spectra, case.losses = tables(40)
    frame = case.run()
    table = evidence.increments(frame)
    assert table["gain"].notna().all()
    assert table["cost_epochs"].isna().all()
    assert (table["against_problem"] == "no time was recorded").all()


def test_nothing_can_be_trained_on_what_others_measured(case: Case) -> None:
    info = case.run().info
    with pytest.raises(SweepError, match="imported from made up; report, predict and replay"):
        stored_config(info)


def test_the_report_says_that_others_measured(case: Case) -> None:
    frame = case.run()
    facts = dict(run.SECTION.content(frame)["facts"])
    assert facts["Measured by others"] == "made up"
    assert "Imported" in facts
    assert reproduce.SECTION.content(frame)["is_imported"]


def many(num_networks: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    return tables(num_networks, 512)


def test_a_million_lines_are_read_in_seconds(case: Case) -> None:
    """About one second here; a busy machine may take ten times as long."""
    case.spectra, case.losses = many(1000)
    files = case.files()
    assert len(case.spectra) == 1_024_000
    started = time.process_time()
    found = read(case.mapping(), *files)
    assert time.process_time() - started < 15
    assert len(found.networks) == 1000


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "mlflow"])
def test_a_million_lines_are_imported_in_reasonable_time(case: Case, kind: str) -> None:
    if kind == "mlflow":
        case.store = open_store(f"sqlite:///{case.folder / 'mlflow.db'}")
    case.spectra, case.losses = many(1000)
    started = time.monotonic()
    assert len(case.run().headers) == 1000
    assert time.monotonic() - started < 600
