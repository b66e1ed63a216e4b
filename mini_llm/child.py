"""Processes of our own that do what may harm: foreign templates and tokenizers. They find the same packages."""

from __future__ import annotations

import os
import sys


def environment() -> dict[str, str]:
    """Return the environment in which `python -P -m mini_llm...` finds what this process finds, and is one thread."""
    path = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, "PYTHONPATH": path, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
