"""Maps that leave out the zeros of eliminated frames: same numbers, other coordinates."""

import pytest
import torch

from pipeline.dynamics.frames import StairMap
from pipeline.dynamics.halves import HalvedStairs, eliminate_halves
from pipeline.dynamics.orthonormal import eliminate, write_out
from pipeline.dynamics.propagate import carry, random_frame
from pipeline.dynamics.staircase import Stairs
from pipeline.dynamics.steps import GivenMaps
from tasks.base import generator_for
from tasks.networks.gru import GRU
from tasks.networks.lstm import LSTM
from tasks.networks.rnn import RNN

F64 = torch.float64
KINDS = {
    "lstm full": (LSTM, "full"),
    "lstm hidden": (LSTM, "hidden"),
    "gru": (GRU, "full"),
    "rnn": (RNN, "full"),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def population(kind, layers=1, *, units=40, scale=1.0, members=(0, 1)):
    network_class = KINDS[kind][0]
    config = network_class.Config(units=units, layers=layers, init_scale=scale / units**0.5)
    return network_class(
        [config] * len(members),
        input_size=3,
        output_size=3,
        generators=[generator_for("stairs", n) for n in members],
        dtype=F64,
    )


def orbit_of(kind, network, *, loop="open", steps=5, num_sequences=2):
    x = torch.randn((num_sequences, steps, 3), generator=generator_for("x"), dtype=F64)
    if loop == "open":
        return network.orbit(x, state=KINDS[kind][1])
    return network.closed_orbit(x, steps=steps, state=KINDS[kind][1])


@every_kind
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("loop", ["open", "closed"])
@pytest.mark.parametrize("k", [140, 130, 30])
def test_a_map_of_an_eliminated_frame_is_that_of_the_frame_itself(kind, layers, loop, k):
    """(S' J)(S⁻¹ Pᵀ L) by `move` against S' (J F), with F = S⁻¹ Pᵀ L written out."""
    units = 140 // layers // (2 if kind == "lstm full" else 1)
    orbit = orbit_of(kind, population(kind, layers, units=units, scale=3.0), loop=loop)
    D = orbit.tangent_size
    assert D == 140
    frame = Stairs(torch.randn((k, D), generator=generator_for("Q"), dtype=F64))
    for J in orbit.maps():
        assert isinstance(J, StairMap)
        frame_KD = torch.empty((k, D), dtype=F64)
        ends = copy_of(frame).write(frame_KD)
        # Rows are 0 where they are said to end.
        beyond = torch.arange(k).unsqueeze(1) >= ends
        assert (frame_KD[beyond] == 0).all()
        expected_KD = (J.dense()[1, 0] @ frame_KD.mT).mT
        out_KD = torch.full((k, D), float("nan"), dtype=F64)
        plain = J.move(1, 0, copy_of(frame), out_KD, may_shear=False)
        assert plain is None
        torch.testing.assert_close(out_KD, expected_KD, atol=1e-12, rtol=1e-12)
        shear = J.move(1, 0, frame, out_KD, may_shear=True)
        assert (shear is not None) == (kind == "lstm full")
        if shear is not None:
            seen_KD = out_KD.clone()
            shear.undo(seen_KD, torch.full((D,), k))
            torch.testing.assert_close(seen_KD, expected_KD, atol=1e-12, rtol=1e-12)
        order = eliminate(out_KD).order
        # What is not to be read is no number.
        out_KD.masked_fill_(torch.ones_like(out_KD).tril() == 1, float("nan"))
        frame = Stairs(out_KD, order, shear)


def split_frames(H, *, steps=6):
    """Maps of an LSTM of H units and the frames that reach them, those that are split."""
    orbit = orbit_of("lstm full", population("lstm full", units=H), steps=steps)
    frame = Stairs(torch.randn((2 * H, 2 * H), generator=generator_for("Q"), dtype=F64))
    for J in orbit.maps():
        if frame.is_split:
            yield J, frame
        out_KD = torch.empty_like(frame.Q_KD)
        shear = J.move(0, 0, frame, out_KD, may_shear=True)
        frame = Stairs(out_KD, eliminate(out_KD).order, shear)


def test_pivots_are_found_among_h_first():
    """What the coordinates are for: the rows of h end before those of c."""
    # From two eliminations after a random frame on.
    assert len(list(split_frames(64))) >= 3


def copy_of(frame):
    """Of a frame whose memory will be used."""
    return Stairs(frame.Q_KD.clone(), frame.order_D, frame.shear)


def written(frame):
    out_KD = torch.full_like(frame.Q_KD, float("nan"))
    return out_KD, frame.write(out_KD)


def test_a_frame_in_halves_is_the_frame():
    for _, frame in split_frames(64):
        halved = HalvedStairs.of(copy_of(frame))
        # What is not to be read is no number.
        halved.Q_KD[64:, :64] = float("nan")
        for expected, seen in zip(written(frame), written(halved), strict=True):
            torch.testing.assert_close(seen, expected, atol=1e-11, rtol=0)
        back = halved.stairs()
        assert torch.equal(back.order_D, frame.order_D)
        torch.testing.assert_close(back.Q_KD, write_out(frame.Q_KD), atol=1e-11, rtol=0)


def test_elimination_by_halves_is_that_of_the_whole():
    H = 64
    for J, frame in split_frames(H):
        whole_KD = torch.empty_like(frame.Q_KD)
        shear = J.move(0, 0, frame, whole_KD, may_shear=True)
        product_DK = whole_KD.clone().mT
        expected = eliminate(whole_KD)
        out_KD = torch.full_like(whole_KD, float("nan"))
        halves = J.halves(0, 0, frame.shear)
        after, found = eliminate_halves(HalvedStairs.of(copy_of(frame)), halves, out_KD)
        for e, other in zip(after.shear.e, shear.e, strict=True):
            assert torch.equal(e, other)
        assert (expected.order[:H] < H).all()  # or the two might differ
        assert torch.equal(found.order, expected.order)
        torch.testing.assert_close(found.logs, expected.logs, atol=1e-10, rtol=0)
        # Norms before elimination stand in for those after it: as deep to a few nats.
        assert (found.depth - expected.depth).abs().max() < 4
        whole = after.stairs()
        assert torch.equal(whole.order_D, expected.order)
        torch.testing.assert_close(whole.Q_KD, write_out(whole_KD), atol=1e-10, rtol=0)
        # And by the definition, whatever the other elimination does: P V = L R.
        R = torch.linalg.solve_triangular(
            whole.Q_KD.mT, product_DK[found.order], upper=False, unitriangular=True
        )
        assert R.tril(-1).abs().max() < 1e-12
        torch.testing.assert_close(R.diagonal().abs().log(), found.logs, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["h does not move", "large entries"])
def test_where_halves_would_lose_digits_the_whole_is_eliminated(kind):
    H = 64
    J, frame = list(split_frames(H))[-1]
    halves = J.halves(0, 0, frame.shear)
    if kind == "h does not move":
        halves.dense_HD[:, :H] = 0
        halves.a_by_b.zero_()
    else:
        halves.dense_HD[:, H:] *= 1e8
    halved = HalvedStairs.of(copy_of(frame))
    assert eliminate_halves(halved, halves, torch.empty_like(frame.Q_KD)) is None
    # Nor is a frame taken apart whose C is large.
    frame.Q_KD[:H, H:] *= 1e8
    before_KD = frame.Q_KD.clone()
    assert HalvedStairs.of(frame) is None
    assert torch.equal(frame.Q_KD, before_KD)


def test_only_one_layer_in_the_open_has_halves():
    for layers, loop in ((2, "open"), (1, "closed")):
        network = population("lstm full", layers)
        (J, *_) = orbit_of("lstm full", network, loop=loop).maps()
        assert J.halves(0, 0, None) is None


def grown(orbit, frame, *, t_on="auto", **settings):
    with torch.no_grad():
        growth = carry(orbit, frame, warmup=4, steps=26, t_on=t_on, **settings)
    return growth, growth.logs_NBKM.sum(-1) / 26


@every_kind
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("loop", ["open", "closed"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_exponents_are_those_of_a_householder_qr_at_every_step(kind, layers, loop, scale):
    network = population(kind, layers, units=72, scale=scale)

    def fresh():
        return orbit_of(kind, network, loop=loop, steps=30)

    D = fresh().tangent_size
    for k in (D, 66):
        frame = random_frame(fresh(), k, generator_for("frame"))
        before = frame.clone()
        auto, found = grown(fresh(), frame, t_on="auto")
        assert auto.method == "lu"
        assert torch.equal(frame, before)
        slow, reference = grown(fresh(), frame, t_on=1, method="householder")
        # The last exponents are right to ε times the depth of their columns, in both.
        atol = 3e-8 if k == D else 1e-10
        torch.testing.assert_close(found, reference, atol=atol, rtol=0)
        torch.testing.assert_close(found[..., :66], reference[..., :66], atol=1e-9, rtol=0)
        _, every_step = grown(fresh(), frame, t_on=1)
        torch.testing.assert_close(found, every_step, atol=5e-9, rtol=0)
        # The frame that is left spans the same flag.
        triangle = slow.frame_NBDK.mT @ auto.frame_NBDK
        torch.testing.assert_close(
            triangle[..., :40, :40].abs(),
            torch.eye(40, dtype=F64).expand(2, 2, 40, 40),
            atol=1e-6,
            rtol=0,
        )


@every_kind
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("swapped", [True, False])
def test_growth_is_counted_from_the_first_step_on(kind, shared, swapped):
    """The logs hold what first frames were divided by; with halves swapped, C would be infinite."""
    network = population(kind, units=72)

    def fresh():
        return orbit_of(kind, network, steps=6)

    D = fresh().tangent_size
    drawn = [random_frame(fresh(), D, generator_for("frame", i)) for i in range(2)]
    frame = drawn[0] if shared else torch.cat(drawn, dim=1)
    if swapped:
        frame = torch.eye(D, dtype=F64).roll(D // 2, 0).expand_as(frame)

    def logs(method, t_on):
        with torch.no_grad():
            growth = carry(fresh(), frame, warmup=0, steps=6, t_on=t_on, method=method)
        return growth.logs_NBKM.sum(-1)

    expected = logs("householder", 1)
    for t_on, atol in ((1, 1e-8), (2, 1e-6)):
        torch.testing.assert_close(logs("lu", t_on), expected, atol=atol, rtol=0)


@every_kind
def test_two_threads_find_what_one_does(kind):
    def found():
        orbit = orbit_of(kind, population(kind, units=96), steps=30, num_sequences=3)
        return grown(orbit, random_frame(orbit, orbit.tangent_size, generator_for("frame")))

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone, expected = found()
        torch.set_num_threads(2)
        shared, exponents = found()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(exponents, expected, atol=5e-9, rtol=0)
    torch.testing.assert_close(shared.logs_NBKM, alone.logs_NBKM, atol=1e-7, rtol=0)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_smallest_exponents_of_an_lstm_keep_their_digits(layers):
    """Σλ = ⟨ln|det J|⟩ to rounding, where a QR in the state's own coordinates loses five digits."""
    orbit = orbit_of("lstm full", population("lstm full", layers, units=96), steps=30)
    known = torch.stack([J.log_abs_det() for J in orbit.maps()])[4:].mean(0)
    frame = random_frame(orbit, orbit.tangent_size, generator_for("frame"))
    _, found = grown(orbit, frame, t_on=1)
    torch.testing.assert_close(found.sum(-1), known, atol=1e-10, rtol=0)
    _, slow = grown(orbit, frame, t_on=1, method="householder")
    assert (slow.sum(-1) - known).abs().max() > 1e-10


def test_cells_that_are_shut_off_are_measured_as_well():
    """Output gates at e^−25: h' has almost no part of c'."""
    network = population("lstm full", units=40)
    with torch.no_grad():
        network.bias_0[:, 120:140] -= 25.0
    orbit = orbit_of("lstm full", network, steps=30)
    frame = random_frame(orbit, orbit.tangent_size, generator_for("frame"))
    _, found = grown(orbit, frame, t_on=1)
    known = torch.stack([J.log_abs_det() for J in orbit.maps()])[4:].mean(0)
    torch.testing.assert_close(found.sum(-1), known, atol=1e-8, rtol=0)
    _, reference = grown(orbit, frame, t_on=1, method="householder")
    torch.testing.assert_close(found[..., :60], reference[..., :60], atol=1e-10, rtol=0)


@every_kind
def test_a_member_alone_has_the_bits_it_has_in_company(kind):
    exponents = []
    for members in ((0, 1, 2), (1,)):
        orbit = orbit_of(kind, population(kind, units=40, members=members), steps=30)
        frame = random_frame(orbit, orbit.tangent_size, [generator_for(n) for n in members])
        method = "lu"
        exponents.append(grown(orbit, frame, t_on="auto", method=method)[1])
    assert torch.equal(exponents[0][1], exponents[1][0])


def test_nan_in_one_member_stays_there():
    network = population("lstm full", units=40)
    with torch.no_grad():
        network.weight_rec_0[0, 0, 0] = float("nan")
    orbit = orbit_of("lstm full", network, steps=30)
    frame = random_frame(orbit, orbit.tangent_size, generator_for("frame"))
    _, found = grown(orbit, frame, t_on="auto")
    assert found[0].isnan().all()
    healthy = orbit_of("lstm full", population("lstm full", units=40), steps=30)
    assert torch.equal(found[1], grown(healthy, frame, t_on="auto")[1][1])


def test_maps_of_both_kinds_follow_each_other():
    """Functions among maps that know of stairs see the frame in the state's own coordinates."""
    orbit = orbit_of("lstm full", population("lstm full", units=40), steps=30)
    maps = list(orbit.maps())
    mixed = [J if t % 3 else J.__call__ for t, J in enumerate(maps)]
    frame = random_frame(orbit, 80, generator_for("frame"))

    class Mixed(GivenMaps):
        num_members = 2

        def maps(self):
            return iter(mixed)

    given = Mixed(mixed, 30, 2, 80, F64, torch.device("cpu"))
    _, found = grown(given, frame, t_on=2, method="lu")
    _, reference = grown(orbit, frame, t_on=2, method="lu")
    torch.testing.assert_close(found[..., :70], reference[..., :70], atol=1e-9, rtol=0)
