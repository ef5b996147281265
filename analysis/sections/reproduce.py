"""How to run the sweep again: commands, versions, the resolved settings."""

from collections.abc import Callable, Mapping
from typing import Any

import yaml

from analysis.frame import SweepFrame
from analysis.sections.base import Section, TableView, table_view


def settings(frame: SweepFrame) -> str:
    """The resolved settings of the sweep as YAML."""
    return yaml.safe_dump(_plain(frame.info.config), sort_keys=False, allow_unicode=True)


def _versions(frame: SweepFrame) -> TableView | None:
    merged = {**_flat(frame.headers[0].provenance), **_flat(frame.info.provenance)}
    rows = [[name, value] for name, value in merged.items()]
    return table_view("Versions and machine", ("What", "Value"), rows)


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
<pre><code>lyapsweep import-spectra --spectra SPECTRA.parquet --losses LOSSES.parquet --name {{ name }}-again
lyapsweep report {{ name }}</code></pre>
{% else %}
<p>The resolved settings lie beside this page as <a href="config.yaml">config.yaml</a>. The first command runs
the sweep again, the second reruns one trial and compares it with its records, the third writes this page.</p>
<pre><code>lyapsweep sweep config.yaml --name {{ name }}-again
lyapsweep trial {{ name }} {{ example_trial }}
lyapsweep report {{ name }}</code></pre>
{% endif %}
<div class="wide">{{ table(versions) }}</div>
<details><summary>Settings</summary>
<pre><code>{{ config }}</code></pre>
</details>
"""  # noqa: E501

SECTION = Section("How to reproduce", _BODY, _content)
