"""T_ON as it is read off R: an offset and a rate, kept above a share of the digits."""

import math

import pytest
import torch

from pipeline.dynamics.schedule import LONGEST_AUTO, Schedule

F64 = torch.float64
ROOM = 0.32 * math.log(2**52)  # nats, 11.5


def learnt(schedule, *, rate, offset=0.0, steps=60, sequences=1, spread=None):
    """T_ON after each factorisation of a member whose depth is that offset and rate."""
    found = []
    while steps > 0:
        since = 0
        while True:
            since, steps = since + 1, steps - 1
            if schedule.due(ends_block=False):
                break
        grown = since * (rate if spread is None else spread)
        logs = torch.tensor([0.0, -grown], dtype=F64).expand(1, sequences, 2)
        depth = torch.tensor([0.0, -offset - rate * since], dtype=F64).expand(1, sequences, 2)
        schedule.learn([0], logs, depth)
        found.append(schedule.t_on[0])
    return found


def gauged(steps=96):
    return Schedule(1, "auto", F64, is_gauged=True, steps=steps)


@pytest.mark.parametrize(("rate", "offset"), [(3.9, 2.5), (1.0, 3.0), (5.0, 1.0), (20.0, 0.0)])
def test_the_longest_that_keeps_the_digits(rate, offset):
    schedule = gauged()
    fitting = max(1, math.floor((ROOM - offset) / rate))
    last = learnt(schedule, rate=rate, offset=offset)[-1]
    # Blocks are cut evenly, never longer than what fits.
    assert last <= fitting
    assert math.ceil(schedule.block / last) == math.ceil(schedule.block / fitting)


def test_growth_is_by_doubling_up_to_the_block():
    assert learnt(gauged(), rate=1e-3)[:6] == [2, 4, 8, 16, 24, 24]
    frames_of_few = Schedule(1, "auto", F64, is_gauged=False)
    assert learnt(frames_of_few, rate=0.0)[:4] == [2, 4, 8, LONGEST_AUTO]


def test_orthonormal_frames_keep_more_digits():
    frames_of_few = Schedule(1, "auto", F64, is_gauged=False)
    assert learnt(frames_of_few, rate=3.2)[-1] == 2
    assert learnt(gauged(), rate=3.2)[-1] == 3


def test_the_spread_counts_where_less_than_the_depth():
    # A depth that comes at once, whatever the steps, does not forbid longer blocks.
    assert learnt(gauged(), rate=0.0, offset=9.0, spread=0.05)[-1] == 24
    assert learnt(gauged(), rate=0.0, offset=9.0, spread=5.0)[-1] == 1


def test_a_bad_offset_is_remembered_for_a_while():
    schedule = gauged()
    assert learnt(schedule, rate=2.0, offset=1.0)[-1] == 5
    learnt(schedule, rate=2.0, offset=8.0, steps=1)
    assert learnt(schedule, rate=2.0, offset=1.0, steps=1) == [2]
    assert learnt(schedule, rate=2.0, offset=1.0, steps=30)[-1] == 5


def test_errors_are_averaged_over_sequences():
    def after_one_deep_sequence_among(sequences):
        schedule = gauged()
        schedule.due(ends_block=False)
        logs = torch.tensor([0.0, -1.0], dtype=F64).expand(1, sequences, 2)
        depth = torch.tensor([0.0, -1.0], dtype=F64).repeat(1, sequences, 1)
        depth[0, 0, 1] = -11.0
        schedule.learn([0], logs, depth)
        return schedule.t_on[0]

    assert after_one_deep_sequence_among(1) == 1
    assert after_one_deep_sequence_among(100) == 2


@pytest.mark.parametrize("depth", [-math.inf, math.nan])
def test_singular_maps_are_factorised_at_every_step(depth):
    schedule = gauged()
    learnt(schedule, rate=0.1)
    schedule.due(ends_block=True)
    logs = torch.tensor([[[0.0, depth]]], dtype=F64)
    schedule.learn([0], logs, logs)
    assert schedule.t_on == [1]


def test_frames_do_not_overflow_between_factorisations():
    schedule = gauged()
    logs = torch.full((1, 1, 3), 60.0, dtype=F64)
    for _ in range(4):
        while not schedule.due(ends_block=False):
            pass
        schedule.learn([0], logs * schedule.t_on[0], torch.zeros(1, 1, 3, dtype=F64))
    assert schedule.t_on == [2]  # 2 · 60 nats are within a quarter of float64's 709
