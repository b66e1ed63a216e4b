"""The files below a folder, links followed: however links and patterns are laid out, each folder is met once."""

from __future__ import annotations

import fnmatch
import glob
import os
from pathlib import Path

from mini_llm.data.reading import Reading
from mini_llm.errors import UserError
from mini_llm.user_files import kind_of, reason, shown


def walk(folder: Path, count: Reading) -> list[Path]:
    """Return the files below `folder`; what is passed over is counted.

    Raises:
        UserError: a folder cannot be read.
    """
    files: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        inside = waiting.pop()
        try:
            status = inside.stat()
            names = sorted(os.listdir(inside))
        except OSError as problem:
            raise UserError(f"cannot read the folder {shown(inside)}: {reason(problem)}") from None
        if (status.st_dev, status.st_ino) in seen:
            count.leave_out("links to folders that are read already", inside)
            continue
        seen.add((status.st_dev, status.st_ino))
        folders = []
        for path in (inside / name for name in names):
            kind = _kind(path)
            if path.name.startswith("."):
                count.leave_out("hidden", path)
            elif kind == "folder" and path.is_symlink() and inside.resolve().is_relative_to(path.resolve()):
                count.leave_out("links in a circle", path)
            elif kind == "folder":
                folders.append(path)
            elif kind == "file":
                files.append(path)
            else:
                count.leave_out("broken links" if kind == "nothing" else "pipes and devices", path)
        waiting += reversed(folders)
    return files


def matching(pattern: str, count: Reading) -> list[Path]:
    """Return the files that a glob stands for; folders that it names stand for all that is in them.

    Python's own glob walks through `**` by every way that links offer: two links in a circle are 2**40 ways.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        found: list[Path] = []
        for match in sorted(map(Path, glob.glob(pattern))):
            kind = _kind(match)
            if kind in ("nothing", "other"):
                count.leave_out("broken links" if kind == "nothing" else "pipes and devices", match)
            found += walk(match, count) if kind == "folder" else [match] if kind == "file" else []
        return found
    place = parts.index("**")
    roots = [Path(root) for root in glob.glob(str(Path(*parts[:place])))] if place else [Path()]
    wanted = [part for part, before in zip(parts[place:], ("", *parts[place:]), strict=False) if part != before]
    below = [(root, path) for root in roots if _kind(root) == "folder" for path in walk(root, count)]
    return [path for root, path in below if _fits(path.relative_to(root).parts, wanted)]


def _fits(parts: tuple[str, ...], wanted: list[str]) -> bool:
    """Tell whether a path fits a pattern; `**` stands for any number of folders, at the end also for a file."""
    places = {0}  # how much of the pattern is used up, in every way that it can be
    for part in (*parts, None):
        places |= {place + 1 for place in places if place < len(wanted) and wanted[place] == "**"}
        if part is not None:
            left = [place for place in places if place < len(wanted)]
            places = {place for place in left if wanted[place] == "**"}
            places |= {n + 1 for n in left if wanted[n] != "**" and fnmatch.fnmatchcase(part, wanted[n])}
    return len(wanted) in places


def _kind(path: Path) -> str:
    try:
        return kind_of(path)
    except UserError:  # a link in a circle, a folder that may not be searched
        return "nothing"
