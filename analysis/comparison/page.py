"""The page that compares several sweeps, each sweep's own report in a folder beside it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.comparison import tables
from analysis.comparison.findings import Findings, findings
from analysis.comparison.forest import Forest
from analysis.comparison.summary import Summary, summary
from analysis.frame import AnalysisError, SweepFrame
from analysis.pages import (
    FILES,
    FigureView,
    Form,
    environment,
    macros,
    replacing,
    save_page,
    save_picture,
    save_table,
)
from analysis.report import fill
from analysis.sections.base import Section

OWN = "sweeps"
"""The folder of the sweeps' own reports."""

SECTIONS: dict[str, Section] = {
    "each": Section(
        "What each sweep says",
        """\
<p>Each on its own page, by the strongest of its features and epochs that passed its tests; the \
comparison above looks at one feature, fixed beforehand, at one moment.</p>
<ul>
{% for sweep, link in each %}
<li><a href="{{ link }}">{{ sweep.name }}</a>: {{ sweep.verdict.headline }}</li>
{% endfor %}
</ul>
""",
        short="Each sweep",
    ),
    "forest": Section("Sweep by sweep", "{{ pictures(figures) }}\n"),
    "heterogeneity": Section(
        "Do they differ more than by chance?",
        """\
{% if heterogeneity %}
<p>Cochran’s Q asks whether the correlations of the sweeps differ by more than their own \
uncertainty; I² is the share of their spread that is not chance (interval after Higgins and \
Thompson, from three sweeps on). Both use Fisher’s z with the weight of each sweep’s own interval. \
With few sweeps a Q that is not significant is no proof of agreement. Two intervals that overlap \
may still differ; two that do not, do.</p>
{{ table(heterogeneity) }}
{% else %}
<p class="empty">No feature is known in two sweeps.</p>
{% endif %}
""",
        short="Heterogeneity",
    ),
    "budget": Section(
        "What pruning would save",
        """\
{% if budget %}
<p>Each sweep played again as if a pruner had watched; how is said on the sweeps’ own pages. The \
brackets are of orders of trials within one sweep.</p>
{{ table(budget) }}
{% else %}
<p class="empty">Of none of these sweeps can it be told.</p>
{% endif %}
""",
        short="Budget",
    ),
    "differences": Section(
        "What differs between them",
        """\
{% if differences %}
<p>Settings, ranges, measurements and versions that are not the same in all sweeps; where and how \
fast they ran is left out, since it changes no result. Any of these may be why the sweeps \
disagree, and agreement holds only over what varies here.</p>
<div class="wide">{{ table(differences) }}</div>
{% else %}
<p>Nothing: the sweeps were made alike.</p>
{% endif %}
""",
        short="Differences",
    ),
    "reproduce": Section(
        "How to reproduce",
        """\
<p>The pages of the sweeps say how to run them again, with their settings, seeds, versions and \
hashes. This one is written by</p>
<pre tabindex="0"><code>lyapsweep report {{ names | join(" ") }}</code></pre>
""",
    ),
}


def write_comparison(
    frames: Iterable[SweepFrame], out: Path, form: Form = "html"
) -> tuple[Path, str]:
    """Writes the comparison into the folder `out`, and each sweep's report into `out`/sweeps.

    The frames are taken one after the other, and what is compared is read off the tables that each
    one's report has just made. Returns the path of the page and its headline. Raises AnalysisError
    for fewer than two sweeps or for one twice, and like `write_report`; OSError.
    """
    with replacing(out) as folder:
        sweeps = []
        for frame in frames:
            own = folder / OWN / frame.info.name
            if own.exists():
                raise AnalysisError(f"sweep {frame.info.name!r}: is to be compared with itself")
            own.mkdir(parents=True)
            fill(frame, own, form, above=f"../../{FILES[form]}")
            sweeps.append(summary(frame))
        if len(sweeps) < 2:
            raise AnalysisError(f"a comparison takes two sweeps or more, got {len(sweeps)}")
        found = findings(sweeps)
        _fill(sweeps, found, folder, form)
    return out.resolve() / FILES[form], found.headline


def _fill(sweeps: Sequence[Summary], found: Findings, folder: Path, form: Form) -> None:
    names = [sweep.name for sweep in sweeps]
    links = [f"{OWN}/{name}/{FILES[form]}" for name in names]
    made = {
        "side_by_side": tables.main_numbers(sweeps, found.feature),
        "heterogeneity": tables.heterogeneity(sweeps),
        "budgets": tables.budgets(sweeps),
        "differences": tables.differences(sweeps),
    }
    for name, table in made.items():
        if not table.empty:
            save_table(table, folder, name)
    content = {
        "names": names,
        "each": list(zip(sweeps, links, strict=True)),
        "heterogeneity": tables.heterogeneity_view(made["heterogeneity"]),
        "budget": tables.budget_view(made["budgets"], names),
        "differences": tables.differences_view(made["differences"], names),
        "figures": [_forest(sweeps, folder)],
    }
    page = {
        "names": names,
        "verdict": found,
        "table": macros()["table"],
        "main": tables.main_view(made["side_by_side"], found.label, links),
        "sections": [(name, one, _body(one, content)) for name, one in SECTIONS.items()],
    }
    save_page(folder, "comparison.html.j2", page, form, {"sweeps": names})


def _body(section: Section, content: Mapping[str, Any]) -> str:
    return environment().from_string(section.body).render(macros(), **content)


def _forest(sweeps: Sequence[Summary], folder: Path) -> FigureView:
    figure = Forest()
    table: pd.DataFrame = figure.data(sweeps)
    picture = b""
    if not table.empty:
        picture = figure.png(table)
        save_table(table, folder, figure.name)
    return save_picture(picture, folder, figure.name, figure.title, figure.caption)
