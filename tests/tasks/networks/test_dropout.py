"""The streams that decide what is dropped, against SplitMix64 in plain Python."""

import pytest
import torch

from tasks.base import seed_for
from tasks.networks.dropout import DropoutRates, DropoutStreams, num_words

SEEDS = [0, 1, 2**62 + 12345, seed_for("a")]
_WORD = (1 << 64) - 1


def splitmix64(seed, place):
    """Word `place` (0, 1, …) by the book; the first state is the seed itself."""
    z = (seed + place * 0x9E3779B97F4A7C15) & _WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return z ^ (z >> 31)


def test_the_plain_generator_is_splitmix64():
    """First outputs for seed 1234567 of the reference program, which steps before it mixes."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix64(1234567, place) for place in (1, 2, 3)] == expected


@pytest.mark.parametrize("count", [1, 4, 13, 200_001])
def test_draws_are_words_of_the_generator(count):
    streams = DropoutStreams(SEEDS)
    places = sorted({0, count // 2, count - 1})
    for update in range(3):
        drawn = streams.draw(count)
        streams.advance()
        assert drawn.shape == (len(SEEDS), count)
        for n, seed in enumerate(SEEDS):
            for place in places:
                word = splitmix64(seed, (update << 32) + place // 4)
                bits = (word >> 16 * (place % 4)) & 0xFFFF
                assert int(drawn[n, place]) % (1 << 16) == bits


def test_draws_depend_on_no_company_and_on_nothing_drawn_ahead():
    streams, others = DropoutStreams(SEEDS), DropoutStreams(SEEDS[2:])
    streams.advance()
    others.advance()
    whole = streams.draw(99)
    assert torch.equal(streams.draw(99), whole)
    assert torch.equal(streams.draw(50), whole[:, :50])
    memory = torch.empty(num_words(2, 99), dtype=torch.int64)
    assert torch.equal(streams.draw(99, slice(1, 3), memory), whole[1:3])
    assert torch.equal(others.draw(99), whole[2:])
    streams.select(torch.tensor([3, 0]))
    streams.advance()
    others.advance()
    assert torch.equal(streams.draw(99)[0], others.draw(99)[1])


def test_members_and_updates_differ_and_bits_are_fair():
    streams = DropoutStreams([seed_for(n) for n in range(8)])
    drawn = []
    for _ in range(4):
        drawn.append(streams.draw(100_000))
        streams.advance()
    rows = torch.cat(drawn).double()
    # Of a uniform number the standard deviation is 2^16/√12; of the mean of 100,000, 60.
    assert (rows.mean(1) + 0.5).abs().max() < 5 * 60
    assert (rows.std(1) * 12**0.5 / 2**16 - 1).abs().max() < 0.02
    correlations = torch.corrcoef(rows) - torch.eye(len(rows), dtype=torch.float64)
    assert correlations.abs().max() < 5 / 100_000**0.5
    neighbours = torch.corrcoef(torch.stack([rows[0, :-1], rows[0, 1:]]))[0, 1]
    assert neighbours.abs() < 5 / 100_000**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masks_keep_the_share_they_should_and_the_mean(dtype):
    given = [0.0, 0.1, 0.5, 0.999]
    rates = DropoutRates(given, dtype, "cpu")
    drawn = DropoutStreams([seed_for(n) for n in range(4)]).draw(200_000).unsqueeze(1)
    mask = rates.mask(drawn, torch.empty(drawn.shape, dtype=dtype))
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask[0].all()
    for n, rate in enumerate(given):
        error = (rate * (1 - rate) / 200_000) ** 0.5
        assert mask[n].mean().item() == pytest.approx(1 - rate, abs=5 * error + 1e-5)
    scale = rates.scale_N11.flatten().tolist()
    assert scale == pytest.approx([1 / (1 - rate) for rate in given], rel=0.01)
    assert scale[2] == 2
    both = rates.mask(drawn[1:3], torch.empty_like(mask[1:3]), slice(1, 3))
    assert torch.equal(both, mask[1:3])


def test_both_precisions_drop_the_same_units():
    drawn = DropoutStreams([5]).draw(1000).unsqueeze(1)
    single, double = (
        DropoutRates([0.3], dtype, "cpu").mask(drawn, torch.empty(1, 1, 1000, dtype=dtype))
        for dtype in (torch.float32, torch.float64)
    )
    assert torch.equal(single.double(), double)


def test_only_populations_that_drop_something_are_on():
    assert not DropoutRates([0.0, 0.0], torch.float32, "cpu").is_on
    assert DropoutRates([0.0, 0.1], torch.float32, "cpu").is_on
