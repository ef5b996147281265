"""Spectra of an LSTM the way a textbook has them: a Jacobian and a QR at every step."""

import torch


def lstm_step(network, state):
    """(s, c, x) → (s', c') of a population's first member, for one sequence.

    s is h, or (h, c) for the full state; then `c` is not read.
    """
    names = ("weight_in", "weight_rec", "bias")
    W, U, b = (network.get_parameter(f"{name}_0")[0].detach() for name in names)
    H = U.shape[1]

    def step(s, c, x):
        h = s[:H]
        c = s[H:] if state == "full" else c
        i, f, g, o = (W @ x + U @ h + b).chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return (torch.cat([h, c]) if state == "full" else h), c

    return step


def jacobians(step):
    """(B, D', D), given s, c and x of every sequence."""
    return torch.func.vmap(torch.func.jacrev(lambda s, c, x: step(s, c, x)[0]))
