"""docs/settings.md names every setting of the sections, with its default, and every range."""

import json
import re
from pathlib import Path

import pytest

from pipeline.config import SECTIONS, SETTINGS
from pipeline.listing import settings_of
from pipeline.space import KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")


def table_of(heading: str) -> dict[str, str]:
    """Setting → default, as the page has them; several may share a row."""
    part = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| `")]
    found: dict[str, str] = {}
    for names, default, *_ in rows:
        each, shared = re.findall(r"`(\w+)`", names), default.split(", ")
        found.update(zip(each, shared, strict=True))
    return found


@pytest.mark.parametrize("section", SETTINGS)
def test_every_setting_stands_there_with_its_default(section: str) -> None:
    expected = {}
    for name, default, _ in settings_of(SETTINGS[section]):
        value = json.loads(default)
        expected[name] = value if isinstance(value, str) else default
    if section == "trainer":
        expected["regularise"] = "none"
    assert table_of(section) == expected


def test_every_section_and_every_range_stands_there() -> None:
    for name in SECTIONS:
        assert f"`{name}`" in PAGE
    assert re.findall(r"^\| `\{(\w+): ", PAGE, re.MULTILINE) == list(KINDS)
