"""How to run the sweep again: commands, versions, the resolved settings."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from analysis import words
from analysis.frame import SweepFrame
from analysis.sections.base import Section, TableView, table_view

_MOST_VALUES = 4


def settings(frame: SweepFrame) -> str:
    """The resolved settings of the sweep as YAML."""
    return yaml.safe_dump(_plain(frame.info.config), sort_keys=False, allow_unicode=True)


def _identity(frame: SweepFrame) -> dict[str, str]:
    """What tells this sweep from any other."""
    found = {
        "sweep id": frame.info.sweep_id,
        "sha256 of the settings": frame.info.config_hash,
        "seed of the sweep": str(frame.info.config.get("seed", "–")),
        "seeds of the trials": "tables/trials.csv, column seed",
    }
    plan = getattr(frame.registration, "sha256", "")  # it may be the error of reading it
    return {**found, "sha256 of the plan": str(plan)} if plan else found


def _versions(frame: SweepFrame) -> TableView | None:
    own = _flat(frame.info.provenance)
    trials = {
        name if name not in own else f"trials: {name}": value
        for name, value in _of_trials(frame).items()
        if own.get(name) != value
    }
    merged = _identity(frame) | own | trials
    rows = [[name, value] for name, value in merged.items()]
    return table_view("Hashes, seeds, versions and machine", ("What", "Value"), rows)


def _of_trials(frame: SweepFrame) -> dict[str, str]:
    """What the trials were made with; where they differ, each value and how many had it."""
    each = [_flat(header.provenance) for header in frame.headers]
    found: dict[str, Counter[str]] = {}
    for one in each:
        for name, value in one.items():
            found.setdefault(name, Counter())[value] += 1
    return {name: _told(values, len(each)) for name, values in found.items()}


def _told(values: Counter[str], num_trials: int) -> str:
    (most, count), *others = values.most_common(_MOST_VALUES)
    if count == num_trials:
        return most
    told = [f"{value} ({words.count(n, 'trial')})" for value, n in [(most, count), *others]]
    hidden = len(values) - len(told)
    return "; ".join([*told, f"{hidden:,} more values"] if hidden else told)


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


def _content(frame: SweepFrame) -> dict[str, Any]:
    return {
        "name": frame.info.name,
        "is_imported": bool(frame.imported_from),
        "example_trial": int(frame.trials.index[0]),
        "versions": _versions(frame),
        "config": settings(frame),
    }


_BODY = """\
{% if is_imported %}
<p>The spectra were measured by others. What of their tables was read how, and the hashes of the files, are
in <a href="config.yaml">config.yaml</a>. The first command reads them again, the second writes this page.</p>
<pre tabindex="0"><code>lyapsweep import-spectra --spectra SPECTRA.parquet --losses LOSSES.parquet --name {{ name }}-again
lyapsweep report {{ name }}</code></pre>
{% else %}
<p>The resolved settings lie beside this page as <a href="config.yaml">config.yaml</a>. The first command runs
the sweep again, the second reruns one trial and compares it with its records, the third writes this page.</p>
<pre tabindex="0"><code>lyapsweep sweep config.yaml --name {{ name }}-again
lyapsweep trial {{ name }} {{ example_trial }}
lyapsweep report {{ name }}</code></pre>
{% endif %}
<div class="wide">{{ table(versions) }}</div>
<details><summary>Settings</summary>
<pre tabindex="0"><code>{{ config }}</code></pre>
</details>
"""  # noqa: E501

SECTION = Section("How to reproduce", _BODY, _content)
