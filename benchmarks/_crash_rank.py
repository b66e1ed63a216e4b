"""What torchrun starts for `crash.py --ranks`: `mini-llm`, which tells its pid; in some lives its disk is full."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def begin(folder: Path) -> None:
    """Write this process's pid to `FOLDER/life-LIFE-RANK`, and take the limit of this life from limits.json."""
    life, rank = os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]
    mark = folder / f"life-{life}-{rank}"
    mark.with_suffix(".half").write_text(str(os.getpid()), encoding="ascii")
    mark.with_suffix(".half").rename(mark)
    limit = json.loads((folder / "limits.json").read_text(encoding="ascii")).get(life)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


if __name__ == "__main__":
    begin(Path(os.environ["CRASH_FOLDER"]))
    from mini_llm.cli import main

    main()
