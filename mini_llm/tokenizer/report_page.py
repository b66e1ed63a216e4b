"""The tokenizer report as a Markdown page, with the cuts both in colours and as plain text.

Colours are HTML: editors and browsers show them; where style is taken away, as on GitHub, each token keeps the frame of
`<code>`. The plain text below has a bar at each cut, for terminals and for readers who see no colours.
"""

from __future__ import annotations

from collections.abc import Sequence

from mini_llm.files import MADE_HERE
from mini_llm.tokenizer.report import BOUNDARY, Measures, Subject, pieces, rows
from mini_llm.tokenizer.samples import SAMPLES

GROUNDS = ("#cfe6f7", "#fde3b8", "#d3efdf", "#f3d9e8")
NOTES = """\
- **Bytes per token**: how much text one token carries; more is shorter sequences. **Tokens per word**: words are what
  white space parts, so it says little for scripts without spaces.
- **Byte-fallback tokens**: those that hold a single byte or a part of a character: text that the vocabulary does not
  know.
- **Unused pieces**: pieces, bytes and special tokens aside, that this text never needed; a short text needs few.
- **Texts that come back**: `decode(encode(text)) == text`, to the letter.
"""
LEGEND = "`·` is a space, `⏎` a line end, `⇥` a tab, `⟨F0⟩` a byte."


def page(subjects: Sequence[Subject], found: Sequence[Measures], source: str) -> str:
    """Return the page."""
    head, *body = ([_cell(cell) for cell in row] for row in rows(found))
    table = [f"| {' | '.join(head)} |", f"|---|{'---:|' * len(found)}", *(f"| {' | '.join(row)} |" for row in body)]
    examples = [part for kind, text in SAMPLES.items() for part in (f"### {kind}", *_example(subjects, text))]
    parts = [
        "# Tokenizers side by side",
        f"Measured on {_cell(source)}; bytes per token by kind, and the cuts, on the built-in samples.",
        "\n".join(table),
        NOTES.rstrip(),
        "## How they cut",
        LEGEND,
        *examples,
        f"<!-- {MADE_HERE} -->",
    ]
    return "\n\n".join(parts) + "\n"


def _example(subjects: Sequence[Subject], text: str) -> list[str]:
    cuts = {subject.name: pieces(subject, text) for subject in subjects}
    coloured = [f"<p><b>{_escape(name)}</b>, {len(cut)} tokens<br>{_colour(cut)}</p>" for name, cut in cuts.items()]
    width = max(map(len, cuts))
    plain = "\n".join(f"{name:<{width}}  {BOUNDARY.join(cut)}" for name, cut in cuts.items())
    return [*coloured, f"````text\n{plain}\n````"]


def _colour(cut: Sequence[str]) -> str:
    return "".join(
        f'<code style="background:{GROUNDS[i % len(GROUNDS)]};color:#111;padding:1px 2px">{_escape(piece)}</code><wbr>'
        for i, piece in enumerate(cut)
    )


def _escape(text: str) -> str:
    """Write all ASCII but letters and digits as entities, which neither HTML nor Markdown takes for a sign."""
    return "".join(c if c.isalnum() or not c.isascii() else f"&#{ord(c)};" for c in text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
