from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from analysis import markdown
from analysis import report as rp
from analysis.frame import SweepFrame
from analysis.sections import budget
from tests.analysis import synthetic

RENDERER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


class Words(HTMLParser):
    """The text of a page as a reader has it, without spaces, and its tables' cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.said, self.links, self.cells = "", [""], [""]
        self._muted = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._muted += tag in ("nav", "head")
        if tag in ("td", "th"):
            self.cells.append("")
        if tag == "a":
            self.links.append(str(dict(attrs)["href"]))
        if tag == "img":
            self.said += "".join(str(dict(attrs)["alt"]).split())

    def handle_endtag(self, tag: str) -> None:
        self._muted -= tag in ("nav", "head")

    def handle_data(self, data: str) -> None:
        if not self._muted:
            text = "".join(data.split())
            self.said += text
            self.cells[-1] += text


def rendered(text: str) -> str:
    return RENDERER.render(text)


def page(body: str) -> str:
    return f"<!DOCTYPE html><html><head><title>t</title></head><body>{body}</body></html>"


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "ORDERS", 1)
    monkeypatch.setattr(budget, "TRIALS", 5)


@pytest.mark.usefixtures("quick_pictures", "little")
def test_it_says_what_the_page_says(
    frames: dict[str, SweepFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(markdown, "MAX_ROWS", 1_000)
    written = rp.write_report(frames["few"], tmp_path / "html").read_text(encoding="utf-8")
    made = rp.write_report(frames["few"], tmp_path / "md", "md")
    assert made.name == "README.md"
    text = made.read_text(encoding="utf-8")
    ours, theirs = Words(rendered(text)), Words(written)
    # The terms of the facts get a colon, and nothing else is added or lost.
    assert ours.said.replace(":", "") == theirs.said.replace(":", "")
    assert [c for c in theirs.cells[1:] if c][:40] == [c for c in ours.cells[1:] if c][:40]
    beside = {p.relative_to(made.parent).as_posix() for p in made.parent.rglob("*.*")}
    assert 0 < text.count("](figures/") == written.count("<img ")
    assert {link for link in ours.links[1:] if "//" not in link} <= beside
    assert not (made.parent / "index.html").exists()
    assert "<div" not in text
    assert "base64" not in text


def test_whatever_is_in_a_cell_stays_in_it() -> None:
    awkward = [
        "a|b", "*x*", "_y_", "val_loss", "<b>", "`code`", "[l](m)", "$x$", "&lt;", "~~z~~",
        "1. one", "- dash", "# no heading", "back\\slash", "**", "![i](j)", "\\|",
    ]  # fmt: skip
    rows = "".join(
        f"<tr><th>{_html(text)}</th><td class='n'><code>{_html(text)}</code></td></tr>"
        for text in awkward
    )
    text = markdown.from_html(page(f"<table><tr><th>A</th><th class='n'>B</th></tr>{rows}</table>"))
    cells = Words(rendered(text)).cells[3:]
    wanted = [t.replace(" ", "") for t in awkward]
    assert [c.strip() for c in cells[0::2]] == wanted
    # A backslash before a bar cannot be said in a table's code, in this flavour.
    assert cells[1::2][:-1] == wanted[:-1]
    assert rendered(text).count("<tr>") == len(awkward) + 1
    assert "---: |" in text


def _html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


@pytest.mark.parametrize(
    "text", ["1. one", "- dash", "+ plus", "# head", "> quote", "===", "12) x"]
)
def test_a_paragraph_stays_a_paragraph(text: str) -> None:
    made = rendered(markdown.from_html(page(f"<p>{_html(text)}</p>")))
    assert made.startswith("<p>")
    assert Words(made).said == text.replace(" ", "")
    item = rendered(markdown.from_html(page(f"<ul><li>{_html(text)}</li></ul>")))
    assert item.count("<li>") == 1
    assert "<h1>" not in item
    assert "<blockquote>" not in item


def test_code_keeps_its_lines_and_fences() -> None:
    code = "a: 1\n  b: '```'\n- <x>"
    text = markdown.from_html(page(f"<pre><code>{_html(code)}</code></pre>"))
    assert text.startswith("````\n")
    assert f"<code>{_html(code).replace('>', '&gt;')}" in rendered(text)


def test_a_long_table_is_cut_and_says_where_the_rest_is() -> None:
    rows = "".join(f"<tr><th>{i}</th></tr>" for i in range(40))
    link = '<span>(<a href="tables/t.csv">CSV</a>)</span>'
    text = markdown.from_html(
        page(f"<table><caption><span>T {link}</span></caption><tr><th>A</th></tr>{rows}</table>")
    )
    assert f"{40 - markdown.MAX_ROWS} more rows are in [tables/t.csv](tables/t.csv)" in text
    assert f"| {markdown.MAX_ROWS - 1} |" in text
    assert f"| {markdown.MAX_ROWS} |" not in text
    assert "**T** ([CSV](tables/t.csv))" in text
    # Where there is no file with the rest, nothing is held back.
    assert "| 39 |" in markdown.from_html(page(f"<table><tr><th>A</th></tr>{rows}</table>"))


def test_an_unknown_tag_is_refused() -> None:
    with pytest.raises(ValueError, match="no Markdown is known for <video>"):
        markdown.from_html(page("<video></video>"))
    with pytest.raises(ValueError, match="<video> within a line"):
        markdown.from_html(page("<p>x <video></video></p>"))


@pytest.mark.usefixtures("quick_pictures", "little")
def test_every_section_has_its_markdown(frames: dict[str, SweepFrame], tmp_path: Path) -> None:
    text = rp.write_report(frames["planted"], tmp_path / "out", "md").read_text(encoding="utf-8")
    for section in rp.SECTIONS.values():
        assert f"\n## {section.title}\n" in text
    assert "<details>" in text
    assert rendered(text).count("<table>") >= 10
    # All tables have as many cells a row as their heads.
    for block in text.split("\n\n"):
        if block.startswith("| "):
            assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1
    lost = pd.read_csv(tmp_path / "out" / "tables" / "trials.csv")
    assert f"{len(lost) - markdown.MAX_ROWS} more rows are in" in text


def test_what_users_named_is_no_markup(tmp_path: Path) -> None:
    trials = synthetic.sweep("null", 3, failed=1)
    object.__setattr__(trials[2].header, "error", "Traceback\n<img src=x> | **bold** [a](b)")
    frame = SweepFrame.from_records(synthetic.info(num_trials=3), trials)
    text = rp.write_report(frame, tmp_path / "out", "md").read_text(encoding="utf-8")
    shown = rendered(text)
    assert "&lt;img src=x&gt; | **bold** [a](b)" in shown
    assert "<strong>bold" not in shown
