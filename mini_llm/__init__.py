"""Mini-LLM: raw text in, a talking model out, in code you can read in an afternoon."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `mini_llm.Generator` on first use: the command line must start without loading torch."""
    if name == "Generator":
        from mini_llm.inference.generate import Generator

        return Generator
    raise AttributeError(f"module 'mini_llm' has no attribute '{name}'")
