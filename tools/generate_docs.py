"""The pages that are made from the code: file maps from module docstrings, docs/cli.md from the command line's help.

python tools/generate_docs.py            write them (make docs)
python tools/generate_docs.py --check    say which are out of date, and exit with 1
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mini_llm"
BEGIN, END = "<!-- file map: made by `make docs` -->", "<!-- file map: end -->"
PICTURE, PICTURE_END = "<!-- imports: made by `make docs` -->", "<!-- imports: end -->"


def main() -> int:
    """Write what differs, or with --check only name it; return the exit code."""
    stale = {path: text for path, text in pages().items() if not path.exists() or path.read_text("utf-8") != text}
    for path, text in stale.items():
        name = path.relative_to(ROOT).as_posix()
        if "--check" in sys.argv[1:]:
            print(f"{name} is out of date: run `make docs`", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}", file=sys.stderr)
    return 1 if stale and "--check" in sys.argv[1:] else 0


def pages() -> dict[Path, str]:
    """Return every generated page as it should be."""
    return {
        ROOT / "README.md": with_map(ROOT / "README.md", folder_map()),
        PACKAGE / "README.md": with_picture(with_map(PACKAGE / "README.md", file_map())),
        ROOT / "docs" / "cli.md": cli_page(),
    }


# --- file maps -------------------------------------------------------------------------------------------------------


def with_map(page: Path, lines: list[str]) -> str:
    """Return the page's text with `lines` between its two markers."""
    text = page.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1, f"{page} must have each marker of the file map once"
    before, _, rest = text.partition(BEGIN)
    return before + "\n".join([BEGIN, *lines, END]) + rest.partition(END)[2]


def folder_map() -> list[str]:
    """Return a line for each package: its lesson, and what it is about."""
    return [
        f"- [mini_llm/{folder.name}](mini_llm/{folder.name}/README.md): {idea(folder / '__init__.py')}"
        for folder in packages()
    ]


def file_map() -> list[str]:
    """Return a line for each module: those of the package itself, then each folder's."""
    lines = [entry(path) for path in modules(PACKAGE)]
    for folder in packages():
        lines += ["", f"**[{folder.name}/]({folder.name}/README.md)** {idea(folder / '__init__.py')}", ""]
        lines += [entry(path) for path in modules(folder)]
        for room in sorted(path.parent for path in folder.glob("*/__init__.py")):
            lines += [f"- **{room.name}/** {idea(room / '__init__.py')}"]
            lines += [f"  {entry(path)}" for path in modules(room)]
    return lines


def packages() -> list[Path]:
    """Return the folders of mini_llm in the order in which data passes them, later ones by name."""
    order = ("tokenizer", "data", "model", "train", "inference", "tune", "eval", "serve", "export", "plan", "plot")
    found = [path.parent for path in PACKAGE.glob("*/__init__.py")]
    return sorted(found, key=lambda p: (order.index(p.name) if p.name in order else len(order), p.name))


def modules(folder: Path) -> list[Path]:
    """Return the modules of one folder by name, without those that only tie others together."""
    return [path for path in sorted(folder.glob("*.py")) if not path.name.startswith("__")]


def entry(path: Path) -> str:
    """Return a module's line of the map."""
    return f"- [{path.name}]({path.relative_to(PACKAGE).as_posix()}): {idea(path)}"


def idea(path: Path) -> str:
    """Return the first sentence of a module's docstring, its first paragraph at most."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, f"{path} has no docstring to say its idea"
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    return re.split(r"(?<=[.?!]) (?=[A-Z])", paragraph)[0]


# --- the picture of imports ------------------------------------------------------------------------------------------


def with_picture(text: str) -> str:
    """Return the text with the picture of today's imports between its two markers."""
    assert text.count(PICTURE) == text.count(PICTURE_END) == 1, "the page must have each marker of the picture once"
    before, _, rest = text.partition(PICTURE)
    lines = ["```mermaid", "flowchart TB", *(f"    {a} --> {b}" for a, b in arrows()), "```"]
    return before + "\n".join([PICTURE, *lines, PICTURE_END]) + rest.partition(PICTURE_END)[2]


def arrows() -> list[tuple[str, str]]:
    """Return which folder (or checkpoint.py) imports which, without those that a longer way says already."""
    parts = {folder.name for folder in packages()} | {"checkpoint"}
    below = {part: {other for other in imported_parts(part) if other in parts - {part}} for part in sorted(parts)}

    def reach(part: str) -> set[str]:
        return below[part].union(*(reach(other) for other in below[part])) if below[part] else set()

    return [
        (part, other)
        for part, others in below.items()
        for other in sorted(others)
        if not any(other in reach(between) for between in others - {other})
    ]


def imported_parts(part: str) -> set[str]:
    """Return the names that a folder or module of the package imports from `mini_llm`, also inside functions."""
    paths = [PACKAGE / f"{part}.py"] if (PACKAGE / f"{part}.py").exists() else sorted((PACKAGE / part).rglob("*.py"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    return set(re.findall(r"^\s*(?:from|import) mini_llm\.(\w+)", text, re.MULTILINE))


# --- the command line ------------------------------------------------------------------------------------------------


def cli_page() -> str:
    """Return docs/cli.md."""
    from typer.main import get_command

    from mini_llm.cli import app

    head = (
        "# The command line",
        "",
        "What `mini-llm VERB --help` says, on one page. `make docs` writes it from the code.",
    )
    return "\n".join([*head, *describe(get_command(app), "mini-llm", None)]) + "\n"


def describe(command, name: str, parent) -> Iterator[str]:  # type: ignore[no-untyped-def]
    """Yield the lines for a command and then for each of its own commands."""
    context = command.context_class(command, info_name=name, parent=parent, **command.context_settings)
    title = context.command_path
    yield from ("", f"## {title}", "", *(command.help or "").strip().splitlines(), "")
    yield from ("```text", " ".join([title, *command.collect_usage_pieces(context)]), "```")
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    if any(records):
        yield ""
    for words, explanation in filter(None, records):
        yield f"- `{words}`: {escaped(explanation)}" if explanation else f"- `{words}`"
    for child in getattr(command, "commands", {}).values():
        yield from describe(child, child.name, context)


def escaped(text: str) -> str:
    """Keep Markdown from reading a metavariable as a tag or a default as a link."""
    return re.sub(r"([\[\]<>*_])", r"\\\1", " ".join(text.split()))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
