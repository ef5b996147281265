"""The report's HTML as GitHub-flavoured Markdown: the same words and tables, from one source.

It knows the tags that our templates use and refuses others, so that nothing is lost unseen.
https://github.github.com/gfm/
"""

import html
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

MAX_ROWS = 25
"""A longer table that lies beside the page as CSV is cut to so many rows, and says so."""

_VOID = frozenset({"meta", "img", "br", "link"})
_BOXES = frozenset({"html", "body", "header", "main", "footer", "section", "div", "figure"})
_LEFT_OUT = frozenset({"head", "nav"})  # a code host makes its own list of headings
_SPECIAL = re.compile(r"([\\`*\[\]<>|~$])")
# Inside a word an underscore is no emphasis in this flavour, and val_loss stays readable.
_UNDERSCORE = re.compile(r"(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")
# What would make a list, a heading or a rule of a paragraph.
_AT_START = re.compile(r"^(\d{1,9})([.)])(?=\s|$)|^([-+#=])")


@dataclass
class _Node:
    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: "list[_Node | str]" = field(default_factory=list)

    def nodes(self) -> "list[_Node]":
        return [c for c in self.children if isinstance(c, _Node)]

    def found(self, tag: str) -> "Iterator[_Node]":
        """All nodes of a tag below this one, in their order."""
        for node in self.nodes():
            if node.tag == tag:
                yield node
            else:
                yield from node.found(tag)

    @property
    def text(self) -> str:
        """All text below, as it is."""
        return "".join(c if isinstance(c, str) else c.text for c in self.children)


class _Tree(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.root = _Node("")
        self._open = [self.root]
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = _Node(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(node)
        if tag not in _VOID:
            self._open.append(node)

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)


def from_html(page: str) -> str:
    """Raises ValueError for a tag that it does not know."""
    return "\n\n".join(_blocks(_Tree(page).root)) + "\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, wherever in a paragraph it stands."""
    text = _SPECIAL.sub(r"\\\1", text).replace("&", "&amp;")
    return _UNDERSCORE.sub(r"\\_", text)


def _blocks(node: _Node) -> list[str]:
    """The blocks below a node; text between them becomes paragraphs."""
    found: list[str] = []
    loose: list[_Node | str] = []
    for child in [*node.children, None]:
        if isinstance(child, str) or (child is not None and child.tag in _INLINE):
            loose.append(child)
            continue
        found += _paragraph(_Node("p", children=loose))
        loose = []
        if child is not None and child.tag not in _LEFT_OUT:
            found += _block(child)
    return found


def _block(node: _Node) -> list[str]:
    if node.tag in _BOXES:
        return _blocks(node)
    if node.tag not in _BLOCK:
        raise ValueError(f"no Markdown is known for <{node.tag}>; there is for {_known()}")
    return _BLOCK[node.tag](node)


def _known() -> str:
    return ", ".join(sorted({*_BOXES, *_BLOCK, *_INLINE}))


def _paragraph(node: _Node) -> list[str]:
    text = _inline(node)
    if not text:
        return []
    if "headline" in node.attributes.get("class", "").split():
        return [f"**{text}**"]
    return [_AT_START.sub(lambda m: f"{m[1]}\\{m[2]}" if m[1] else f"\\{m[3]}", text)]


def _heading(node: _Node) -> list[str]:
    return [f"{'#' * int(node.tag[1])} {_inline(node)}"]


def _list(node: _Node) -> list[str]:
    return ["\n".join(f"- {''.join(_paragraph(item))}" for item in node.nodes())]


def _facts(node: _Node) -> list[str]:
    lines = []
    for child in node.nodes():
        if child.tag == "dt":
            lines.append(f"- **{_inline(child)}**: ")
        else:
            lines[-1] += _inline(child)
    return ["\n".join(lines)]


def _fenced(node: _Node) -> list[str]:
    text = node.text.strip("\n")
    fence = _fence(text, 3)
    return [f"{fence}\n{text}\n{fence}"]


def _folded(node: _Node) -> list[str]:
    """HTML again: Markdown has no such thing, and its hosts let it pass."""
    head, *rest = node.nodes()
    is_open = " open" if "open" in node.attributes else ""
    words = html.escape(" ".join(head.text.split()), quote=False)
    inside = _blocks(_Node("div", children=list(rest)))
    return [f"<details{is_open}><summary>{words}</summary>", *inside, "</details>"]


def _table(node: _Node) -> list[str]:
    head, *rows = [
        [(_cell(cell), "n" in cell.attributes.get("class", "").split()) for cell in row.nodes()]
        for row in node.found("tr")
    ]
    links = {link.text: link.attributes["href"] for link in node.found("a")}
    hidden = len(rows) - MAX_ROWS if "CSV" in links else 0
    lines = [
        [text for text, _ in head],
        ["---:" if is_number else "---" for _, is_number in head],
        *([text for text, _ in row] for row in rows[: MAX_ROWS if hidden > 0 else None]),
    ]
    found = [_caption(caption) for caption in node.found("caption")]
    found.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    if hidden > 0:
        found.append(f"{hidden:,} more rows are in [{links['CSV']}]({links['CSV']}).")
    return found


def _cell(node: _Node) -> str:
    return re.sub(r"(?<!\\)\|", r"\|", _inline(node))  # left over in code


def _caption(node: _Node) -> str:
    """Bold, but for the links that follow it."""
    (title,) = node.nodes()
    words = [c for c in title.children if isinstance(c, str)]
    links = " ".join(_inline(c) for c in title.nodes())
    return f"**{_inline(_Node('p', children=list(words)))}** {links}".strip()


def _inline(node: _Node) -> str:
    parts = [escaped(c) if isinstance(c, str) else _part(c) for c in node.children]
    return " ".join("".join(parts).split())


def _part(node: _Node) -> str:
    if node.tag not in _INLINE:
        raise ValueError(f"no Markdown is known for <{node.tag}> within a line")
    return _INLINE[node.tag](node)


def _link(node: _Node) -> str:
    target = node.attributes["href"]
    for image in node.found("img"):  # the page holds the picture itself, and links its file
        return f"![{escaped(image.attributes['alt'])}]({target})"
    # The ids of headings are a code host's own affair: a link within the page would lead nowhere.
    return _inline(node) if target.startswith("#") else f"[{_inline(node)}]({target})"


def _code(node: _Node) -> str:
    text = " ".join(node.text.split())
    fence = _fence(text, 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _fence(text: str, least: int) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * max(least, longest + 1)


_BLOCK: dict[str, Callable[[_Node], list[str]]] = {
    "p": _paragraph,
    "figcaption": _paragraph,
    "h1": _heading,
    "h2": _heading,
    "h3": _heading,
    "ul": _list,
    "dl": _facts,
    "pre": _fenced,
    "details": _folded,
    "table": _table,
}
_INLINE: dict[str, Callable[[_Node], str]] = {
    "a": _link,
    "code": _code,
    "span": _inline,
    "strong": lambda node: f"**{_inline(node)}**",
    "em": lambda node: f"*{_inline(node)}*",
    "br": lambda _: " ",
}
