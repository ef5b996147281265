"""Replays against what is known on paper, and against sweeps that were really pruned."""

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from analysis import contenders
from analysis.frame import AnalysisError, SweepFrame
from analysis.recording import recording
from analysis.replay import outcome, replay
from analysis.replay_cli import replay as command
from analysis.spectrum_pruner import SpectrumPruner
from analysis.trade_off import budget_at_regret, comparison, saved_at_regret
from pipeline import config, pruning, records
from pipeline.faults import ConfigError
from pipeline.folder_store import FolderStore
from pipeline.plan import Choice, plan
from pipeline.records import TrialHeader, TrialRecord
from pipeline.rows import Row
from tests.analysis import driven, synthetic

OF_PIPELINE = ("median", "percentile", "successive_halving", "hyperband")


def made_up(
    losses: np.ndarray, cohort_size: int = 5, batch: int = 10_000, spectra: bool = False
) -> SweepFrame:
    """A sweep with these losses, (trials, epochs + 1); a row that ends in NaN has diverged."""
    count, epochs = losses.shape[0], losses.shape[1] - 1
    tree = {
        "trials": count,
        "seed": 3,
        "sampler": {"name": "qmc", "batch": batch},
        "task": {"name": "planar"},
        "network": {"name": "mlp"},
        "trainer": {"epochs": epochs, "learning_rate": {"log_uniform": [1e-3, 1e-1]}},
        "execution": {"executor": "inline", "cohort_size": cohort_size},
    }
    checked = config.check(tree)
    info = replace(synthetic.info(num_trials=count), config=checked.tree, config_hash=checked.hash)
    return SweepFrame.from_records(
        info, [_trial(n, row, checked, spectra) for n, row in enumerate(losses)]
    )


def _trial(
    number: int, losses: np.ndarray, checked: config.SweepConfig, spectra: bool
) -> TrialRecord:
    rows = []
    is_diverged = bool(np.isnan(losses).any())
    last = int(np.isfinite(losses).sum()) if is_diverged else len(losses) - 1
    for epoch in range(last + 1):
        loss = np.array(losses[epoch])
        if epoch:
            rows.append(Row(epoch, epoch, "train_loss", loss, unit="nats", seconds=2.0))
        rows.append(Row(epoch, epoch, "val_loss", loss, unit="nats"))
        if spectra:
            value = np.array(-0.1 - losses[-1])
            rows.append(Row(epoch, epoch, "lyapunov.max", value, unit="nats/step", seconds=0.5))
    rate = 1e-3 * 100 ** ((number + 0.5) / 1000 % 1)
    params = {**checked.params(checked.spec(number, {"trainer.learning_rate": rate}))}
    header = TrialHeader(
        sweep="made-up", trial=number, trial_uid=f"0/{number}", seed=number,
        state="diverged" if is_diverged else "complete", params=params,
        sampled=("trainer.learning_rate",), value=99.0 if is_diverged else float(losses[-1]),
        diverged_at=last if is_diverged else None, epochs=last, epochs_planned=len(losses) - 1,
    )  # fmt: skip
    return TrialRecord(header, records.to_table("made-up", number, rows))


def of(name: str, epochs: int, **settings: Any) -> Choice:
    return contenders.choice_of({"name": name, **settings}, epochs)


def in_step(count: int, epochs: int, seed: int = 0) -> np.ndarray:
    """Losses that fall together, so that ranks never change."""
    levels = np.random.default_rng(seed).permutation(np.linspace(0.5, 2.0, count))
    return np.asarray(levels[:, None] * 0.9 ** np.arange(epochs + 1))


@pytest.mark.parametrize("name", [*OF_PIPELINE, "spectrum"])
def test_where_ranks_never_change_nothing_is_lost(name: str) -> None:
    sweep = recording(made_up(in_step(40, 8), spectra=True))
    for order in range(4):
        found = outcome(sweep, of(name, 8), order)
        assert (found.regret, found.regret_loss, found.rank) == (0, 0, 1)
        assert len(found.pruned) >= 8
        assert found.epochs == 40 * 8 - sum(8 - e for e in found.pruned.values())
        assert found.saved == pytest.approx(1 - found.epochs / 320)
        best = sweep.final.nsmallest(4).index
        assert found.recall == sum(n not in found.pruned for n in best) / 4


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_regret_of_pruning_at_random_is_that_of_order_statistics(factor: int) -> None:
    """Of n equally spaced final losses m are kept at random: the best has rank (n+1)/(m+1)."""
    n, repetitions = 32, 60
    m = n // factor
    choice = of("successive_halving", factor, reduction_factor=factor)
    assert pruning.make_pruner(choice, epochs=factor, seed=0).rungs == {1}
    ranks, regrets, recalls = [], [], []
    rng = np.random.default_rng(1)
    final = np.arange(1.0, n + 1)
    losses = np.column_stack([np.ones((n, factor)), final])
    sweep = recording(made_up(losses, cohort_size=n))
    for _ in range(repetitions):
        early = rng.permutation(np.linspace(1, 2, n))
        changed = sweep.frame.scalars.copy()
        at = (changed["epoch"] == 1) & (changed["quantity"] == "val_loss")
        changed.loc[at, "value"] = early[changed.loc[at, "trial"]]
        again = replace(sweep, frame=replace(sweep.frame))
        again.frame.__dict__["scalars"] = changed
        found = outcome(again, choice)
        assert len(found.pruned) == n - m
        ranks.append(found.rank)
        regrets.append(found.regret)
        recalls.append(found.recall)
    rank = (n + 1) / (m + 1)
    variance = m * (n + 1) * (n - m) / ((m + 1) ** 2 * (m + 2))
    # Four standard errors of the mean.
    assert np.mean(ranks) == pytest.approx(rank, abs=4 * math.sqrt(variance / repetitions))
    spread = 0.9 * (n - 1)
    assert np.mean(regrets) == pytest.approx((np.mean(ranks) - 1) / spread)
    assert np.mean(recalls) == pytest.approx(m / n, abs=0.15)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    assert driven.run(root, "whole", {"name": "none"}).state == "complete"
    return root


PRUNERS: list[dict[str, Any]] = [
    {"name": "median", "n_startup_trials": 4, "lag": 2, "n_warmup_steps": 2},
    {"name": "percentile", "percentile": 70.0, "n_startup_trials": 4, "lag": 2},
    {"name": "successive_halving", "reduction_factor": 2},
    {"name": "hyperband", "reduction_factor": 2, "lag": 3},
    {"name": "spectrum", "n_startup_trials": 8, "confidence": 0.8, "lag": 2},
]


@pytest.mark.parametrize("pruner", PRUNERS, ids=lambda p: str(p["name"]))
def test_a_replay_prunes_whom_the_real_sweep_prunes(trained: Path, pruner: dict[str, Any]) -> None:
    name = f"{pruner['name']}-{PRUNERS.index(pruner)}"
    driven.run(trained, name, pruner)
    real = driven.pruned(trained, name)
    frame = SweepFrame.from_store(FolderStore(trained / "store"), "whole")
    assert replay(recording(frame), contenders.choice_of(pruner, 5)) == real
    assert 3 <= len(real) < driven.TREE["trials"]


def test_cohorts_and_lag_are_the_sweeps_unless_others_are_wished(trained: Path) -> None:
    frame = SweepFrame.from_store(FolderStore(trained / "store"), "whole")
    sweep = recording(frame)
    assert sweep.lag == 1
    assert sweep.notes == ()
    checked = config.check(frame.info.config)
    specs = [sweep.specs[n] for n in range(26)] if sweep.specs else []
    assert [c.numbers for c in sweep.cohorts(0)] == [c.numbers for c in plan(specs, checked.limits)]
    shuffled = [c.numbers for c in sweep.cohorts(3)]
    assert sorted(n for c in shuffled for n in c) == list(range(26))
    assert shuffled != [c.numbers for c in sweep.cohorts(0)]
    other = recording(frame, cohort_size=13, lag=2)
    assert [len(c.numbers) for c in other.cohorts(0)] == [13, 13]
    median = of("median", 5, n_startup_trials=1)
    # With a lag of two the second of two cohorts knows nobody who has ended.
    assert replay(other, median) == {}
    assert replay(recording(frame, cohort_size=13), median)


def test_orders_are_drawn_once_and_differ() -> None:
    rng = np.random.default_rng(0)
    sweep = recording(made_up(rng.uniform(1, 2, (30, 6))))
    median = of("median", 5)
    found = [replay(sweep, median, order) for order in range(5)]
    again = recording(sweep.frame)
    assert [replay(again, median, order) for order in range(5)] == found
    assert len({tuple(sorted(f)) for f in found}) == 5
    assert sweep.order(0) == tuple(range(30))


def test_shapes_are_not_mixed_and_batches_are_planned_apart() -> None:
    frame = made_up(in_step(12, 3), cohort_size=12, batch=8)
    assert [len(c.numbers) for c in recording(frame).cohorts(1)] == [8, 4]


def test_diverged_trials_end_by_themselves() -> None:
    losses = in_step(20, 6)
    losses[7, 3:] = np.nan
    sweep = recording(made_up(losses))
    assert sweep.epochs_whole == 19 * 6 + 3
    assert sweep.lasts[7] == 3
    found = outcome(sweep, of("median", 6, n_warmup_steps=5))
    assert 7 not in found.pruned
    assert found.saved == pytest.approx(len(found.pruned) / sweep.epochs_whole)
    assert outcome(sweep, of("successive_halving", 6)).regret == 0


def test_what_is_looked_at_has_been_paid_for() -> None:
    sweep = recording(made_up(in_step(30, 6), spectra=True))
    keeping = of("spectrum", 6, n_startup_trials=30)
    found = outcome(sweep, keeping)
    assert found.pruned == {}
    # A quarter of an epoch at each of the epochs 0 to 5.
    assert found.net == pytest.approx(-6 * 0.25 / 6)
    assert found.saved == 0
    cheap = of("spectrum", 6, n_startup_trials=30, groups=["loss"], at=[2])
    assert outcome(sweep, cheap).net == 0
    halving = outcome(sweep, of("successive_halving", 6))
    assert halving.net == halving.saved > 0


def test_comparison_has_intervals_over_orders_and_what_was_said() -> None:
    rng = np.random.default_rng(0)
    sweep = recording(made_up(in_step(30, 6) * rng.uniform(0.8, 1.2, (30, 7)), spectra=True))
    choices = contenders.all_choices(6, sweep.frame.measured_epochs)
    assert list(choices) == [*OF_PIPELINE, "spectrum", "the same without spectrum"]
    table = comparison(sweep, choices, num_orders=6)
    assert list(table["pruner"]) == list(choices)
    for name in ("epochs", "saved", "regret", "recall", "rank"):
        assert (table[f"{name}_low"] <= table[f"{name}_mean"]).all()
        assert (table[f"{name}_mean"] <= table[f"{name}_high"]).all()
    assert (table["kept"] + table["pruned"] == 30).all()
    halving = table.set_index("pruner").loc["successive_halving"]
    saved = [outcome(sweep, choices["successive_halving"], i).saved for i in range(1, 7)]
    assert halving["saved_mean"] == pytest.approx(np.mean(saved))
    assert halving["saved_low"] == pytest.approx(np.quantile(saved, 0.025))
    assert "20 are needed" in table["note"].iloc[4]
    assert table["note"].iloc[0] == ""


def curve(rows: dict[str, list[tuple[float, float]]]) -> pd.DataFrame:
    """(saved, regret) of each order, by settings."""
    return pd.DataFrame(
        [
            {"pruner": "p", "settings": s, "order": i, "saved": saved, "net": saved - 0.1,
             "regret": regret, "recall": 1.0}
            for s, found in rows.items()
            for i, (saved, regret) in enumerate(found, start=1)
        ]
    )  # fmt: skip


def test_budget_is_of_the_strength_that_stays_within_the_limit() -> None:
    found = budget_at_regret(
        curve({
            "weak": [(0.2, 0.0)] * 4,
            "middle": [(0.5, 0.008)] * 4,
            "strong": [(0.9, 0.1)] * 4,
        })
    ).set_index("limit")  # fmt: skip
    assert found["settings"].to_dict() == {0.005: "weak", 0.01: "middle"}
    assert found["saved"].to_dict() == pytest.approx({0.005: 0.2, 0.01: 0.5})
    assert found["net"].to_dict() == pytest.approx({0.005: 0.1, 0.01: 0.4})
    nothing = budget_at_regret(curve({"strong": [(0.9, 0.1)] * 4}))
    assert nothing["saved"].tolist() == [0, 0]
    assert nothing["settings"].tolist() == ["keeps all"] * 2
    nobody = budget_at_regret(curve({"strong": [(0.9, 0.0), (0.9, math.nan)] * 2}))
    assert nobody["settings"].tolist() == ["keeps all or strong"] * 2


def test_budget_is_judged_on_orders_it_was_not_chosen_on() -> None:
    lucky = {f"s{i}": [(0.5, 0.0 if o % 2 == i % 2 else 0.5) for o in range(1, 9)] for i in (0, 1)}
    found = budget_at_regret(curve(lucky))
    # Whoever shows no regret in one half shows all of it in the other.
    assert found["regret"].tolist() == pytest.approx([0.5, 0.5])


def test_budget_for_the_report_is_of_all_pruners_and_of_few_trials() -> None:
    frame = made_up(in_step(60, 8))
    found = saved_at_regret(frame, num_orders=4, max_trials=40)
    assert set(found["trials"]) == {40}
    assert list(found["pruner"].unique()) == [*OF_PIPELINE, "spectrum"]
    assert list(found["limit"].unique()) == [0.005, 0.01]
    saved = found.drop_duplicates("pruner").set_index("pruner")["saved"]
    assert (saved[list(OF_PIPELINE)] > 0.2).all()
    # There is no spectrum to look at.
    assert saved["spectrum"] == 0


def test_what_cannot_be_replayed_is_refused() -> None:
    frame = made_up(in_step(12, 3))
    gone = replace(frame.headers[0], state="pruned", pruned_at=1)
    with pytest.raises(AnalysisError, match="1 of 12 were pruned"):
        recording(replace(frame, headers=(gone, *frame.headers[1:])))
    with pytest.raises(AnalysisError, match="needs 10 trials that ran to their end, there are 6"):
        recording(made_up(in_step(6, 3)))
    with pytest.raises(AnalysisError, match="final losses are all alike"):
        recording(made_up(np.ones((12, 4))))


def test_nobody_foretells_what_it_has_learned_from(tmp_path: Path) -> None:
    store = synthetic.stored(tmp_path, synthetic.sweep("planted", 40))
    store.set_state("made-up", "complete")
    sweep = recording(SweepFrame.from_store(store, "made-up"))
    itself = of("spectrum", sweep.epochs, from_sweep="made-up", from_store=store.uri)
    with pytest.raises(AnalysisError, match="must be another sweep than 'made-up'"):
        outcome(sweep, itself)


def test_sweeps_that_are_not_ours_are_replayed_trial_by_trial() -> None:
    frame = made_up(in_step(12, 3))
    foreign = replace(frame, info=replace(frame.info, config={"source": "a paper"}))
    sweep = recording(foreign)
    assert "cohorts are not known" in sweep.notes[0]
    assert [c.numbers for c in sweep.cohorts(0)] == [(n,) for n in range(12)]
    found = outcome(sweep, of("successive_halving", 3, reduction_factor=2))
    assert found.regret == 0
    assert found.pruned
    few = replace(frame, info=replace(frame.info, num_trials=20))
    assert "8 of 20 trials are not on record" in recording(few).notes[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("median", {"name": "median"}),
        ("median:warmup=2", {"name": "median", "warmup": 2}),
        ("spectrum:at=[1,2],confidence=0.9", {"name": "spectrum", "at": [1, 2], "confidence": 0.9}),
        ("{name: median, n_warmup_steps: 2}", {"name": "median", "n_warmup_steps": 2}),
    ],
)
def test_pruners_are_named_in_short_or_in_yaml(text: str, expected: dict[str, Any]) -> None:
    assert contenders.parse(text) == expected


def test_a_conf_may_name_the_pruner(tmp_path: Path) -> None:
    path = tmp_path / "conf.yaml"
    path.write_text("trials: 3\npruner: {name: hyperband, reduction_factor: 2}\n")
    found = contenders.choice_of(contenders.parse(str(path)), 9)
    assert contenders.label_of(found) == "hyperband: reduction_factor=2"
    assert contenders.label_of(of("median", 9, warmup=2)) == "median: n_warmup_steps=2"
    assert contenders.label_of(of("median", 9)) == "median"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("medain", "pruner.name: must be one of none, median"),
        ("none", "to prune nothing is what the others are compared with"),
        ("median:warmup=-1", "n_warmup_steps: must be at least 0, got -1"),
        ("median:percentile=3", "unknown key"),
        ("median:n=3", "unknown key"),
        ("median:warmup", "no value for a setting"),
        ("median:warmup=[", "must be a name, or name:setting=value"),
        ("gone.yaml", "cannot be read"),
        ("median:at=[9]", "epoch 9 is not before the last epoch, 5"),
    ],
)
def test_what_is_no_pruner_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        contenders.choice_of(contenders.parse(text), 5, text)


@pytest.fixture
def invoke(tmp_path: Path) -> Callable[..., str]:
    app = typer.Typer()
    app.command()(command)
    store = synthetic.stored(tmp_path, synthetic.sweep("planted", 40))

    def call(*words: str) -> str:
        result = CliRunner().invoke(app, ["made-up", "--store", store.uri, *words])
        assert result.exit_code == 0, result.output
        return result.output

    return call


def test_command(invoke: Callable[..., str]) -> None:
    two = ["--pruner", "median:warmup=2", "--pruner", "successive_halving"]
    text = invoke(*two, "--orders", "4", "--cohort-size", "5", "--top", "0.25")
    assert "40 trials, 240 epochs without a pruner" in text
    assert "of the best 25 %" in text
    assert "median: n_warmup_steps=2" in text
    assert "regret below" in text
    found = list(csv.DictReader(io.StringIO(invoke(*two, "--orders", "3", "--format", "csv"))))
    assert [row["pruner"] for row in found] == ["median: n_warmup_steps=2", "successive_halving"]
    assert 0 < float(found[1]["saved"]) < 1
    tables = json.loads(invoke(*two, "--orders", "4", "--format", "json"))
    assert [row["orders"] for row in tables["pruners"]] == [4, 4]
    assert {row["limit"] for row in tables["budget"]} == {0.005, 0.01}
    assert "Means over orders" in invoke(*two, "--orders", "2", "--show", "curve")
    assert "regret below" not in invoke(*two, "--orders", "1")


def test_every_pruner_there_is_can_be_replayed(invoke: Callable[..., str]) -> None:
    found = json.loads(invoke("--orders", "1", "--show", "pruners", "--format", "json"))
    names = [row["pruner"] for row in found["pruners"]]
    assert names == [*pruning.names()[1:], "the same without spectrum"]
    assert pruning.pruner_type("spectrum") is SpectrumPruner
