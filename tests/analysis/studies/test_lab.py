"""A study's networks are those its sweep trained, found again by whoever asks twice."""

import pytest
import torch

from analysis.frame import AnalysisError
from analysis.studies.lab import Lab
from analysis.studies.settings import Settings
from pipeline.config import check
from pipeline.folder_store import FolderStore
from pipeline.plan import plan
from pipeline.populations import build
from pipeline.sweep import Driver
from tasks.base import Config

TREE = {
    "sampler": {"name": "grid"},
    "trials": 4,
    "task": {"name": "delayed_recall", "symbols": 3, "steps": 6, "updates": 3},
    "network": {"name": "rnn", "units": {"choice": [5, 7]}, "dropout": 0.1},
    "trainer": {"epochs": 2},
    "execution": {"executor": "inline", "cohort_size": 4, "keep_weights": True},
}


def lab(folder, tree=TREE) -> Lab:
    settings = Settings("made_up", "small", 2, Config(), {"main": check(tree)})
    return Lab(settings, FolderStore(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LYAPSWEEP_HOME", str(folder / "home"))
        lab(folder / "store").sweep("main")
        yield folder / "store"


def test_networks_come_back_as_they_ended(folder) -> None:
    trained = lab(folder).sweep("main")
    groups = list(trained.groups(dtype="float32"))
    assert [g.params["network.units"].tolist() for g in groups] == [[5, 5], [7, 7]]
    scalars = trained.frame.scalars.set_index(["quantity", "epoch", "trial"])["value"]
    for group in groups:
        for number, loss in zip(group.numbers, validation_losses(group), strict=True):
            assert loss == pytest.approx(scalars["val_loss", 2, number], rel=1e-6)


def validation_losses(group) -> list[float]:
    losses, count = 0.0, 0
    for batch in group.task.batches("validation"):
        outputs, _ = group.network(batch.inputs)
        each = group.task.losses(outputs, batch.targets)
        losses, count = losses + each.double().sum(1), count + each.shape[1]
    return (losses / count).tolist()


def test_networks_come_back_as_they_began(folder) -> None:
    trained = lab(folder).sweep("main")
    (group, *_) = trained.groups("start", only=[0, 2])
    limits = trained.config.limits_of(1)
    (cohort,) = plan([trained.specs[group.numbers[0]]], limits)
    alone = build(cohort).network
    for ours, theirs in zip(group.network.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours[:1], theirs.double(), rtol=0, atol=1e-6)
    assert not any(p.requires_grad for p in group.network.parameters())


def test_seeds_of_one_grid_point_differ(folder) -> None:
    trained = lab(folder).sweep("main")
    (group, _) = trained.groups("start")
    first, second = (
        torch.cat([p[n].flatten() for p in group.network.parameters()]) for n in (0, 1)
    )
    assert not torch.equal(first, second)


def test_a_sweep_is_trained_once(folder, monkeypatch) -> None:
    def refuse(*_args, **_keywords):
        raise AssertionError("trained again")

    monkeypatch.setattr("pipeline.sweep.Driver.run", refuse)
    assert len(lab(folder).sweep("main").params) == 4
    changed = {**TREE, "trainer": {"epochs": 3}}
    with pytest.raises(AssertionError, match="trained again"):
        lab(folder, changed).sweep("main")


def test_a_sweep_that_was_interrupted_goes_on(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LYAPSWEEP_HOME", str(tmp_path / "home"))
    run, stopped = Driver.run, []

    def interrupted(driver):
        if not stopped:
            stopped.append(True)
            driver.request_stop()
        return run(driver)

    monkeypatch.setattr(Driver, "run", interrupted)
    with pytest.raises(AnalysisError, match=r"interrupted.*goes on"):
        lab(tmp_path / "store").sweep("main")
    assert len(lab(tmp_path / "store").sweep("main").specs) == 4


def test_only_what_there_is(folder) -> None:
    with pytest.raises(AnalysisError, match="ended complete"):
        next(lab(folder).sweep("main").groups(only=[99]))


def test_what_is_random_depends_on_the_purpose_alone(folder) -> None:
    draws = [
        torch.rand(3, generator=lab(folder).generator(*purpose))
        for purpose in (("a",), ("a",), ("b",))
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert 0 <= lab(folder).seed("a") < 2**32
