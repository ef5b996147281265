"""Every trial's spectrum (or FTLE distribution) at several epochs, coloured by its final loss.

After Vogt et al. 2022 (arXiv 2006.14123), figure 4.
"""

from typing import ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Picture

from analysis.figures.base import Figure, Section, new_picture, spread_out, when
from analysis.figures.colours import DIVERGED, add_loss_bar, colour_of, loss_colours, some_trials
from analysis.frame import SweepFrame

_MAX_EPOCHS = 4


class Spectra(Figure):
    """One line a trial."""

    section: ClassVar[Section] = "spectra"
    title: ClassVar[str] = "Spectra, coloured by final loss"
    caption: ClassVar[str] = (
        "One line a trial, one panel an epoch; dark lines end with a low validation loss, grey "
        "dashed ones have none. For recurrent networks: exponents from the largest to the "
        "smallest against their place in the spectrum, so that widths compare. For feed-forward "
        "networks: quantiles of the finite-time exponent over probe inputs. Where colours lie in "
        "layers the spectrum goes with the loss; this does not tell why. Above 0 perturbations "
        "grow, below they die out. At most 150 trials, evenly spread over the loss, are drawn."
    )

    def data(self, frame: SweepFrame) -> pd.DataFrame:
        """Columns: kind, epoch, trial, position, value, error, target, unit, target_unit."""
        if "lyapunov.spectrum" in frame.quantities:
            kind, quantity, axis = "exponents", "lyapunov.spectrum", "exponent"
        elif "ftle.quantiles" in frame.quantities:
            kind, quantity, axis = "FTLE quantiles", "ftle.quantiles", "level"
        else:
            return pd.DataFrame()
        trials = frame.trials["target"]
        chosen = some_trials(trials.dropna()).union(some_trials(trials[trials.isna()]))
        epochs = spread_out(frame.epochs_of(quantity), _MAX_EPOCHS)
        table = frame.spectra(quantity, trials=chosen, epochs=epochs)
        if kind == "exponents":
            size = table.groupby(["trial", "epoch"])["value"].transform("size")
            rank = table.groupby(["trial", "epoch"])["value"].rank(ascending=False, method="first")
            position = (rank - 0.5) / size
        else:
            levels = frame.early_view(max(epochs)).details(quantity).get("levels")
            count = table[axis].max() + 1
            known = np.asarray(levels if levels else (np.arange(count) + 0.5) / count, float)
            position = pd.Series(known[table[axis]], index=table.index)
        return pd.DataFrame(
            {
                "kind": kind,
                "epoch": table["epoch"],
                "trial": table["trial"],
                "position": position,
                "value": table["value"],
                "error": table["error"],
                "target": table["trial"].map(trials),
                "unit": frame.unit(quantity),
                "target_unit": frame.unit(frame.target_quantity),
            }
        ).sort_values(["epoch", "trial", "position"], ignore_index=True)

    def draw(self, table: pd.DataFrame) -> Picture:
        """Small multiples with common axes."""
        epochs = sorted(table["epoch"].unique())
        picture = new_picture(1.9 + 1.95 * len(epochs), 3.7)
        axes = list(picture.subplots(1, len(epochs), sharex=True, sharey=True, squeeze=False)[0])
        colours = loss_colours(table.groupby("trial")["target"].first())
        is_exponents = table["kind"].iloc[0] == "exponents"
        num_trials = table["trial"].nunique()
        opacity = float(np.clip(25 / num_trials, 0.35, 0.9))
        for ax, epoch in zip(axes, epochs, strict=True):
            for _, line in table[table["epoch"] == epoch].groupby("trial"):
                target = float(line["target"].iloc[0])
                is_known = np.isfinite(target)
                ax.plot(
                    line["position"],
                    line["value"].where(np.isfinite(line["value"])),
                    color=colour_of(target, colours) if is_known else DIVERGED,
                    linestyle="-" if is_known else (0, (3, 2)),
                    linewidth=1.1,
                    alpha=opacity,
                    marker="." if len(line) <= 8 else None,
                )
            ax.axhline(0, color="#374151", linewidth=1)
            ax.set_title(when(int(epoch)))
        name = "exponent" if is_exponents else "FTLE"
        axes[0].set_ylabel(f"{name} [{table['unit'].iloc[0]}]")
        picture.supxlabel(
            "place in the spectrum, i / k" if is_exponents else "quantile over probe inputs",
            fontsize=10.5,
        )
        if table["target"].notna().any():
            add_loss_bar(picture, colours, axes, table["target_unit"].iloc[0])
        return picture
