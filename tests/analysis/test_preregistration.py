import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from analysis.cli import preregister as command
from analysis.confirmation import confirmation
from analysis.correlations import correlations
from analysis.evidence import increments
from analysis.frame import SweepFrame
from analysis.hypotheses import Plan, default_plan, plan_of, read_plan
from analysis.preregistration import (
    PreregistrationError,
    Registration,
    preregistration_of,
    register,
)
from pipeline import records
from pipeline.faults import ConfigError
from pipeline.folder_store import FolderStore
from pipeline.rows import now_ms
from pipeline.store import NoSuchSweepError, Store, TrialStart, open_store
from tests.analysis import synthetic

TREE: dict[str, Any] = {
    "hypothesis": "The spectrum after two epochs tells more than loss, settings and norms.",
    "primary": [{"epoch": 2, "test": "increment", "group": "spectrum", "at_least": 0.02}],
    "secondary": [
        {"epoch": 1, "test": "partial", "feature": "lyapunov.max", "direction": "negative"},
        {"epoch": 2, "test": "partial_with_loss", "feature": "lyapunov.max"},
    ],
    "rungs": [0, 1, 2],
    "features": ["lyapunov.max", "lyapunov.mean"],
    "trials": 50,
}


def plan(**changes: Any) -> Plan:
    return plan_of({**TREE, **changes}, "plan.yaml")


def running(
    root: Path, num_ended: int, num_trials: int = 20, state: str = "running"
) -> FolderStore:
    store = FolderStore(root / "store")
    store.prepare()
    store.create_sweep(replace(synthetic.info(num_trials=num_trials), state=state))
    publish(store, root, num_ended)
    return store


def publish(store: Store, root: Path, num_ended: int) -> None:
    for trial in synthetic.sweep("planted", num_ended):
        path = root / f"trial-{trial.header.trial:05d}.parquet"
        records.write(trial, path)
        header = trial.header
        start = TrialStart(header.trial, header.trial_uid, 1, dict(header.params), (), 0)
        store.begin_trial("made-up", start)
        store.publish("made-up", path)


def registered(plan: Plan, **changes: Any) -> Registration:
    info = synthetic.info()
    made = Registration(plan, plan.sha256, 1_700_000_000_000, 0, 60, info.sweep_id,
                        info.config_hash, False)  # fmt: skip
    return replace(made, **changes)


@pytest.mark.parametrize("kind", ["folder", "mlflow"])
def test_a_plan_is_fixed_once_and_read_back(kind: str, tmp_path: Path) -> None:
    if kind == "folder":
        store: Store = running(tmp_path, 3)
    else:
        store = open_store(f"sqlite:///{tmp_path}/mlflow.db")
        store.prepare()
        store.create_sweep(replace(synthetic.info(num_trials=20), state="running"))
        publish(store, tmp_path, 3)
    assert preregistration_of(store, "made-up") is None
    before = now_ms()
    made, is_new = register(store, "made-up", plan())
    assert is_new
    assert before <= made.time_ms <= now_ms()
    assert (made.num_ended, made.num_trials, made.is_after) == (3, 20, False)
    assert made.sha256 == plan().sha256
    assert preregistration_of(store, "made-up") == made
    # As another process would find it.
    assert preregistration_of(open_store(store.uri), "made-up") == made
    again, is_new = register(store, "made-up", plan())
    assert (again, is_new) == (made, False)
    with pytest.raises(PreregistrationError, match=r"fixed once, and one was on 20\d\d-.* UTC"):
        register(store, "made-up", plan(level=0.01))
    assert preregistration_of(store, "made-up") == made


@pytest.mark.parametrize(("num_ended", "state"), [(20, "running"), (3, "complete")])
def test_after_the_end_it_is_refused_or_called_so(
    num_ended: int, state: str, tmp_path: Path
) -> None:
    store = running(tmp_path, num_ended, state=state)
    law = rf"fixed before the sweep ends, and it has ended \({num_ended} of 20 trials\)"
    with pytest.raises(PreregistrationError, match=law):
        register(store, "made-up", plan())
    assert preregistration_of(store, "made-up") is None
    made, _ = register(store, "made-up", plan(), after_the_fact=True)
    assert made.is_after
    assert preregistration_of(store, "made-up") == made


def test_trials_in_training_have_not_ended(tmp_path: Path) -> None:
    """All have begun, none more has ended: it is not too late for a plan."""
    store = running(tmp_path, 3)
    for number in range(3, 20):
        store.begin_trial("made-up", TrialStart(number, f"uid/{number}", 1, {}, (), 1))
    store.interrupt_trial("made-up", 4, "worker lost")
    made, _ = register(store, "made-up", plan())
    assert (made.num_ended, made.num_trials, made.is_after) == (3, 20, False)


def test_a_flag_does_not_make_an_early_plan_late(tmp_path: Path) -> None:
    made, _ = register(running(tmp_path, 3), "made-up", plan(), after_the_fact=True)
    assert not made.is_after


def test_no_such_sweep(tmp_path: Path) -> None:
    with pytest.raises(NoSuchSweepError):
        register(running(tmp_path, 0), "mdae-up", plan())


def test_a_stored_plan_that_was_changed_is_not_trusted(tmp_path: Path) -> None:
    store = running(tmp_path, 0)
    register(store, "made-up", plan())
    path = store.root / "made-up" / "preregistration" / "preregistration.json"
    content = json.loads(path.read_text())
    content["plan"]["primary"][0]["epoch"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(PreregistrationError, match="was changed after it was registered"):
        preregistration_of(store, "made-up")
    for text, message in (
        ("{}", "not a registration"),
        ("[]", "not a registration"),
        ("\x80cposix", "not a registration"),
        (json.dumps({**content, "format": 2}), "format 2 is newer"),
        (json.dumps({**content, "who": "me"}), "not a registration"),
        ("x" * 2_000_000, "must be smaller than"),
    ):
        path.write_text(text)
        with pytest.raises(PreregistrationError, match=message):
            preregistration_of(store, "made-up")


def test_the_hash_is_of_what_is_said_not_of_how() -> None:
    reordered = dict(reversed(list(TREE.items())))
    assert plan_of(reordered, "x").sha256 == plan().sha256
    # Defaults written out are the same plan; every change of substance is another.
    assert plan_of(json.loads(json.dumps(asdict(plan()))), "x").sha256 == plan().sha256
    assert plan(level=0.05).sha256 == plan().sha256
    others = [plan(level=0.01), plan(trials=51), plan(rungs=[1, 2]), plan(exclusions="none")]
    assert len({p.sha256 for p in (plan(), *others)}) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"primary": []}, "plan.yaml primary: must name at least one hypothesis, got none"),
        ({"primary": [{"epoch": 2}]}, r"plan.yaml primary\.0\.group: missing"),
        ({"primary": [{"epoch": 2, "group": "weights"}]}, r"primary\.0\.group: .*got 'weights'"),
        ({"primary": [{"epoch": 5, "group": "ftle"}]}, r"must be one of the rungs \[0, 1, 2\]"),
        (
            {"primary": [{"epoch": 2, "test": "partial", "feature": "lyapunov.mx"}]},
            r"feature: must be one of lyapunov\.max, .*got 'lyapunov\.mx'",
        ),
        (
            {"primary": [{"epoch": 2, "test": "partial", "feature": "lyapunov.slope"}]},
            r"lyapunov\.slope enters predictors only",
        ),
        ({"primary": [{"epoch": 2, "group": "ftle"}] * 2}, "the same hypothesis twice"),
        ({"level": 0}, r"plan\.yaml level: .*greater than 0"),
        ({"trials": 3}, r"plan\.yaml trials: .*20"),
        ({"features": ["loss"]}, r"features\.0: no feature 'loss'"),
        ({"thresholds": 1}, "plan.yaml thresholds"),
        ({"target": 1e400}, "not a plain one"),
    ],
)
def test_faulty_plans(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(**change)


def test_plans_from_files(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("primary:\n- {epoch: 2, group: spectrum}\nlevel: 0.01\n")
    assert read_plan(path).level == 0.01
    for text, message in (
        ("- a\n", "must be a mapping with at least `primary`"),
        ("a: [", "not valid YAML"),
        ("!!python/object/apply:os.system ['touch x']", "not valid YAML"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_plan(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_plan(tmp_path / "none.yaml")


def test_default_plan_is_what_the_report_asks(frames: dict[str, SweepFrame]) -> None:
    made = default_plan(frames["planted"].info)
    assert [(h.epoch, h.group, h.test) for h in made.primary] == [
        (e, "spectrum", "increment") for e in (0, 1, 2)
    ]
    assert made.rungs == synthetic.MEASURED
    bare = replace(frames["planted"].info, config={"trainer": {"epochs": 6}})
    with pytest.raises(ConfigError, match="there is no default plan"):
        default_plan(bare)


def test_a_planned_test_is_the_reports_own(frames: dict[str, SweepFrame]) -> None:
    frame = frames["planted"]
    found = confirmation(frame, registered(plan()))
    assert found.is_confirmatory
    table = found.table.set_index("claim")
    assert list(table["role"]) == ["primary", "secondary", "secondary"]
    assert set(table["status"]) == {"confirmatory"}
    gains, ties = increments(frame), correlations(frame)
    gain = gains[(gains["epoch"] == 2) & (gains["group"] == "spectrum")].iloc[0]
    first = found.table.iloc[0]
    assert (first["value"], first["p"], first["n"]) == (gain["gain"], gain["p"], gain["n"])
    # One primary test needs no correction, whatever else the report looks at.
    assert first["p_holm"] == first["p"] <= gain["p_holm"]
    assert first["holds"] is True
    tie = ties[(ties["epoch"] == 1) & (ties["feature"] == "lyapunov.max")].iloc[0]
    second = found.table.iloc[1]
    assert (second["value"], second["p"]) == (tie["given_settings"], tie["given_settings_p"])
    assert second["p_holm"] <= 2 * second["p"]
    text = " ".join(found.sentences)
    assert "fixed on 2023-11-14 22:13 UTC, when of 60 trials none had ended" in text
    assert "the spectrum at epoch 2: smaller error on held-out trials: holds (+" in text
    assert TREE["hypothesis"] in text


def test_direction_and_size_are_part_of_the_claim(frames: dict[str, SweepFrame]) -> None:
    tie = {"epoch": 2, "test": "marginal", "feature": "lyapunov.max"}
    variants = [
        ({}, True), ({"direction": "negative"}, True), ({"direction": "positive"}, False),
        ({"at_least": 0.1}, True), ({"at_least": 0.999}, False),
    ]  # fmt: skip
    for changes, holds in variants:
        made = plan(primary=[{**tie, **changes}], secondary=[])
        assert confirmation(frames["planted"], registered(made)).table["holds"].tolist() == [holds]


def test_a_null_is_said_to_be_one(frames: dict[str, SweepFrame]) -> None:
    found = confirmation(frames["null"], registered(plan(secondary=[])))
    assert found.table["holds"].tolist() == [False]
    assert any("does not hold" in s for s in found.sentences)


def test_without_a_plan_all_is_exploratory(frames: dict[str, SweepFrame]) -> None:
    none = confirmation(frames["planted"], None)
    assert not none.is_confirmatory
    assert none.table.empty
    assert none.sentences == (
        "No plan was fixed before the sweep ended: every result here is exploratory.",
    )
    broken = confirmation(frames["planted"], PreregistrationError("the plan was changed"))
    assert not broken.is_confirmatory
    assert broken.deviations == ("the plan was changed",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"is_after": True, "num_ended": 60}, "all of 60 trials had ended: after the fact"),
        ({"sweep_id": "another"}, "of another sweep had ended"),
    ],
)
def test_a_late_or_foreign_plan_confirms_nothing(
    changes: dict[str, Any], said: str, frames: dict[str, SweepFrame]
) -> None:
    found = confirmation(frames["planted"], registered(plan(), **changes))
    assert not found.is_confirmatory
    assert set(found.table["status"]) == {"exploratory"}
    assert said in found.sentences[0]
    assert "exploratory" in found.sentences[0]


def test_results_that_could_be_seen_are_owned(frames: dict[str, SweepFrame]) -> None:
    found = confirmation(frames["planted"], registered(plan(), num_ended=7))
    assert "of 60 trials 7 had ended, whose results could be seen" in found.sentences[0]


def test_deviations_are_named(frames: dict[str, SweepFrame]) -> None:
    frame = frames["planted"]
    made = plan(rungs=[0, 1, 2, 5], level=0.01, features=["lyapunov.max", "ftle.mean"], trials=55)
    text = "\n".join(confirmation(frame, registered(made, config_hash="0")).deviations)
    for said in (
        "settings were changed after the plan was fixed",
        "Planned level 0.01",
        "52 trials ended with a finite loss; 55 were planned",
        "Planned but not measured: epoch 5.",
        "Measured but not planned, hence exploratory: epoch 4 or 6.",
        "no trial has a value: ftle.mean",
        "Features not planned, hence exploratory: lyapunov.abs_max",
        "3 planned tests could not be run",
    ):
        assert said in text
    assert "another" not in text
    quiet = plan(rungs=list(synthetic.MEASURED), features=[])
    assert confirmation(frame, registered(quiet)).deviations == ()


def test_too_few_trials_leave_the_test_undone(frames: dict[str, SweepFrame]) -> None:
    found = confirmation(frames["planted"], registered(plan(trials=53)))
    assert found.table["holds"].tolist() == [None] * 3
    assert found.table["p"].isna().all()
    assert any("not tested (52 trials ended with a finite loss, 53 were" in s
               for s in found.sentences)  # fmt: skip


def test_what_could_not_be_tested_still_counts_as_a_test(frames: dict[str, SweepFrame]) -> None:
    tests = [{"epoch": 2, "group": "spectrum"}, {"epoch": 1, "group": "ftle"}]
    table = confirmation(frames["planted"], registered(plan(primary=tests, secondary=[]))).table
    assert table["holds"].tolist() == [True, None]
    assert table.loc[0, "p_holm"] == pytest.approx(2 * table.loc[0, "p"])
    assert math.isnan(table.loc[1, "p_holm"])
    assert "ftle was not measured at epoch 1" in table.loc[1, "problem"]


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    made.command()(command)
    return made


def test_command(app: typer.Typer, tmp_path: Path) -> None:
    store = running(tmp_path, 4)
    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps(TREE))
    done = CliRunner().invoke(app, ["made-up", str(path), "--store", store.uri])
    assert done.exit_code == 0, done.output
    assert "primary: the spectrum at epoch 2: smaller error" in done.stdout
    assert "UTC: 4 of 20 trials had ended" in done.stdout
    assert done.stdout.strip().splitlines()[-1] == f"sha256 {plan().sha256}"
    again = CliRunner().invoke(app, ["made-up", str(path), "--store", store.uri])
    assert again.exit_code == 0
    assert "registered already" in again.stderr
    with pytest.raises(PreregistrationError, match="fixed once"):
        CliRunner().invoke(app, ["made-up", "--store", store.uri], catch_exceptions=False)


def test_command_after_the_end(app: typer.Typer, tmp_path: Path) -> None:
    store = running(tmp_path, 20)
    late = ["made-up", "--store", store.uri, "--after-the-fact"]
    done = CliRunner().invoke(app, late)
    assert done.exit_code == 0, done.output
    assert ", after the fact: 20 of 20 trials had ended" in done.stdout
    assert "primary: the spectrum at epoch 0" in done.stdout
