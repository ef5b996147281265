import pytest
import torch

from tasks import gait
from tasks.base import MissingDataError, UnsuitableError, generator_for
from tasks.gait import Recording
from tasks.mocap import CMU_ACTIONS, Mocap, dealt_out, read_cmu, usable_columns, windows


def make(**settings):
    return Mocap(Mocap.Config(**settings), seed=1, dtype=torch.float64)


def take(action, number, frames=None, *, is_test=False):
    return Recording(action, number, is_test, torch.zeros(3, 3) if frames is None else frames)


def test_recordings_are_dealt_out_whole_and_the_last_of_them_held_back():
    takes = [take("walk", n) for n in (3, 1, 2, 6, 5, 4)] + [take("run", 1), take("run", 2)]
    takes += [take("jump", 7), take("run", 9, is_test=True)]
    dealt = dealt_out(takes)
    named = {split: [(r.action, r.number) for r in part] for split, part in dealt.items()}
    assert named["validation"] == [("run", 2), ("walk", 5), ("walk", 6)]
    assert named["test"] == [("run", 9)]
    assert named["train"] == [("jump", 7), ("run", 1), *(("walk", n) for n in (1, 2, 3, 4))]
    with pytest.raises(UnsuitableError, match="jump leave the validation split without"):
        dealt_out([take("jump", 1), take("jump", 1, is_test=True)])


def test_columns_are_judged_by_joint_and_by_training_alone():
    frames = torch.randn(50, 12, generator=generator_for("frames"), dtype=torch.float64) * 0.01
    frames[:, 0] += torch.arange(50.0)  # a root that travels is no joint that leaps
    frames[25:, 4] += 3.0
    frames[:, 7] = 0.5
    assert usable_columns([frames]) == (0, 1, 2, 6, 8, 9, 10, 11)
    # Between recordings nothing moves, however far apart they are.
    assert usable_columns([frames[:25], frames[25:]]) == (0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11)


def test_windows_hold_the_frame_after_each():
    frames = torch.arange(10.0)[:, None].expand(10, 2)
    cut = windows([frames, frames[:3]], 3, None)
    assert cut[..., 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert windows([frames], 3, 2)[..., 1].tolist() == [
        [0, 1, 2, 3],
        [2, 3, 4, 5],
        [4, 5, 6, 7],
        [6, 7, 8, 9],
    ]


def test_no_frame_is_in_two_splits_and_training_frames_alone_set_the_scale():
    task = make(hop=1)
    seen = {
        split: torch.cat([torch.cat([b.inputs[:, :1], b.targets], 1) for b in task.batches(split)])
        for split in ("train", "validation", "test")
    }
    rows = {s: {row.numpy().tobytes() for row in w.flatten(0, 1)} for s, w in seen.items()}
    assert not rows["train"] & rows["validation"]
    assert not rows["train"] & rows["test"]
    assert not rows["validation"] & rows["test"]
    # Every frame of training is in some window when hop is 1, though those at the ends in fewer.
    frames = torch.unique(seen["train"].flatten(0, 1), dim=0)
    assert frames.mean(0).abs().max() < 1e-9
    torch.testing.assert_close(frames.std(0, correction=0), torch.ones(task.input_size).double())
    assert seen["validation"].flatten(0, 1).mean(0).abs().max() > 0.05
    assert task.chance_loss == pytest.approx(1, abs=0.05)


def test_the_rest_pose_and_locked_axes_do_not_enter():
    recordings = list(gait.recordings(1))
    assert all(not bool(r.frames[0, 3:].any()) for r in recordings)
    task = make()
    assert task.input_size == 36
    assert len(recordings[0].frames[0]) == 48
    # 600 moving frames of 120 a second, every second kept, in windows of 25 + 1.
    validation = next(task.batches("validation"))
    assert validation.inputs.shape == (5 * (300 // 26), 25, 36)
    assert validation.inputs.abs().max() < 6


def test_an_epoch_is_all_windows_in_an_order_of_its_own():
    task = make(batch_size=100)
    first, again, second = (
        torch.cat([b.inputs for b in task.training_batches(epoch)]) for epoch in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(first.flatten(1).sort(0).values, second.flatten(1).sort(0).values)
    assert task.num_updates == len(list(task.training_batches(3)))


def test_who_says_nothing_moves_loses_what_the_task_says():
    task = make()
    batch = next(task.batches("validation"))
    lost = task.per_example(batch.inputs[None], batch.targets)["loss"]
    assert lost.shape == (1, batch.targets.shape[0] * 25)
    assert float(lost.mean()) == pytest.approx(task.persistence_loss)
    assert 0 < task.persistence_loss < 0.1 * task.chance_loss
    assert float(task.summarise({"loss": torch.tensor([4.0])})["rmse"]) == 2


def test_long_probes_stay_in_one_recording():
    task = make()
    probe = task.probe_inputs(20, 200, generator_for("probe"))
    assert probe.inputs.shape == (20, 200, 36)
    assert torch.equal(probe.inputs[:, 1:], probe.targets[:, :-1])
    # The largest step inside recordings; from one into another would be ten times that.
    steps = probe.inputs.diff(dim=1).abs().amax()
    inside = torch.stack([b.inputs.diff(dim=1).abs().amax() for b in task.batches("train")]).amax()
    assert steps < 1.5 * inside
    with pytest.raises(UnsuitableError, match="at most 299, one less than the longest"):
        task.probe_inputs(1, 300, generator_for("probe"))
    with pytest.raises(UnsuitableError, match=r"at most 5 stretches of 299 steps"):
        task.probe_inputs(6, 299, generator_for("probe"))


def test_settings_that_leave_nothing_are_refused():
    with pytest.raises(UnsuitableError, match="seq_len 25 at stride 60 needs 26 steps"):
        make(stride=60)
    with pytest.raises(UnsuitableError, match=r"among those of simulated, jog, limp.*got swim"):
        make(actions=("walk", "swim"))


def test_missing_recordings_say_what_needs_none(monkeypatch, tmp_path):
    monkeypatch.setenv("LYAPSWEEP_DATA", str(tmp_path))
    with pytest.raises(MissingDataError, match=r"no cmu_mocap\.parquet.*set source to simulated"):
        make(source="cmu")


def test_cmu_as_its_table_describes_it(real_data):
    real_data("cmu_mocap")
    recordings = list(read_cmu())
    assert len(recordings) == 96
    assert sum(len(r.frames) for r in recordings) == 67_870
    assert {r.frames.shape[1] for r in recordings} == {117}
    # The traps: a rest pose first in every file, and joints whose coordinates wrap.
    moved = torch.stack([(r.frames[1] - r.frames[0]).abs()[3:].amax() for r in recordings])
    assert moved.min() > 0.1
    task = make(source="cmu")
    assert task.input_size == 59
    # Of the joints that wrap somewhere in the table, those that do in these actions.
    assert not {75, 76, 77, 84, 85, 86, 111, 112, 113} & set(task.columns)
    assert {recording.action for recording in recordings if recording.is_test} >= set(CMU_ACTIONS)
    assert 0.01 < task.persistence_loss < 0.05
    with pytest.raises(UnsuitableError, match="washwindow leave the train split without"):
        make(source="cmu", actions=("washwindow",))
