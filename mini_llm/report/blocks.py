"""The page as a list of blocks, and two ways to write it: Markdown, and HTML without a script or a request."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from mini_llm.files import MADE_HERE
from mini_llm.report.svg import Picture, draw

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
body { color: #1b1b1b; background: #fff }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
td, th { border-bottom: 1px solid #ddd; padding: .25rem .6rem; text-align: right; white-space: nowrap }
td:first-child, th:first-child { text-align: left }
pre, blockquote { background: #f4f4f4; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; margin: 1rem 0 }
figure { margin: 1rem 0 }
svg { max-width: 100%; height: auto }
svg text { fill: currentColor }
.lead { font-size: 1.2rem }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #161616 }
  pre, blockquote { background: #242424 }
  td, th { border-color: #444 }
}
"""


@dataclass(frozen=True)
class Heading:
    """A section begins; level 1 is the title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Words:
    """A paragraph; the headline is the leading one."""

    text: str
    lead: bool = False


@dataclass(frozen=True)
class Items:
    """A list."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table; the first row is its head."""

    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Code:
    """Commands or settings, as they are."""

    text: str


@dataclass(frozen=True)
class Quote:
    """What a model wrote, as it is."""

    text: str


Block = Heading | Words | Items | Table | Code | Quote | Picture


def plain(text: str) -> str:
    """Return a text without control characters but newlines and tabs: a terminal may show the page."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def as_markdown(blocks: Sequence[Block]) -> str:
    """Return the page as Markdown; a picture becomes a table of some of its points."""
    return "\n\n".join(_markdown(block) for block in blocks).rstrip() + f"\n\n<!-- {MADE_HERE} -->\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_flat(block.text)}"
    if isinstance(block, Words):
        return f"**{_flat(block.text)}**" if block.lead else _flat(block.text)
    if isinstance(block, Items):
        return "\n".join(f"- {_flat(text)}" for text in block.texts)
    if isinstance(block, Code):
        fence = "`" * max(3, _longest_fence(block.text) + 1)
        return f"{fence}text\n{plain(block.text)}\n{fence}"
    if isinstance(block, Quote):
        fence = "`" * max(3, _longest_fence(block.text) + 1)
        return f"{fence}text\n{plain(block.text).strip()}\n{fence}"
    rows = block.points() if isinstance(block, Picture) else block.rows
    head, *rest = [[_flat(cell).replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rest]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _longest_fence(text: str) -> int:
    longest = run = 0
    for character in text:
        run = run + 1 if character == "`" else 0
        longest = max(longest, run)
    return longest


def _flat(text: str) -> str:
    """Return a text as one line in which Markdown finds no HTML."""
    return " ".join(plain(text).split()).replace("<", "&lt;")


def as_html(blocks: Sequence[Block], title: str) -> str:
    """Return the page as one HTML file: pictures inline, nothing fetched, nothing run."""
    body = "\n".join(_html(block) for block in blocks)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="generator" content="{MADE_HERE}">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{_safe(title)}</title>\n<style>{STYLE}</style>\n'
        f"</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{_safe(block.text)}</h{block.level}>"
    if isinstance(block, Words):
        return f'<p class="lead">{_safe(block.text)}</p>' if block.lead else f"<p>{_safe(block.text)}</p>"
    if isinstance(block, Items):
        return "<ul>" + "".join(f"<li>{_safe(text)}</li>" for text in block.texts) + "</ul>"
    if isinstance(block, Code):
        return f"<pre>{_safe(block.text)}</pre>"
    if isinstance(block, Quote):
        return f"<blockquote>{_safe(block.text.strip())}</blockquote>"
    if isinstance(block, Picture):
        return f"<figure>{draw(block)}</figure>"
    head, *rest = block.rows
    lines = ["<tr>" + "".join(f"<th>{_safe(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{_safe(cell)}</td>" for cell in row) + "</tr>" for row in rest]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _safe(text: str) -> str:
    return html.escape(plain(text))
