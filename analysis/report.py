"""One self-contained HTML page that says what a sweep found, its tables and pictures beside it.

The page needs no network: styles and pictures are inside it. It is built in a folder next to its
destination and put in place whole, so that a reader never meets half a report.
"""

import base64
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import pyarrow.compute as pc
import yaml

from analysis import features as ft
from analysis import words
from analysis.correlations import correlations, design, divergence, most_telling, strongest
from analysis.evaluate import NUM_FOLDS, NUM_REPEATS, compare, divergence_scores
from analysis.evidence import increments
from analysis.figures.base import Figure, when
from analysis.frame import MEASURED_PREFIXES, AnalysisError, SweepFrame
from analysis.statistics import benjamini_hochberg, detectable
from analysis.verdict import early_epochs, verdict
from pipeline import catalog

MARKER = ".lyapsweep-report"
SKIPPED = "skipped_over_budget"
_MAX_TRIALS_SHOWN = 300
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class TableView:
    """A table as the page shows it: words already, numbers aligned right."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]
    file: str = ""
    note: str = ""


@dataclass(frozen=True)
class FigureView:
    """A figure as the page shows it; `uri` is "" where there was nothing to draw."""

    name: str
    title: str
    caption: str
    uri: str
    width: int
    height: int


def write_report(frame: SweepFrame, out: Path) -> Path:
    """Writes the report into the folder `out`, replacing a former report there.

    Returns the path of its `index.html`. Raises AnalysisError where `out` is something else
    than a former report or an empty folder; OSError where it cannot be written.
    """
    out = out.resolve()
    _check_destination(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    try:
        (building / "tables").mkdir(parents=True)
        (building / "figures").mkdir()
        _fill(frame, building)
        _swap(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return out / "index.html"


def _check_destination(out: Path) -> None:
    if out.is_dir():
        if not (out / MARKER).exists() and any(out.iterdir()):
            raise AnalysisError(
                f"{out}: is a folder with other things in it; a report replaces only a former "
                f"report or an empty folder. Name another with --out"
            )
    elif out.exists() or out.is_symlink():
        raise AnalysisError(f"{out}: is not a folder; name another place with --out")


def _swap(building: Path, out: Path) -> None:
    former = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        os.rename(out, former)
    try:
        os.rename(building, out)
    except OSError:
        if former.exists():
            os.rename(former, out)
        raise
    shutil.rmtree(former, ignore_errors=True)


def _fill(frame: SweepFrame, folder: Path) -> None:
    figures = _figures(frame, folder)
    for name, table in _tables(frame).items():
        _save(table, folder / "tables" / name)
    config = yaml.safe_dump(_plain(frame.info.config), sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(_content(frame, figures, config))
    (folder / "index.html").write_text(page, encoding="utf-8")
    (folder / MARKER).write_text(
        json.dumps({"sweep": frame.info.name, "sweep_id": frame.info.sweep_id}), encoding="utf-8"
    )


def _content(
    frame: SweepFrame, figures: dict[str, list[FigureView]], config: str
) -> dict[str, Any]:
    return {
        "name": frame.info.name,
        "verdict": verdict(frame),
        "figures": figures,
        "facts": _facts(frame),
        "ranges": _range_table(frame),
        "measurements": _measurement_table(frame),
        "cost": _cost_table(frame),
        "versions": _version_table(frame),
        "design_notes": _design_notes(frame),
        "correlation_tables": _correlation_tables(frame),
        "predictors": _predictor_table(frame),
        "regions": _region_table(frame),
        "increments": _increment_table(frame),
        "num_folds": NUM_FOLDS,
        "num_repeats": NUM_REPEATS,
        "is_log": compare(frame).is_log if len(frame.target) else True,
        "trials": _trial_table(frame),
        "casualties": _casualties(frame),
        "divergence": _divergence_table(frame),
        "foretold_divergence": _foretold_divergence_table(frame),
        "config": config,
        "example_trial": int(frame.trials.index[0]),
    }


def _figures(frame: SweepFrame, folder: Path) -> dict[str, list[FigureView]]:
    """Draws every figure there is; returns them by section, in their order."""
    found: dict[str, list[tuple[int, FigureView]]] = {
        s: [] for s in ("design", "spectra", "evolution", "correlations", "curves")
    }
    for name in catalog.entries("figures"):
        kind: type[Figure] = catalog.load("figures", name)
        figure = kind()
        table, uri, size = figure.data(frame), "", (0, 0)
        if not table.empty:
            picture = figure.png(table)
            (folder / "figures" / f"{name}.png").write_bytes(picture)
            _save(table, folder / "tables" / name)
            uri = "data:image/png;base64," + base64.b64encode(picture).decode()
            size = _png_size(picture)
        view = FigureView(name, figure.title, figure.caption, uri, size[0] // 2, size[1] // 2)
        found[figure.section].append((figure.order, view))
    return {
        section: [view for _, view in sorted(views, key=lambda v: (v[0], v[1].name))]
        for section, views in found.items()
    }


def _tables(frame: SweepFrame) -> dict[str, pd.DataFrame]:
    comparison = compare(frame) if len(frame.target) else None
    tables = {
        "trials": frame.trials.reset_index(),
        "correlations": correlations(frame),
        "design": design(frame),
        "divergence": divergence(frame),
        "divergence_foretold": divergence_scores(frame),
        "predictors": comparison.scores if comparison else pd.DataFrame(),
        "regions": comparison.regions if comparison else pd.DataFrame(),
        "increments": increments(frame) if len(frame.target) else pd.DataFrame(),
        "tests": _all_tests(frame),
        "features": _all_features(frame),
    }
    return {name: table for name, table in tables.items() if not table.empty}


def _all_features(frame: SweepFrame) -> pd.DataFrame:
    parts = [
        ft.features(ft.early_view(frame, epoch)).reset_index().assign(epoch=epoch)
        for epoch in frame.measured_epochs
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _save(table: pd.DataFrame, path: Path) -> None:
    # A setting that is a number in one trial and a word in another has no Parquet type.
    mixed = {
        c: table[c].map(lambda v: v if v is None else str(v))
        for c in table
        if table[c].dtype == object and table[c].map(type).nunique() > 1
    }
    table = table.assign(**{str(c): column for c, column in mixed.items()})
    table.to_parquet(path.with_name(f"{path.name}.parquet"), compression="zstd", index=False)
    table.to_csv(path.with_name(f"{path.name}.csv"), index=False)


def _facts(frame: SweepFrame) -> list[tuple[str, str]]:
    config, trials = frame.info.config, frame.trials
    states = trials["state"].value_counts()
    seconds = frame.seconds.groupby("activity")["seconds"].sum()
    training, measuring = seconds.get("training", 0.0), seconds.get("measuring", 0.0)
    score, higher = frame.score
    return [
        ("Task", _named(config.get("task"))),
        ("Network", _named(config.get("network"))),
        ("Sampler", _named(config.get("sampler"))),
        ("Seed of the sweep", str(config.get("seed", "–"))),
        (
            "Trials",
            f"{len(trials)} of {frame.info.num_trials} published: "
            + ", ".join(f"{n} {state}" for state, n in states.items()),
        ),
        ("Epochs", str(frame.final_epoch)),
        ("Measured at epochs", ", ".join(map(str, frame.measured_epochs)) or "none"),
        ("Target", f"{frame.target_quantity} at the final epoch, smaller is better"),
        ("Score", f"{score}, {'higher' if higher else 'lower'} is better"),
        ("Training time", words.duration(training) if training else "–"),
        (
            "Time spent measuring",
            f"{words.duration(measuring)}, {words.percent(measuring / training)} of training"
            if training > 0
            else "–",
        ),
        ("State of the sweep", frame.info.state),
        (
            "Started",
            datetime.fromtimestamp(frame.info.created_ms / 1000, UTC).strftime(
                "%Y-%m-%d %H:%M UTC"
            ),
        ),
    ]


def _named(section: Any) -> str:
    if not isinstance(section, Mapping):
        return str(section) if section else "–"
    fixed = [
        f"{key} {value}"
        for key, value in section.items()
        if key != "name" and isinstance(value, (int, float, str, bool))
    ]
    return str(section.get("name", "–")) + (f" ({', '.join(fixed)})" if fixed else "")


def _range_table(frame: SweepFrame) -> TableView | None:
    rows = []
    for name in frame.sampled:
        values = frame.params[name]
        if ft.is_number(values):
            seen = f"{words.significant(values.min(), 3)} to {words.significant(values.max(), 3)}"
        else:
            seen = ", ".join(sorted(values.map(str).unique()))
        rows.append([name, str(frame.ranges.get(name, "–")), seen, str(values.nunique())])
    columns = ("Setting", "Drawn from", "Seen", "Values")
    return _view("What was sampled", columns, rows, (False, False, False, True), file="trials")


def _measurement_table(frame: SweepFrame) -> TableView | None:
    """Quantities measured under the same conventions share a line."""
    shared: dict[str, list[str]] = {}
    for quantity in sorted(q for q in frame.quantities if q.startswith(MEASURED_PREFIXES)):
        details = frame.details(quantity)
        spelled = ", ".join(f"{name} {_either(values)}" for name, values in details.items())
        shared.setdefault(spelled or "–", []).append(f"{quantity} [{frame.unit(quantity)}]")
    rows = [[", ".join(quantities), spelled] for spelled, quantities in shared.items()]
    flags = "; ".join(f"{flag}: {words.count(n, 'reading')}" for flag, n in _flags(frame).items())
    notes = [f"Flagged: {flags}." if flags else "", _skipped(frame)]
    return _view(
        "How exponents were measured",
        ("Quantities", "Conventions"),
        rows,
        note=" ".join(filter(None, notes)),
    )


def _either(values: Sequence[Any]) -> str:
    """The values of one detail among trials; None, for those without it, comes last."""
    return words.either(["none" if v is None else v for v in values])


def _flagged(frame: SweepFrame) -> list[dict[str, Any]]:
    rows = frame.table.filter(pc.greater(pc.list_value_length(frame.table["flags"]), 0))
    return rows.select(["trial", "epoch", "quantity", "flags"]).to_pylist()  # type: ignore[no-any-return]


def _flags(frame: SweepFrame) -> dict[str, int]:
    """At how many readings of a spectrum or FTLEs each flag stands.

    One measurement of a trial at an epoch is one reading, however many quantities carry the flag.
    """
    readings = {
        (flag, row["trial"], row["epoch"], row["quantity"].split(".")[0])
        for row in _flagged(frame)
        if row["quantity"].startswith(MEASURED_PREFIXES)
        for flag in row["flags"]
    }
    return dict(Counter(flag for flag, *_ in sorted(readings)).most_common())


def _skipped(frame: SweepFrame) -> str:
    """The measurements that were due and not taken, which stand under the diagnostic's name."""
    skipped = Counter(
        (row["quantity"], row["epoch"]) for row in _flagged(frame) if SKIPPED in row["flags"]
    )
    spelled = [
        f"{diagnostic} {when(epoch)} in {words.count(n, 'trial')}"
        for (diagnostic, epoch), n in sorted(skipped.items())
    ]
    return f"Skipped, as they would have cost too much: {'; '.join(spelled)}." if spelled else ""


def _cost_table(frame: SweepFrame) -> TableView | None:
    seconds = frame.seconds
    training = seconds.loc[seconds["activity"] == "training", "seconds"].sum()
    num_epochs = len(seconds[seconds["activity"] == "training"])
    per_epoch = training / num_epochs if num_epochs else math.nan
    rows = []
    measuring = seconds[seconds["activity"] == "measuring"]
    for diagnostic, part in measuring.groupby("diagnostic"):
        total, times = part["seconds"].sum(), len(part)
        rows.append(
            [
                str(diagnostic),
                f"{times:,}",
                words.duration(total),
                words.percent(total / training) if training else "–",
                words.number(total / times / per_epoch, 3) if per_epoch > 0 else "–",
            ]
        )
    columns = ("Measurement", "Times", "Total", "Share of training", "Epochs' worth each")
    return _view("What measuring cost", columns, rows, (False, True, True, True, True))


def _version_table(frame: SweepFrame) -> TableView | None:
    merged = {**_flat(frame.headers[0].provenance), **_flat(frame.info.provenance)}
    rows = [[name, value] for name, value in merged.items()]
    return _view("Versions and machine", ("What", "Value"), rows)


def _design_notes(frame: SweepFrame) -> list[str]:
    """Pairs of settings that go together, and features that are a setting in other words."""
    table = design(frame)
    if table.empty:
        return ["No setting was sampled, or too few trials finished to check the design."]
    known = table.dropna(subset=["value"])
    notes = []
    among = known[(known["epoch"] < 0) & (known["row"] != "final loss")]
    tied = among[(among["value"].abs() >= 0.3) & (among["value_p"] < 0.05)]
    tied = tied[tied["row"] < tied["setting"]]
    notes += [
        f"{row['row']} and {row['setting']} were not drawn independently: "
        f"{words.estimate(row['value'], row['value_low'], row['value_high'])}."
        for _, row in tied.iterrows()
    ]
    if tied.empty and len(among):
        most, n = strongest(among, "value"), len(frame.target)
        notes.append(
            f"No two settings go together detectably; most do {most['row']} and "
            f"{most['setting']}, {words.number(most['value'], sign=True)} (over {n} trials, less "
            f"than {words.number(detectable(n))} can go unnoticed)."
        )
    early = known[known["epoch"].isin(early_epochs(frame))]
    early = early[early["row"].isin([f.name for f in ft.FEATURES.values() if f.group != "loss"])]
    strong = early[early["value"].abs() >= 0.7]
    for setting, part in strong.groupby("setting", sort=False):
        top = strongest(part, "value")
        names = list(dict.fromkeys(part["label"]))
        notes.append(
            f"{setting} drives {words.count(len(names), 'feature')} to at least 0.7 "
            f"({', '.join(names)}; most: {top['label']} {when(int(top['epoch']))}, "
            f"{words.number(top['value'], sign=True)}). Their plain correlation with the loss "
            "cannot be told from the setting's."
        )
    return notes


def _correlation_tables(frame: SweepFrame) -> list[tuple[str, bool, TableView]]:
    """One table an epoch, with its heading and whether it is shown open."""
    table, found = correlations(frame), []
    if table.empty:
        return []
    opened = _epoch_to_open(frame, table)
    columns = (
        "Feature", "n", "Spearman ρ", "p (Holm)", "Pearson r", "ρ, settings fixed", "p (Holm)",
        "ρ, settings and loss seen fixed", "p (Holm)", "ρ within strata",
    )  # fmt: skip
    for epoch, part in table.groupby("epoch"):
        rows = []
        for _, line in part.iterrows():
            strata = _interval(line, "within")
            if strata != "–":
                strata += f" of {line['strata_by']}" + (" – turns" if line["reverses"] else "")
            rows.append(
                [
                    line["label"] + (" – the bar" if line["feature"] == ft.LOSS_SEEN else ""),
                    str(line["n"]),
                    _interval(line, "spearman"),
                    words.p_value(line["spearman_p_holm"]),
                    _interval(line, "pearson"),
                    _interval(line, "given_settings"),
                    words.p_value(line["given_settings_p_holm"]),
                    _interval(line, "given_settings_and_loss"),
                    words.p_value(line["given_settings_and_loss_p_holm"]),
                    strata,
                ]
            )
        problems = sorted(
            {
                f"{line['label']}: {line['spearman_problem']}"
                for _, line in part.iterrows()
                if line["spearman_problem"]
            }
        )
        heading = when(int(str(epoch))).capitalize()
        view = _view(
            f"Correlation with the final loss, {when(int(str(epoch)))}",
            columns,
            rows,
            (False, *[True] * 8, False),
            file="correlations",
            note="; ".join(problems),
        )
        if view is not None:
            found.append((heading, epoch == opened, view))
    return found


def _epoch_to_open(frame: SweepFrame, table: pd.DataFrame) -> int:
    """The early epoch whose features go most with the loss."""
    early = table[table["epoch"].isin(early_epochs(frame)) & (table["group"] != "loss")]
    row = most_telling(early, "spearman")
    return int(table["epoch"].iloc[0] if row is None else row["epoch"])


def _predictor_table(frame: SweepFrame) -> TableView | None:
    scores = compare(frame).scores if len(frame.target) else pd.DataFrame()
    if scores.empty or "rmse" not in scores:
        return None
    rows = []
    for _, line in scores.iterrows():
        if line["problem"]:
            continue
        rows.append(
            [
                when(int(line["epoch"])),
                line["predictor"],
                _interval(line, "spearman"),
                words.number(line["kendall"]),
                words.significant(line["rmse"], 3),
                words.number(line["r2"]),
                words.percent(line["recall_10"]),
                words.significant(line["regret_10"], 2),
                words.significant(line["regret_25"], 2),
                words.number(line["nll"]),
                words.percent(line["coverage"]),
            ]
        )
    problems = sorted({str(p) for p in scores["problem"] if p})
    return _view(
        "Held-out trials foretold",
        (
            "When", "From", "Rank correlation", "Kendall τ", "RMSE", "R² of ranks",
            "Best tenth found", "Regret, a tenth kept", "a quarter kept", "NLL",
            "In the 90 % interval",
        ),
        rows,
        (False, False, *[True] * 9),
        file="predictors",
        note="; ".join(problems),
    )  # fmt: skip


def _region_table(frame: SweepFrame) -> TableView | None:
    """Thirds of each setting foretold from the other two, a column a setting."""
    comparison = compare(frame) if len(frame.target) else None
    if comparison is None or comparison.regions.empty or "r2" not in comparison.regions:
        return None
    known = comparison.regions[comparison.regions["problem"] == ""]
    settings = list(dict.fromkeys(known["setting"]))
    rows = []
    for name, part in known.groupby("predictor", sort=False):
        by = part.set_index("setting")
        rows.append(
            [
                str(name),
                *(
                    f"{words.number(by.loc[s, 'r2'])} ({words.percent(by.loc[s, 'coverage'])})"
                    if s in by.index
                    else "–"
                    for s in settings
                ),
            ]
        )
    return _view(
        f"Foretold beyond the range seen, {when(comparison.region_epoch)}: R² (share in the 90 % "
        "interval) where each third of a setting is foretold from the other two",
        ("From", *settings),
        rows,
        (False, *[True] * len(settings)),
        file="regions",
    )


def _increment_table(frame: SweepFrame) -> TableView | None:
    tested = increments(frame) if len(frame.target) else pd.DataFrame()
    q = _discoveries(frame)
    rows = []
    for _, line in tested.iterrows():
        if line["problem"]:
            continue
        later = line["against_epoch"]
        against = (
            f"{_gain(line, 'against')} over epoch {int(later)}"
            if math.isfinite(line["against"])
            else f"– ({line['against_problem']})"
        )
        rows.append(
            [
                when(int(line["epoch"])),
                line["group"],
                str(int(line["n"])),
                _gain(line, "gain"),
                words.p_value(line["p"]),
                words.p_value(line["p_holm"]),
                words.p_value(q.get(("increment", int(line["epoch"]), line["group"]), math.nan)),
                words.percent(line["determined"]),
                words.percent(line["detectable"]) if math.isfinite(line["detectable"]) else "–",
                _trials_needed(line["trials_needed"]),
                words.number(line["cost_epochs"]),
                against,
            ]
        )
    problems = sorted({str(p) for p in tested["problem"] if p}) if len(tested) else []
    return _view(
        "What the spectrum takes off the error",
        (
            "When", "Group", "n", "Gain [95 % interval]", "p", "p (Holm)", "q (whole report)",
            "Determined by the baseline", "Share found with 80 %", "Trials to conclude",
            "Cost in epochs", "Gain over training on instead",
        ),
        rows,
        (False, False, *[True] * 9, False),
        file="increments",
        note="; ".join(problems),
    )  # fmt: skip


def _trials_needed(number: float) -> str:
    """Infinite where there is no gain; unknown where no share tried is found with 80 %."""
    if math.isinf(number):
        return "no gain to confirm"
    return f"{math.ceil(number):,}" if math.isfinite(number) else "–"


def _gain(line: pd.Series, column: str) -> str:
    low, high = line[f"{column}_low"], line[f"{column}_high"]
    return (
        f"{words.percent(line[column], sign=True)} [{words.percent(low, sign=True)}, "
        f"{words.percent(high, sign=True)}]"
    )


def _all_tests(frame: SweepFrame) -> pd.DataFrame:
    """Every p value of the report with Holm's correction in its table and q over all of them."""
    found = []
    table = correlations(frame)
    if len(table):
        table = table[table["group"] != "loss"]
        for column in ("spearman", "given_settings", "given_settings_and_loss"):
            part = table[["epoch", "feature", f"{column}_p", f"{column}_p_holm"]]
            found.append(part.set_axis(["epoch", "of", "p", "p_holm"], axis=1).assign(test=column))
    tested = increments(frame) if len(frame.target) else pd.DataFrame()
    if len(tested):
        part = tested[["epoch", "group", "p", "p_holm"]]
        found.append(part.set_axis(["epoch", "of", "p", "p_holm"], axis=1).assign(test="increment"))
    diverged = divergence(frame)
    if len(diverged):
        part = diverged[["epoch", "feature", "auc_p", "auc_p_holm"]]
        found.append(part.set_axis(["epoch", "of", "p", "p_holm"], axis=1).assign(test="auc"))
    if not found:
        return pd.DataFrame()
    whole = pd.concat(found, ignore_index=True).dropna(subset=["p"])
    return whole.assign(q=benjamini_hochberg(whole["p"].to_numpy(float)))


def _discoveries(frame: SweepFrame) -> dict[tuple[str, int, str], float]:
    """q by (test, epoch, of what)."""
    whole = _all_tests(frame)
    if whole.empty:
        return {}
    keys = zip(whole["test"], whole["epoch"].astype(int), whole["of"], strict=True)
    return dict(zip(keys, whole["q"], strict=True))


def _trial_table(frame: SweepFrame) -> TableView | None:
    trials = frame.trials.sort_values("target", kind="stable")
    first_last = sorted({*frame.measured_epochs[:1], *frame.measured_epochs[-1:]})
    shown = ft.headline(frame)[:1]
    extra = {
        f"{f.label}, {when(e)}": ft.features(ft.early_view(frame, e)).get(f.name)
        for f in shown
        for e in first_last
    }
    score, _ = frame.score
    columns = ["Trial", "State", "Final loss", "Lowest loss", score, *frame.sampled, *extra]
    rows = []
    for trial, line in trials.head(_MAX_TRIALS_SHOWN).iterrows():
        known = [math.nan if c is None else c.get(trial, math.nan) for c in extra.values()]
        rows.append(
            [
                str(trial),
                line["state"],
                words.significant(line["target"]),
                words.significant(line["best"]),
                words.significant(line["score"]),
                *(_setting(line[name]) for name in frame.sampled),
                *(words.number(v, 3) for v in known),
            ]
        )
    hidden = len(trials) - len(rows)
    note = f"{hidden} more are in tables/trials.csv." if hidden > 0 else ""
    numeric = [True, False, True, True, True, *[True] * (len(columns) - 5)]
    return _view("All trials, the best first", columns, rows, numeric, file="trials", note=note)


def _casualties(frame: SweepFrame) -> TableView | None:
    trials = frame.trials
    lost = trials[(trials["state"] != "complete") | trials["target"].isna()]
    rows = []
    for trial, line in lost.head(_MAX_TRIALS_SHOWN).iterrows():
        error = str(line["error"]).strip().splitlines()[-1] if line["error"] else ""
        if line["state"] == "diverged" and np.isfinite(line["diverged_at"] or math.nan):
            error = f"diverged at update {int(line['diverged_at'])}"
        elif line["state"] == "pruned":
            error = "stopped early by the pruner"
        elif line["state"] == "complete":
            error = "complete, but without a finite final loss"
        settings = ", ".join(f"{name} {_setting(line[name])}" for name in frame.sampled)
        rows.append([str(trial), line["state"], _epoch(line["last_epoch"]), error, settings])
    return _view(
        "Trials without a final loss",
        ("Trial", "State", "Last epoch", "Why", "Settings"),
        rows,
        (True, False, True, False, False),
        file="trials",
    )


def _divergence_table(frame: SweepFrame) -> TableView | None:
    table = divergence(frame)
    known = table.dropna(subset=["auc"]) if len(table) else table
    rows = [
        [
            when(int(line["epoch"])),
            line["label"],
            f"{line['num_diverged']} / {line['num_finite']}",
            f"{words.number(line['auc'])} [{words.number(line['auc_low'])}, "
            f"{words.number(line['auc_high'])}]",
            words.p_value(line["auc_p_holm"]),
        ]
        for _, line in known.iterrows()
        if int(line["epoch"]) in early_epochs(frame)
    ]
    return _view(
        "What separates trials that diverge later",
        ("When", "Feature", "Diverged / finite", "AUC", "p (Holm)"),
        rows,
        (False, False, True, True, True),
        file="divergence",
    )


def _foretold_divergence_table(frame: SweepFrame) -> TableView | None:
    table = divergence_scores(frame)
    known = table.dropna(subset=["auc"]) if len(table) else table
    rows = [
        [
            when(int(line["epoch"])),
            line["groups"],
            f"{line['num_diverged']} / {line['num_finite']}",
            f"{words.number(line['auc'])} [{words.number(line['auc_low'])}, "
            f"{words.number(line['auc_high'])}]",
        ]
        for _, line in known.iterrows()
        if int(line["epoch"]) in early_epochs(frame)
    ]
    return _view(
        "Later divergence foretold in held-out trials",
        ("When", "From", "Diverged / finite", "AUC"),
        rows,
        (False, False, True, True),
        file="divergence_foretold",
    )


def _view(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: Sequence[bool] | None = None,
    *,
    file: str = "",
    note: str = "",
) -> TableView | None:
    if not rows and not note:
        return None
    return TableView(caption, columns, rows, numeric or [False] * len(columns), file, note)


def _interval(line: pd.Series, column: str) -> str:
    return words.estimate(line[column], line[f"{column}_low"], line[f"{column}_high"])


def _setting(value: Any) -> str:
    is_float = isinstance(value, float | np.floating)
    return words.significant(float(value), 3) if is_float else str(value)


def _epoch(value: float) -> str:
    return str(int(value)) if math.isfinite(value) else "–"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _plain(tree: Any) -> Any:
    """Only what YAML knows: dicts, lists, plain values."""
    convert: Callable[[Any], Any] = _plain
    if isinstance(tree, Mapping):
        return {str(k): convert(v) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return [convert(v) for v in tree]
    return tree if isinstance(tree, (bool, int, float, str, type(None))) else str(tree)


def _png_size(picture: bytes) -> tuple[int, int]:
    return int.from_bytes(picture[16:20], "big"), int.from_bytes(picture[20:24], "big")
