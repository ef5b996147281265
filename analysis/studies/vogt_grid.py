"""The published grid of LSTMs, read again: what its own numbers say of the claims made with them.

Vogt et al. (2022), Fig. 5, from the authors' public results: dropout × learning rate at 512 units,
spectra after 4 and 15 epochs, losses. The numbers are those of `analysis.published_grid`; nothing
is trained. The tables have no licence and are not shipped: put vogt2022_public_spectra.parquet and
vogt2022_public_losses.parquet into the data folder (`conf/spectra/vogt2022.yaml` says what is in
them).
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure as Picture

from analysis import published_grid, words
from analysis.figures.base import INK, OKABE_ITO, new_picture
from analysis.frame import SweepFrame
from analysis.studies.base import Claim, Finding, Study, Tables, Verdict, by_interval
from analysis.studies.lab import Lab
from analysis.studies.papers import VOGT
from pipeline.external import mapping as mappings
from pipeline.external.sweep import import_sweep
from pipeline.external.tables import read
from pipeline.folder_store import FolderStore
from pipeline.home import Home
from tasks import datasets
from tasks.base import Config as BaseConfig
from tasks.base import MissingDataError

_FILES = ("vogt2022_public_spectra.parquet", "vogt2022_public_losses.parquet")
_MARGINAL, _CURVED = "spearman with final loss", "partial spearman, squares of ranks too"
_GAIN, _NEXT = "gain of the epoch-4 spectrum", "one more epoch instead"
_LARGEST, _MEAN, _FINAL, _RATE = (
    "largest exponent after epoch 4 [bits/step]",
    "mean exponent after epoch 4 [bits/step]",
    "final validation loss [nats/character]",
    "learning rate",
)


class VogtGrid(Study):
    """Correlations, partial correlations and gains on the published grid."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """What is computed.

        diverged_rise: a network whose loss rises so far above its lowest has diverged and has no
            final loss; nats.
        """

        diverged_rise: float = 0.3

    config: Config
    paper = VOGT
    item = "Fig. 5"
    title = "The published grid, read again"
    claims = (
        Claim(
            "largest",
            "The closer the largest exponent is to 0 after epoch 4, the lower the final loss.",
            "rank correlation of the largest exponent, negative in nearly all networks, with the "
            "final loss: 95 % interval below 0",
        ),
        Claim(
            "mean",
            "The lower the mean exponent after epoch 4, the lower the final loss.",
            "rank correlation of the mean exponent with the final loss: 95 % interval above 0",
        ),
        Claim(
            "largest_itself",
            "The largest exponent has to do with the loss itself, not only through the settings.",
            "as the first claim, learning rate and dropout (with bends) held fixed: below 0",
            "ours",
        ),
        Claim(
            "mean_itself",
            "So has the mean exponent.",
            "as the second claim, learning rate and dropout (with bends) held fixed: above 0",
            "ours",
        ),
        Claim(
            "adds",
            "Spectra early in training foretell what is not known without them.",
            "held-out error with the epoch-4 spectrum over epoch-4 loss (with a bend) and "
            "settings: 95 % interval of the gain above 0",
            "ours",
        ),
        Claim(
            "instead",
            "Ours: one more epoch of training tells more than the epoch-4 spectrum.",
            "gain of the epoch-5 loss over the epoch-4 loss and spectrum, both losses with a bend: "
            "95 % interval above 0",
        ),
    )
    caption = (
        "Left: the published networks, largest exponent after epoch 4 against the final loss, "
        "coloured by learning rate. Right: rank correlations with the final loss and their 95 % "
        "intervals, plain and with learning rate and dropout held fixed."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Imports the tables and computes every number. Raises MissingDataError without them."""
        spectra, losses = _files()
        mapping = mappings.load(
            mappings.find("vogt2022"), [f"diverged_rise={self.config.diverged_rise}"]
        )
        with tempfile.TemporaryDirectory(prefix="lyapsweep-") as folder:
            store = FolderStore(Path(folder) / "store")
            store.prepare()
            home = Home.of("grid", str(Path(folder) / "home"))
            import_sweep(read(mapping, spectra, losses), mapping, "grid", store, home)
            frame = SweepFrame.from_store(store, "grid")
            grid = published_grid.Grid.of(frame)
            numbers = published_grid.numbers(frame)
        early = grid.spectra[published_grid.EARLY]
        networks = pd.DataFrame(
            {
                _LARGEST: early["max"],
                _MEAN: early["mean"],
                _FINAL: grid.final,
                _RATE: grid.rate,
                "dropout": grid.settings[published_grid.DROPOUT],
            }
        )
        return {"networks": networks.reset_index(names="network"), "numbers": numbers}

    def judge(self, tables: Tables) -> list[Finding]:
        """By intervals of the re-analysis."""
        table = tables["numbers"]
        return [
            _finding("largest", "Rank correlation", _row(table, _MARGINAL, "max @4"), -1),
            _finding("mean", "Rank correlation", _row(table, _MARGINAL, "mean @4"), 1),
            _finding("largest_itself", "Rank correlation, learning rate and dropout held fixed,",
                     _row(table, _CURVED, "max @4 | rate, dropout"), -1),
            _finding("mean_itself", "Rank correlation, learning rate and dropout held fixed,",
                     _row(table, _CURVED, "mean @4 | rate, dropout"), 1),
            _finding("adds", "Share by which the error gets smaller",
                     _row(table, _GAIN, "over cubic val4 + HP"), 1),
            _finding("instead", "Share by which the error gets smaller",
                     _row(table, _NEXT, "gain of cubic val5 over cubic val4+LE4"), 1),
        ]  # fmt: skip

    def draw(self, tables: Tables) -> Picture:
        """Networks on the left, correlations on the right."""
        picture = new_picture(8, 3.8)
        left, right = picture.subplots(1, 2, width_ratios=(1.2, 1))
        networks = tables["networks"]
        points = left.scatter(networks[_LARGEST], networks[_FINAL], c=1000 * networks[_RATE],
                              cmap="viridis", s=22, linewidths=0)  # fmt: skip
        left.set(xlabel=_LARGEST, ylabel=_FINAL)
        picture.colorbar(points, ax=left).set_label("learning rate [1/1000]")
        kinds = {
            "nothing held fixed": (_MARGINAL, "{} @4", INK, "o"),
            "learning rate, dropout held fixed": (
                _CURVED,
                "{} @4 | rate, dropout",
                OKABE_ITO[0],
                "s",
            ),
            "loss after epoch 4, too": (_CURVED, "{} @4 | val4, rate, dropout", OKABE_ITO[1], "D"),
        }
        for step, (label, (section, what, colour, marker)) in enumerate(kinds.items()):
            for place, name in enumerate(("max", "mean")):
                row = _row(tables["numbers"], section, what.format(name))
                ends = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
                right.errorbar([row["value"]], [place + 0.2 * (step - 1)], xerr=ends, fmt=marker,
                               color=colour, capsize=3, label=None if place else label)  # fmt: skip
        right.axvline(0, color=INK, linewidth=0.8)
        right.set_yticks([0, 1], ["largest\nexponent", "mean\nexponent"])
        right.set(ylim=(1.5, -0.5), xlim=(-1, 1), xlabel="rank correlation with the final loss")
        right.grid(visible=False, axis="y")
        picture.legend(loc="outside lower center", ncols=3, columnspacing=1.2, handletextpad=0.4)
        return picture


def _files() -> tuple[Path, Path]:
    folder = datasets.data_folder()
    spectra, losses = (folder / name for name in _FILES)
    lacking = [path.name for path in (spectra, losses) if not path.is_file()]
    if lacking:
        raise MissingDataError(
            f"the published grid is not on this machine: no {' and no '.join(lacking)} in {folder} "
            f"(set {datasets.FOLDER_VARIABLE} to look elsewhere); its authors' results have no "
            "licence and cannot be shipped"
        )
    return spectra, losses


def _row(table: pd.DataFrame, section: str, what: str) -> dict[str, Any]:
    rows = table[(table["section"] == section) & (table["what"] == what)]
    return {str(key): value for key, value in rows.iloc[0].items()}


def _finding(claim: str, what: str, row: dict[str, Any], sign: int) -> Finding:
    value, low, high = (float(row[end]) for end in ("value", "low", "high"))
    ends = (low, high) if sign > 0 else (-high, -low)
    verdict: Verdict = by_interval(*ends)
    shown = words.estimate(value, low, high)
    return Finding(claim, verdict, f"{what} {shown}, {row['n']} networks", value, low, high)
