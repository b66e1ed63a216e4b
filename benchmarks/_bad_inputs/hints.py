"""Does a hint help? An option that it names must be one of the command that was typed, or of the one that it names."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Sequence
from pathlib import Path

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
COMMAND = re.compile(r"`?mini-llm ([a-z-]+)(?: (train|report)\b)?")
OTHERS = re.compile(r"\b(pip|torchrun|iconv|hf|ollama|llama-\w+|python|aws)\b")  # other programs have other options
BY_VERB = re.compile(r"`?\b({})\b`?[^.;]*\b(by|can|with)\b|\b({}) --")


@functools.cache
def options_of() -> dict[str, frozenset[str]]:
    """Return the options of every verb: `tokenizer train` has its own."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    import typer.main

    from mini_llm.cli import app

    found: dict[str, frozenset[str]] = {}

    def walk(name: str, command: object) -> None:
        parameters = getattr(command, "params", [])
        found[name] = frozenset(word for p in parameters for word in (*p.opts, *p.secondary_opts)) | {"--help"}
        for inner, verb in getattr(command, "commands", {}).items():
            walk(f"{name} {inner}".strip(), verb)

    walk("", typer.main.get_command(app))
    return found


def wrong_hint(words: Sequence[str], said: str) -> str | None:
    """Return the first option that is advised where the command has none of that name; None: all of them help."""
    known = options_of()
    verb = " ".join(words[:2]) if words[:2] and " ".join(words[:2]) in known else words[0] if words else ""
    if verb not in known:
        return None
    named = "|".join(re.escape(name) for name in known if name)
    by_verb = re.compile(BY_VERB.pattern.format(named, named))
    for line in said.splitlines():
        if OTHERS.search(line):
            continue
        command = COMMAND.search(line)
        of = f"{command[1]} {command[2]}" if command and command[2] and command[1] == "tokenizer" else ""
        allowed = known.get(of or (command[1] if command else verb), known[verb])
        typed = {word.partition("=")[0] for word in words}
        for option in OPTION.findall(line):
            if any(word.startswith(option) for word in typed):  # said again, and cut where the line was full
                continue
            if option in allowed or any(option in known.get(m[1] or m[3], ()) for m in by_verb.finditer(line)):
                continue
            return f"{option} is advised, which `{verb}` does not have: {line.strip()[:200]}"
    return None
