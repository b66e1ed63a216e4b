"""Write the report: RUN/report.md and RUN/report.html."""

from __future__ import annotations

import math
from pathlib import Path

from mini_llm.errors import UsageError
from mini_llm.files import check_page, write_text
from mini_llm.report.blocks import as_html, as_markdown
from mini_llm.report.facts import find_folder, gather
from mini_llm.report.page import page
from mini_llm.user_files import writing_to


def write_report(run: Path, *, out: Path | None = None, price: float | None = None, samples: bool = True) -> list[Path]:
    """Write the page in both forms, beside the run or as OUT.md and OUT.html, and return their paths.

    Args:
        run: a run folder.
        out: the files' path without its ending.
        price: of an hour of the machine, in any currency.
        samples: let the model write some; it takes seconds.

    Raises:
        UsageError: the price is no number.
        UserError: there is no run, or the files cannot be written.
    """
    if price is not None and not math.isfinite(price):
        raise UsageError(f"--price {price} is no price")
    folder = find_folder(run)
    base = (out or folder / "report").with_suffix("")
    paths = [base.with_name(base.name + ending) for ending in (".md", ".html")]
    for path in paths:
        check_page(path)  # before the model writes its samples
    facts = gather(folder, price=price, samples=samples)
    blocks = page(facts)
    for path, text in zip(paths, (as_markdown(blocks), as_html(blocks, f"Report: {facts.name}")), strict=True):
        with writing_to(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
    return paths
