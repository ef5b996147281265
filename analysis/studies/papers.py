"""The papers whose experiments are run here, by the short names that conf and tables use."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A paper: `key` orders and names it in the gallery."""

    key: str
    short: str
    citation: str
    url: str


STORM = Paper(
    "S0",
    "Storm et al. 2024",
    "L. Storm, H. Linander, J. Bec, K. Gustavsson, B. Mehlig, Finite-time Lyapunov exponents of "
    "deep neural networks, Phys. Rev. Lett. 132, 057301 (2024)",
    "https://arxiv.org/abs/2306.12548",
)
POOLE = Paper(
    "S1",
    "Poole et al. 2016",
    "B. Poole, S. Lahiri, M. Raghu, J. Sohl-Dickstein, S. Ganguli, Exponential expressivity in "
    "deep neural networks through transient chaos, NIPS (2016)",
    "https://arxiv.org/abs/1606.05340",
)
SUBSPACES = Paper(
    "S2",
    "RNN gradient subspaces 2023",
    "Linking finite-time Lyapunov exponents to RNN gradient subspaces and input sensitivity, "
    "submission to ICLR 2024 with its reviews",
    "https://openreview.net/group?id=ICLR.cc/2024/Conference",
)
OWREN = Paper(
    "S3",
    "Owren 2020",
    "B. Owren, Structure preservation in (some) deep learning architectures (2020), on work by "
    "M. Benning, E. Celledoni, M. J. Ehrhardt, B. Owren, C.-B. Schönlieb",
    "https://arxiv.org/abs/1904.05657",
)
VOGT = Paper(
    "S4",
    "Vogt et al. 2022",
    "R. Vogt, M. Puelma Touzel, E. Shlizerman, G. Lajoie, On Lyapunov exponents for RNNs: "
    "understanding information propagation using dynamical systems tools, Front. Appl. Math. "
    "Stat. 8, 818799 (2022)",
    "https://arxiv.org/abs/2006.14123",
)
PATHAK = Paper(
    "S5",
    "Pathak et al. 2017",
    "J. Pathak, Z. Lu, B. R. Hunt, M. Girvan, E. Ott, Using machine learning to replicate chaotic "
    "attractors and calculate Lyapunov exponents from data, Chaos 27, 121102 (2017)",
    "https://arxiv.org/abs/1710.07313",
)
ENGELKEN = Paper(
    "S6",
    "Engelken 2023",
    "R. Engelken, Gradient flossing: Improving gradient descent through dynamic control of "
    "Jacobians, NeurIPS (2023)",
    "https://arxiv.org/abs/2312.17306",
)
