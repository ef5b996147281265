"""Mistakes of published code and papers as small edits of the source that put them back.

Each names the tests that must fail with it. `old` is found exactly once in its file, so that an
edit which no longer applies is noticed.
"""

from typing import NamedTuple

SPECTRUM = "tests/pipeline/dynamics/test_spectrum.py"
KNOWN = "tests/pipeline/dynamics/test_known.py"
MODULES = "tests/pipeline/dynamics/test_modules.py"
CLV = "tests/pipeline/dynamics/test_clv.py"
FTLE = "tests/pipeline/dynamics/test_ftle.py"
TANGENT = "tests/tasks/networks/test_rnn_gru_tangent.py"
LSTM_TANGENT = "tests/tasks/networks/test_lstm_tangent.py"
RNN_GRU = "tests/tasks/networks/test_rnn_gru_spectra.py"
FAILED = "tests/analysis/test_failed_spectra.py"


class Mistake(NamedTuple):
    """One edit and the tests that it must fail. Variants of one mistake share its `number`."""

    number: int
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MISTAKES = (
    Mistake(
        1,
        "given Jacobians transposed forward in time",
        "pipeline/dynamics/steps.py",
        "return self._J @ Q_NBDK",
        "return self._J.mT @ Q_NBDK",
        (f"{SPECTRUM}::test_singular_values_of_the_whole_product",),
    ),
    Mistake(
        1,
        "a network's Jacobians transposed forward in time",
        "tasks/networks/recurrent_tangent.py",
        '"""J Q, (N, B, D, K), for a frame of every sequence."""\n',
        '"""."""\n        return self.transposed(Q_NBDK)\n',
        (
            f"{TANGENT}::test_tangents_and_their_transposes_equal_autograd",
            f"{RNN_GRU}::test_growth_is_that_of_the_product_of_autograds_jacobians",
        ),
    ),
    Mistake(
        2,
        "the block ∂h'/∂h is reported as the full state",
        "tasks/networks/lstm.py",
        "LSTMOrbit(tuple(layers), inputs, state=state, closed=closed)",
        'LSTMOrbit(tuple(layers), inputs, state="hidden", closed=closed)',
        (f"{SPECTRUM}::test_full_and_hidden_state_are_different_systems",),
    ),
    Mistake(
        2,
        "the cell state is held fixed within (h, c)",
        "pipeline/dynamics/modules.py",
        "torch.mul(Q[..., H:], _row(gains.f[b]), out=dc)",
        "dc.zero_()",
        (
            f"{MODULES}::test_tangents_are_those_of_the_module",
            f"{MODULES}::test_our_lstm_and_that_of_torch_have_one_spectrum",
        ),
    ),
    Mistake(
        2,
        "the cell state is held fixed within (h, c) of our LSTM",
        "tasks/networks/lstm_tangent.py",
        "torch.mul(f, Q_NBKD[..., start + H : start + 2 * H], out=dc)",
        "dc.zero_()",
        (f"{LSTM_TANGENT}::test_tangents_equal_autograd",),
    ),
    Mistake(
        3,
        "a stack of layers is taken for its first",
        "pipeline/dynamics/modules.py",
        'range(getattr(module, "num_layers", 0))',
        'range(min(1, getattr(module, "num_layers", 0)))',
        (f"{MODULES}::test_the_state_is_that_of_all_layers_and_no_more",),
    ),
    Mistake(
        3,
        "a stack of our layers is taken for its first",
        "tasks/networks/recurrent.py",
        "self._tangent_cell(layer, dtype) for layer in range(self.num_layers)",
        "self._tangent_cell(layer, dtype) for layer in range(1)",
        (f"{TANGENT}::test_tangents_and_their_transposes_equal_autograd",),
    ),
    Mistake(
        4,
        "growth after the last factorisation is dropped",
        "pipeline/dynamics/propagate.py",
        "is_last = step in (warmup - 1, warmup + steps - 1)",
        "is_last = step == warmup - 1",
        (f"{SPECTRUM}::test_t_on_does_not_change_the_exponents_within_the_law",),
    ),
    Mistake(
        4,
        "growth is divided by all steps instead of the counted ones",
        "pipeline/dynamics/spectrum.py",
        "counted = int(block_steps.sum())",
        "counted = int(block_steps.sum()) + run.warmup",
        (f"{SPECTRUM}::test_cat_map",),
    ),
    Mistake(
        4,
        "k is ignored",
        "pipeline/dynamics/prepared.py",
        "    return k\n",
        "    return tangent_size\n",
        (f"{SPECTRUM}::test_t_on_does_not_change_the_exponents_within_the_law",),
    ),
    Mistake(
        5,
        "the warm-up inputs are fed twice",
        "pipeline/dynamics/propagate.py",
        "enumerate(islice(orbit.maps(), warmup + steps))",
        "enumerate([*islice(orbit.maps(), warmup), *islice(orbit.maps(), steps)])",
        (f"{SPECTRUM}::test_warm_up_is_taken_from_the_same_inputs_once",),
    ),
    Mistake(
        5,
        "the frame does not relax",
        "pipeline/dynamics/propagate.py",
        "        if observe is not None:\n            observe(step, J)\n",
        "        if step < warmup:\n            continue\n"
        "        if observe is not None:\n            observe(step, J)\n",
        (f"{SPECTRUM}::test_warm_up_is_taken_from_the_same_inputs_once",),
    ),
    Mistake(
        5,
        "the first frame is the identity",
        "pipeline/dynamics/propagate.py",
        "return orthonormalise(normal).frame.to(",
        "return torch.eye(*shape[1:]).expand_as(normal).double().to(",
        (f"{KNOWN}::test_a_random_frame_finds_what_the_identity_hides",),
    ),
    Mistake(
        6,
        "sign(0) = 0 kills a column",
        "pipeline/dynamics/orthonormal.py",
        "torch.where(diagonal < 0, -1.0, 1.0).to(Q.dtype)",
        "torch.sign(diagonal)",
        (f"{SPECTRUM}::test_a_map_that_annihilates_shows_as_minus_infinity_and_its_count",),
    ),
    Mistake(
        6,
        "log 0 is clamped",
        "pipeline/dynamics/orthonormal.py",
        "logs = diagonal.double().abs().log()",
        "logs = diagonal.double().abs().clamp(min=1e-12).log()",
        (
            f"{SPECTRUM}::test_a_map_that_annihilates_shows_as_minus_infinity_and_its_count",
            f"{SPECTRUM}::test_strong_contraction_is_a_number_and_not_clamped",
        ),
    ),
    Mistake(
        6,
        "zeros are not counted",
        "pipeline/dynamics/propagate.py",
        "torch.isneginf(logs).sum(1)",
        "0",
        (f"{SPECTRUM}::test_a_map_that_annihilates_shows_as_minus_infinity_and_its_count",),
    ),
    Mistake(
        7,
        "the old input is paired with the new state",
        "tasks/networks/recurrent_orbit.py",
        "                yield step\n",
        "                yield self._advance(list(states), self._drive(x_now))\n",
        (
            f"{TANGENT}::test_tangents_and_their_transposes_equal_autograd",
            f"{LSTM_TANGENT}::test_tangents_equal_autograd",
        ),
    ),
    Mistake(
        7,
        "φ′ is taken at h as if h' = W φ(h)",
        "pipeline/dynamics/modules.py",
        "slope = torch.cosh(a).reciprocal().square()",
        "slope = torch.cosh(h).reciprocal().square()",
        (f"{MODULES}::test_tangents_are_those_of_the_module",),
    ),
    Mistake(
        8,
        "covariant vectors are led back by the next R",
        "pipeline/dynamics/clv.py",
        "_step_back(factors[time - 1], C)",
        "_step_back(factors[min(time, len(factors) - 1)], C)",
        (f"{CLV}::test_henon", f"{CLV}::test_laws_hold_for_networks"),
    ),
    Mistake(
        9,
        "one forward sweep for the singular values of a network",
        "pipeline/dynamics/sweeps.py",
        "            best = found\n",
        "            return found._replace(has_settled=torch.ones_like(found.has_settled))\n",
        (
            f"{FTLE}::test_equals_the_largest_singular_value",
            f"{FTLE}::test_sweeps_find_the_largest_of_many_directions",
        ),
    ),
    Mistake(
        9,
        "JᵀJ is formed for the small singular values",
        "pipeline/dynamics/ftle.py",
        "    return torch.cat([part.log_values / part.layer for part in found], dim=1)",
        "    orbit = network.orbit(inputs, dtype=torch.float64)\n"
        "    *_, whole = _products(orbit, _basis(orbit), found[0].layer)\n"
        "    values = torch.linalg.eigvalsh(whole.J_NBEr.mT @ whole.J_NBEr).flip(-1)[..., :k]\n"
        "    return (0.5 * values.log() + whole.log_scale_NB.unsqueeze(-1)) / whole.layer",
        (f"{FTLE}::test_small_singular_values_keep_their_digits",),
    ),
    Mistake(
        10,
        "gains of a module become diagonal matrices",
        "pipeline/dynamics/modules.py",
        "out_BKH.addcmul_(_row(gain[b]), self._product[..., n * H : (n + 1) * H])",
        "out_BKH.add_(self._product[..., n * H : (n + 1) * H] @ torch.diag_embed(gain[b]))",
        (f"{MODULES}::test_a_step_costs_its_products_and_nothing_more",),
    ),
    Mistake(
        10,
        "gains of a network become diagonal matrices",
        "tasks/networks/rnn_tangent.py",
        "torch.mul(gains.unsqueeze(2), da, out=out)",
        "out.copy_(da @ torch.diag_embed(gains))",
        (f"{RNN_GRU}::test_a_step_costs_its_products_and_nothing_more",),
    ),
    Mistake(
        10,
        "gains of our LSTM become diagonal matrices",
        "tasks/networks/lstm_tangent.py",
        "dc.addcmul_(by_f, A_f)",
        "dc.add_(A_f @ torch.diag_embed(gains.by_f))",
        (f"{KNOWN}::test_the_tangent_step_costs_its_products_and_nothing_more",),
    ),
    Mistake(
        11,
        "1 − tanh² for sech² in a network",
        "tasks/networks/layers.py",
        "return torch.cosh(x).reciprocal().square()",
        "return 1 - torch.tanh(x).square()",
        (
            f"{TANGENT}::test_saturated_units_keep_their_tiny_derivative",
            f"{LSTM_TANGENT}::test_a_saturated_cell_keeps_its_tiny_derivative",
        ),
    ),
    Mistake(
        11,
        "1 − tanh² for sech² in a module",
        "pipeline/dynamics/modules.py",
        "slope = torch.cosh(a).reciprocal().square()",
        "slope = 1 - torch.tanh(a).square()",
        (f"{MODULES}::test_saturated_units_keep_their_tiny_derivative",),
    ),
    Mistake(
        12,
        "failed spectra are replaced by those of other trials",
        "analysis/features.py",
        "finite = table.where(np.isfinite(table))",
        "finite = table.where(np.isfinite(table)).bfill().ffill()",
        (
            f"{FAILED}::test_a_failed_spectrum_is_nobodys",
            f"{FAILED}::test_held_out_trials_do_not_fill_the_gaps_of_the_others",
        ),
    ),
    Mistake(
        12,
        "gaps are filled before the split",
        "analysis/inputs.py",
        "whole = pd.concat(found, axis=1)",
        "whole = pd.concat(found, axis=1).bfill()",
        (f"{FAILED}::test_held_out_trials_do_not_fill_the_gaps_of_the_others",),
    ),
    Mistake(
        13,
        "a small change of the running mean counts as convergence",
        "pipeline/dynamics/spectrum.py",
        "has_settled = _halves_agree(logs, block_steps, error) & "
        "_is_long(logs, block_steps, error)",
        "running = logs.cumsum(-1).mean(1) / block_steps.cumsum(0)\n"
        "    has_settled = (running[..., -1] - running[..., -2]).abs() < 1e-2",
        (f"{KNOWN}::test_convergence_is_no_small_change_of_a_running_mean",),
    ),
)
