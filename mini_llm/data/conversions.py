"""How files of kinds that are not read become text: a command for each."""

from __future__ import annotations

from collections.abc import Iterable

TO_PARQUET = "import pyarrow.csv as c, pyarrow.parquet as p; p.write_table(c.read_csv('TABLE.csv'), 'TABLE.parquet')"
COMMANDS = {
    ".csv": f'python -c "{TO_PARQUET}"',
    ".html": "pandoc PAGE.html -t plain -o PAGE.txt",
    ".htm": "pandoc PAGE.htm -t plain -o PAGE.txt",
    ".epub": "pandoc BOOK.epub -t plain -o BOOK.txt",
    ".docx": "pandoc FILE.docx -t plain -o FILE.txt",
    ".pdf": "pdftotext FILE.pdf FILE.txt",
}


def conversions(suffixes: Iterable[str]) -> str:
    """Return how files with these suffixes become text, a command a line; nothing where no one is known."""
    return "\n".join(COMMANDS[suffix] for suffix in sorted({s.lower() for s in suffixes}) if suffix in COMMANDS)
