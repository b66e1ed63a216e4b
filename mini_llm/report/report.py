"""Write the report: RUN/report.md and RUN/report.html."""

from __future__ import annotations

from pathlib import Path

from mini_llm.files import write_text
from mini_llm.report.blocks import as_html, as_markdown
from mini_llm.report.facts import gather
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
        UserError: there is no run, or the files cannot be written.
    """
    facts = gather(run, price=price, samples=samples)
    blocks = page(facts)
    base = (out or facts.folder / "report").with_suffix("")
    texts = {".md": as_markdown(blocks), ".html": as_html(blocks, f"Report: {facts.name}")}
    paths = []
    for ending, text in texts.items():
        path = base.with_name(base.name + ending)
        with writing_to(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
        paths.append(path)
    return paths
