"""What lists settings for people is whole: docs/settings.md, and the confs that help names."""

import json
import re
from pathlib import Path

import pytest

from pipeline.cli import ConfArgument
from pipeline.config import SECTIONS, SETTINGS
from pipeline.listing import settings_of
from pipeline.space import KINDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")


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


def test_help_names_every_conf_we_ship() -> None:
    (argument,) = ConfArgument.__metadata__
    named = re.findall(r"\w+", argument.help.partition("ship: ")[2].replace(" or ", " "))
    assert sorted(named) == sorted(path.stem for path in (ROOT / "conf").glob("*.yaml"))
