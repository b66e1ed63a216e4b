"""A chat template at work, in a process of its own: it is foreign code, which may loop or grow for ever.

One JSON object a line comes in on stdin and one goes out on stdout. The sandbox and the names in it are those that
Hugging Face's templates are written for. A rendering that takes too long is ended by the system's alarm.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

SECONDS = 5  # one rendering takes a millisecond
MEMORY_BYTES = 1 << 30
MOST_CHARACTERS = 1 << 25
NO_MARKS = ("", "")


class Answers(Extension):
    """`{% generation %}`: what stands within was written by the assistant; it comes out between two marks."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own form)

    def parse(self, parser: Parser) -> nodes.Node:
        """Read the tag, up to its end."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        opening, closing = getattr(self.environment, "answer_marks", NO_MARKS)
        return f"{opening}{caller()}{closing}"


class SafeNamespace(Namespace):
    """Jinja's namespace without names that begin with an underscore: these lead into Python."""

    def __init__(*args: Any, **values: Any) -> None:
        self, rest = args[0], args[1:]
        found = dict(*rest, **values)
        for name in found:
            _refuse_hidden(name)
        Namespace.__init__(self, found)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_hidden(name)
        super().__setitem__(name, value)


class MakeDict:
    """`dict(...)` without the type's other attributes."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        """Return a dict."""
        return dict(*args, **values)


def _refuse_hidden(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace may not hold {name!r}")


def _raise(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter writes < and > as escapes, for web pages.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=8)
def compiled(source: str) -> tuple[Template, list[str]]:
    """Return a template ready to render, and the names that it asks for."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Answers, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise, dict=MakeDict(), namespace=SafeNamespace)
    names = find_undeclared_variables(environment.parse(source))
    return environment.from_string(source), sorted(names)


def render(request: dict[str, Any]) -> dict[str, Any]:
    """Return {"text", "names"}, or {"error"}."""
    try:
        template, names = compiled(request["template"])
        now = datetime.fromtimestamp(request["now"])
        template.environment.answer_marks = request["marks"]  # type: ignore[attr-defined]
        text = template.render(**request["variables"], strftime_now=now.strftime)
        if len(text) > MOST_CHARACTERS:
            return {"error": f"it writes {len(text):,} characters"}
        return {"text": text, "names": names}
    except TemplateSyntaxError as problem:
        return {"error": f"line {problem.lineno}: {problem.message}"}
    except TemplateError as problem:
        return {"error": str(problem.message or type(problem).__name__)}
    except MemoryError:
        return {"error": f"it needs more than {MEMORY_BYTES >> 20} MB of memory"}
    except Exception as problem:  # a template may do whatever Python's values can do
        return {"error": f"{type(problem).__name__}: {problem}"}


def main() -> None:
    """Answer until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who asks
    alarm = getattr(signal, "alarm", lambda seconds: None)  # Windows has none: there the one who asks ends it
    _limit_memory()
    for line in sys.stdin:
        alarm(SECONDS)
        reply = render(json.loads(line))
        alarm(0)
        print(json.dumps(reply), flush=True)


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ImportError, ValueError, OSError):  # Windows, macOS: the alarm is what is left
        return


if __name__ == "__main__":
    main()
