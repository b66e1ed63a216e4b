"""The chat template of a model folder: read here, rendered by a process of its own that may be ended at any time."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_llm.child import environment
from mini_llm.errors import UserError

MOST_BYTES = 1 << 20  # of a template; the longest in use have 20 kB
SECONDS = 10.0  # after so long the process is killed, where its own alarm did not end it
USE_ANOTHER = "use another model, or mend its chat_template.jinja"


@dataclass(frozen=True)
class ChatTemplate:
    """A template and the values that it may use besides the conversation: bos_token and others."""

    source: str
    variables: Mapping[str, str]
    folder: Path

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, now: float, marks: Sequence[str] = ("", ""), **more: Any
    ) -> tuple[str, list[str]]:
        """Return the conversation as text, and the names that the template asks for.

        Args:
            messages: plain JSON values.
            now: the time that `strftime_now` tells, in seconds since 1970.
            marks: what to put before and after what stands in `{% generation %}`.
            more: tools, add_generation_prompt and what else this template knows.

        Raises:
            UserError: the template is damaged, refuses the conversation, takes too long or needs too much memory.
        """
        if importlib.util.find_spec("jinja2") is None:
            raise UserError("the chat template of this model needs jinja2", "pip install 'jinja2>=3.1.6'")
        variables = {**self.variables, "tools": None, **more, "messages": messages}
        reply = _worker().ask({"template": self.source, "variables": variables, "now": now, "marks": [*marks]})
        if "error" in reply:
            raise UserError(f"the chat template in {self.folder} fails: {str(reply['error'])[:500]}", USE_ANOTHER)
        return reply["text"], reply["names"]


class _Worker:
    """The process that renders, for everybody who asks; a new one where the last one was ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the reply, or an error where the process ended without one."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = self._start()
            process = self._process
            assert process.stdin is not None
            assert process.stdout is not None
            timer = threading.Timer(SECONDS, process.kill)
            timer.start()
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except OSError:
                line = ""
            except BaseException:  # Ctrl-C: the reply would be taken for the next one's
                process.kill()
                raise
            finally:
                timer.cancel()
            if not line.endswith("\n"):
                process.kill()
                process.communicate()
                return {"error": "it does not end, or it brings down the process that renders it"}
            found: dict[str, Any] = json.loads(line)
            return found

    @staticmethod
    def _start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "mini_llm.tokenizer.template_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="ascii",
            env=environment(),
        )


@functools.cache
def _worker() -> _Worker:
    return _Worker()


if hasattr(os, "register_at_fork"):  # a child of ours must not read its parent's replies
    os.register_at_fork(after_in_child=_worker.cache_clear)


def read_template(folder: Path, config: Mapping[str, Any], tools: bool = False) -> ChatTemplate | None:
    """Return the template of a folder whose tokenizer_config.json is `config`, or None where it has none.

    A chat_template.jinja goes before what tokenizer_config.json says; of several named ones, `tool_use` is taken where
    there are tools, else `default`.

    Raises:
        UserError: it cannot be read, or there are several and none is the default.
    """
    named = named_templates(folder, config)
    if not named:
        return None
    name = "tool_use" if tools and "tool_use" in named else "default"
    if name not in named:
        raise UserError(f"{folder} has several chat templates ({', '.join(sorted(named))}) and no default", USE_ANOTHER)
    source = named[name]
    if not isinstance(source, str) or len(source.encode("utf-8", "replace")) > MOST_BYTES:
        raise UserError(f"the chat template in {folder} must be text of at most {MOST_BYTES:,} bytes", USE_ANOTHER)
    return ChatTemplate(source, _special_names(folder, config), folder)


def default_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Return the text of a folder's template where nothing else is asked for, or None.

    Raises:
        UserError: its file cannot be read.
    """
    source = named_templates(folder, config).get("default")
    return source if isinstance(source, str) else None


def named_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a folder's templates by name, as they stand there; a lone one is the default."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        more = {f"{extra.stem}": extra for extra in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
        return {name: _read_text(found) for name, found in {**more, "default": path}.items()}
    match config.get("chat_template"):
        case None:
            return {}
        case list(entries):
            pairs = [(entry.get("name"), entry.get("template")) for entry in entries if isinstance(entry, dict)]
            return {str(name): source for name, source in pairs}
        case dict(entries):
            return entries
        case source:
            return {"default": source}


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1).decode("utf-8")
    except OSError as problem:
        raise UserError(f"cannot read {path}: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text, or too long", USE_ANOTHER) from None


def _special_names(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Return bos_token, eos_token and the like, as transformers hands them to a template."""
    found: dict[str, Any] = {}
    path = folder / "special_tokens_map.json"  # of older folders
    if path.is_file():
        try:
            older = json.loads(_read_text(path))
        except (ValueError, RecursionError):
            raise UserError(f"{path} is not valid JSON", "delete it, or use another model") from None
        found |= older if isinstance(older, dict) else {}
    extra = config.get("extra_special_tokens")
    found |= {**config, **(extra if isinstance(extra, dict) else {})}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in found.items()}
    return {name: text for name, text in texts.items() if name.endswith("_token") and isinstance(text, str)}
