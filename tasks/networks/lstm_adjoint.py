"""One LSTM step run backward: the transposes of its derivatives by state and by input.

With s = p_c + o(1−tanh² c') p_h what arrives at δc' (`lstm_tangent`), the gates' arguments get
(i(1−i)g s, f(1−f)c s, i(1−g²) s, o(1−o) tanh c' p_h), c gets f s, and h and x get what U and W
pass on. A layer's x is the h' of the layer below, so that layers come from the top. In a closed
loop x of the first layer is V h + b of the last one's h, which gets what V passes on.

Shapes: N members, B sequences, I inputs, H units, K tangents, D state (h then c, or h alone).
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.networks.recurrent_tangent import shared_product

if TYPE_CHECKING:
    from tasks.networks.lstm_tangent import LSTMStep


def pull(step: "LSTMStep", P_NBDK: Tensor) -> tuple[Tensor, Tensor]:
    """Jᵀ P (N, B, D, K) and (∂s'/∂x)ᵀ P (N, B, I, K), x the input of this step."""
    P_NBKD = P_NBDK.mT
    H = step.layers[0].U.shape[-1]
    is_full = step.state == "full"
    width = 2 * H if is_full else H
    pulled_NBKD = torch.empty_like(P_NBKD, memory_format=torch.contiguous_format)
    above: Tensor | None = None
    for layer in range(len(step.layers) - 1, -1, -1):
        weights, start = step.layers[layer], layer * width
        by_i, by_f, by_g, by_o, h_by_c, f = (gain.unsqueeze(2) for gain in step.gains[layer])
        p_h = P_NBKD[..., start : start + H]
        if above is not None:
            p_h = p_h + above
        s = h_by_c * p_h
        if is_full:
            s += P_NBKD[..., start + H : start + width]
            torch.mul(f, s, out=pulled_NBKD[..., start + H : start + width])
        gates = torch.cat([by_i * s, by_f * s, by_g * s, by_o * p_h], dim=-1)
        pulled_NBKD[..., start : start + H] = shared_product(gates, weights.U)
        above = shared_product(gates, weights.W)
    assert above is not None  # there is at least one layer
    if step.readout is not None:
        top = width * (len(step.layers) - 1)
        pulled_NBKD[..., top : top + H] += shared_product(above, step.readout.V)
    return pulled_NBKD.mT, above.mT
