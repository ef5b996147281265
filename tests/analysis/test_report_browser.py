"""The pages in headless Chromium: at three widths, in both themes, and printed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from analysis.comparison.page import write_comparison
from analysis.figures import base
from analysis.frame import SweepFrame
from analysis.sections import budget
from tests.analysis import browser, synthetic
from tests.analysis.browser import Browser

WIDTHS = (360, 768, 1280)
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
PAPER = 717  # CSS pixels between the margins of an A4 page
PAGES = ("index.html", "sweeps/a/index.html")

pytestmark = pytest.mark.skipif(
    browser.found() is None, reason=f"none of {', '.join(browser.NAMES)} is installed here"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison, and beside it the report of a sweep with some of everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "ORDERS", 2)
        patch.setattr(budget, "TRIALS", 12)
        patch.setattr(base, "DPI", 60)
        frames = [
            SweepFrame.from_records(synthetic.info("a", 30), _trials("a")),
            SweepFrame.from_records(synthetic.info("b", 20), synthetic.sweep("null", 20, name="b")),
        ]
        page, _ = write_comparison(frames, tmp_path_factory.mktemp("pages") / "out")
    return page.parent


def _trials(name: str) -> list[Any]:
    return synthetic.sweep("planted", 30, diverged=6, failed=1, name=name)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = browser.found()
    assert executable
    with Browser(executable, tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core, of the pinned package that carries it."""
    package = pytest.importorskip("axe_core_python")
    return (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


def unfold(chromium: Browser) -> None:
    chromium.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")


def overflow(chromium: Browser) -> int:
    """CSS pixels by which the page is wider than the window."""
    found: int = chromium.evaluate(
        "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth) - innerWidth"
    )
    return found


def faults(chromium: Browser, axe: str) -> list[str]:
    """What axe-core finds serious or critical."""
    chromium.evaluate(axe + "; 0")
    found: list[str] = chromium.evaluate(
        "axe.run({resultTypes: ['violations'], preload: false}).then(r => r.violations"
        ".filter(v => v.impact === 'serious' || v.impact === 'critical')"
        ".flatMap(v => v.nodes.map(n => `${v.id}: ${n.target} ${n.failureSummary}`)))"
    )
    return found


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_on_a_screen(
    page: str,
    width: int,
    theme: Literal["light", "dark"],
    folder: Path,
    chromium: Browser,
    axe: str,
) -> None:
    chromium.look_as(width, theme, "screen")
    chromium.open(folder / page)
    unfold(chromium)
    assert overflow(chromium) == 0
    assert faults(chromium, axe) == []
    assert chromium.complaints == []
    asked = {url.split(":")[0] for url in chromium.requests}
    assert asked - {"data"} == {"file"}  # data: are the pictures within the page
    ground = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (theme == "light")


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("page", PAGES)
def test_on_paper(
    page: str, theme: Literal["light", "dark"], folder: Path, chromium: Browser
) -> None:
    chromium.look_as(PAPER, theme, "print")
    chromium.open(folder / page)
    assert overflow(chromium) == 0
    # Nothing scrolls on paper, so nothing may be wider than it.
    wide = chromium.evaluate(
        "[...document.querySelectorAll('table, img, pre')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
        ".map(e => (e.caption || e).textContent.slice(0, 60))"
    )
    assert wide == []
    assert chromium.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    folded = "[...document.querySelectorAll('details:not([open]) > *:not(summary)')]"
    assert chromium.evaluate(f"{folded}.every(e => e.checkVisibility())")
    printed = chromium.pdf()
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") >= 2
    assert chromium.complaints == []


def test_what_these_tests_look_for_is_found(
    folder: Path, chromium: Browser, axe: str, tmp_path: Path
) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(
        text.replace(
            "<footer>",
            '<footer style="color: #ccc"><div style="width: 2000px">wide</div><img src="gone.png">'
            "<script>console.error('x'); fetch('http://127.0.0.1:9/')</script>",
        ),
        encoding="utf-8",
    )
    chromium.look_as(360, "light", "screen")
    chromium.open(broken)
    assert overflow(chromium) > 1000
    found = " ".join(faults(chromium, axe))
    assert "color-contrast" in found
    assert "image-alt" in found
    assert any("'x'" in line for line in chromium.complaints)
    assert any(url.startswith("http:") for url in chromium.requests)
