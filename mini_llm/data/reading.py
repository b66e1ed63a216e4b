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


def looks_like_utf16(text: str) -> bool:
    """Tell whether text was UTF-16 without a mark: valid UTF-8, with a control character at every other place.

    English gives a NUL for each letter, Cyrillic a 4. Only text with a NUL, which a space gives, is looked at.
    """
    if "\0" not in text:
        return False
    odd, even = (sum(c < " " and c not in "\t\n\r" for c in text[first:8192:2]) for first in (1, 0))
    half = len(text[:8192]) / 2
    few, many = sorted((odd, even))
    return many >= 0.6 * half and few <= 0.6 * many
