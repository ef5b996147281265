"""Cross-entropy of all members against torch's own, class by class and axis by axis."""

import pytest
import torch
from torch.nn import functional

from tasks.base import generator_for
from tasks.cross_entropy import accuracy, cross_entropy


def outputs_of(*shape):
    return torch.randn(shape, generator=generator_for("outputs"), dtype=torch.float64)


LAYOUTS = {
    "as it stands": lambda: outputs_of(3, 4, 5, 6),
    "classes first": lambda: outputs_of(3, 6, 4, 5).movedim(1, -1),
    "classes first, steps before sequences": lambda: outputs_of(3, 6, 5, 4).permute(0, 3, 2, 1),
}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_values_and_gradient_are_torchs_in_any_layout(layout):
    outputs = LAYOUTS[layout]().requires_grad_()
    assert outputs.shape == (3, 4, 5, 6)
    targets = torch.randint(6, (4, 5), generator=generator_for("targets"))
    found = cross_entropy(outputs, targets)
    assert found.shape == (3, 4, 5)
    weights = outputs_of(3, 4, 5)
    (gradient,) = torch.autograd.grad((found * weights).sum(), outputs)
    for n in range(3):
        one = outputs[n].detach().clone().requires_grad_()
        expected = functional.cross_entropy(one.flatten(0, 1), targets.flatten(), reduction="none")
        torch.testing.assert_close(found[n].flatten(), expected, rtol=1e-14, atol=1e-14)
        (theirs,) = torch.autograd.grad((expected * weights[n].flatten()).sum(), one)
        torch.testing.assert_close(gradient[n], theirs, rtol=1e-13, atol=1e-14)


def test_vectors_and_accuracy():
    outputs, targets = outputs_of(2, 7, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    loss = cross_entropy(outputs, targets)
    expected = -outputs.log_softmax(-1)[:, torch.arange(7), targets]
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=1e-14)
    right = accuracy(outputs, targets, loss)
    assert torch.equal(right, (outputs.argmax(-1) == targets).double())
    outputs[1, 2] = torch.nan
    loss = cross_entropy(outputs, targets)
    assert loss.isnan().nonzero().tolist() == [[1, 2]]
    assert accuracy(outputs, targets, loss).isnan().nonzero().tolist() == [[1, 2]]
