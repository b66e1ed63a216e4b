"""What reading found: files and documents, and what was left out and why, counted by kind. Nothing goes in silence."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Reading:
    """Counts of one pass over a corpus; `left_out` maps a kind to its number and `examples` to the first of it."""

    files: int = 0
    documents: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def leave_out(self, kind: str, example: object, number: int = 1) -> None:
        """Count something that is not read."""
        self.left_out[kind] = self.left_out.get(kind, 0) + number
        self.examples.setdefault(kind, str(example))

    def left(self) -> str:
        """Return what was left out: `2 hidden (a/.git)`."""
        return ", ".join(
            f"{n:,} {kind}" + f" ({self.examples[kind]})" * (kind in self.examples) for kind, n in self.left_out.items()
        )

    def line(self) -> str:
        """Return it as one line: `read 3 files, 20 documents; left out: 2 hidden (a/.git)`."""
        return f"read {self.files:,} files, {self.documents:,} documents; left out: {self.left() or 'nothing'}"


def encoding_without_mark(text: str) -> str | None:
    """Return what text was written in that is valid UTF-8 and has a control character at every other place; else None.

    In UTF-16 English has a NUL beside each letter, Cyrillic a 4; in UTF-32 each letter has two NULs or three. Only text
    with a NUL, which a space gives, is looked at.
    """
    if "\0" not in text:
        return None
    most = len(text[:8192]) / 4
    nulls = [text[first:8192:4].count("\0") for first in range(4)]
    for name, places, letter in (("UTF-32LE", (2, 3), 0), ("UTF-32BE", (0, 1), 3)):
        if all(nulls[place] >= 0.9 * most for place in places) and nulls[letter] <= 0.1 * most:
            return name
    odd, even = (sum(c < " " and c not in "\t\n\r" for c in text[first:8192:2]) for first in (1, 0))
    few, many = sorted((odd, even))
    if many < 0.6 * 2 * most or few > 0.6 * many:
        return None
    return "UTF-16LE" if odd > even else "UTF-16BE"
