"""Networks of the size of Storm et al. (2024), Fig. 4(a), learn MNIST on a CPU."""

import pytest

from pipeline import config
from pipeline.plan import plan
from pipeline.train import train

SETTINGS = {
    "seed": 0,
    "task": {"name": "digits", "data": "mnist", "batch_size": 128, "validation": 0.1},
    "network": {"name": "mlp", "width": 20, "depth": 16, "activation": "tanh", "init": "gaussian"},
    "trainer": {
        "epochs": 30,
        "optimiser": "adam",
        "learning_rate": 2e-3,
        "decay": 0.8,
        "decay_from": 16,
    },
    "execution": {"cohort_size": 1},
}


@pytest.mark.slow
def test_sixteen_layers_of_twenty_units_read_mnist(real_data):
    """97 % of the test images at least; the paper has 98.88 %."""
    real_data("mnist")
    sweep = config.check({**SETTINGS, "trials": 1})
    (cohort,) = plan([sweep.spec(0, {})], sweep.limits_of(1))
    last = list(train(cohort))[-1]
    assert last.is_last
    scores = {row.quantity: float(row.values) for row in last.rows[0]}
    assert scores["test_score"] >= 0.97, scores
