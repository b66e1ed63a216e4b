"""Items: a row of a data set becomes what the model is asked, what would be right, and the text that may be known.

Templates are Jinja's, in its sandbox, with lm-eval's rules for what a name, a number and a list mean.
"""

from __future__ import annotations

import ast
import random
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from mini_llm.errors import UserError
from mini_llm.eval.task import Task

FEWSHOT_SEED = 1234  # lm-eval's
SECONDS = 10.0  # that a row may take: some milliseconds are usual, and a template can loop for years
Row = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One question. `requests` are (context, continuation), or (context, "") where the model writes."""

    number: int  # the row, from 0
    row: Row
    requests: list[tuple[str, str]]
    choices: list[str]
    gold: Any  # place in `choices`, several of them, or the text to be written
    text: str  # question and right answer, by which overlap with training text is found


@cache
def _environment() -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_replace"] = lambda text, pattern, new, count=0: re.sub(pattern, new, text, count=count)
    return environment


@cache
def _template(text: str) -> Any:
    return _environment().from_string(text)


def render(template: str, row: Row) -> str:
    """Return a template filled with a row's fields."""
    return str(_template(template).render(row))


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Stop the block after so long, where the system can: in the main thread of a Unix process.

    Raises:
        TimeoutError: it took longer.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(_number: int, _frame: object) -> None:
        raise TimeoutError(f"it takes longer than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # and again: Jinja tries what is constant twice
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Prompts:
    """Makes a task's items."""

    def __init__(self, task: Task, shots: int, shot_rows: Sequence[Row], where: str) -> None:
        """Take `shots` examples for each item from `shot_rows`; `where` names the rows in errors."""
        self.task, self.shots, self.shot_rows, self.where = task, shots, list(shot_rows), where
        self.random = random.Random(FEWSHOT_SEED)
        if shots > len(self.shot_rows):
            raise UserError(f"{task.task}: {shots} examples are asked for, its rows for them are {len(self.shot_rows)}")

    def item(self, number: int, row: Row) -> Item:
        """Return the item of a row.

        Raises:
            UserError: the row lacks a field, or its answer is none of its choices.
        """
        try:
            with _at_most(SECONDS):
                return self._item(number, row)
        except UserError:
            raise
        except (Exception, SystemExit) as problem:  # of templates or of the task's own functions
            fields = ", ".join(list(row)[:12])
            reason = " ".join(str(problem).split())[:200] or type(problem).__name__
            raise UserError(
                f"{self.where}, row {number + 1} does not fit the task {self.task.task}: {reason}",
                f"it has the fields: {fields}; docs/evaluation.md tells where each set comes from",
            ) from None

    def _item(self, number: int, row: Row) -> Item:
        task, before = self.task, self._before(row)
        text, target = self._text(row), self._target(row)
        choices = self._choices(row)
        if task.output_type == "multiple_choice":
            several_contexts = isinstance(text, int)
            gold = self._gold(text if several_contexts else target, choices, number)
            if several_contexts:
                requests = [(before + choice, f"{task.target_delimiter}{target}") for choice in choices]
            else:
                context = before + self._with_prefix(text)
                requests = [(context, f"{task.target_delimiter}{choice}") for choice in choices]
            right = gold[0] if isinstance(gold, list) else gold
            return Item(number, row, requests, choices, gold, "".join(requests[right])[len(before) :])
        if task.output_type == "loglikelihood_rolling":
            return Item(number, row, [("", str(target))], [], None, str(target))
        context = before + self._with_prefix(str(text))
        if task.output_type == "loglikelihood":
            return Item(number, row, [(context, str(target))], [], None, f"{text}{target}")
        answer = choices[target] if choices and isinstance(target, int) else target
        shown = answer[0] if isinstance(answer, list) and answer else answer
        return Item(number, row, [(context, "")], choices, answer, f"{text} {shown}")

    def _gold(self, answer: Any, choices: list[str], number: int) -> int | list[int]:
        if isinstance(answer, list):
            return [self._gold(one, choices, number) for one in answer]  # type: ignore[misc]
        if isinstance(answer, str) and answer in choices:
            return choices.index(answer)
        if not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise UserError(
                f"{self.where}, row {number + 1}: the answer {str(answer)[:40]!r} is none of {len(choices)} choices",
                "test splits are often published without answers: use the validation split",
            )
        return int(answer)

    def _before(self, row: Row) -> str:
        """Return what stands before each question: the description, and examples with their answers."""
        task = self.task
        text = render(task.description, row) if task.description else ""
        for shot in self._draw(row):
            question, answer, choices = self._text(shot), self._target(shot), self._choices(shot)
            if isinstance(question, int):
                question = choices[question]
            elif isinstance(answer, int) and choices:
                answer = choices[answer]
            answer = answer[0] if isinstance(answer, list) else answer
            said = _joined(self._prefix(shot), str(answer)) if task.gen_prefix else str(answer)
            delimiter = task.target_delimiter if not task.gen_prefix or _apart(str(question), said) else ""
            text += f"{question}{delimiter}{said}{task.fewshot_delimiter}"
        return text

    def _draw(self, row: Row) -> list[Row]:
        if not self.shots:
            return []
        own_split = (self.task.fewshot_split or "") == (self.task.test_split or "none")
        if (self.task.fewshot_config or {}).get("sampler") == "first_n":
            return [other for other in self.shot_rows if not own_split or other != row][: self.shots]
        if not own_split:
            return self.random.sample(self.shot_rows, self.shots)
        drawn = [other for other in self.random.sample(self.shot_rows, self.shots + 1) if other != row]
        return drawn[: self.shots]

    def _with_prefix(self, text: str) -> str:
        if not self.task.gen_prefix:
            return text
        prefix = self.task.gen_prefix
        return text + (self.task.target_delimiter if _apart(text, prefix) else "") + prefix

    def _prefix(self, row: Row) -> str:
        return render(self.task.gen_prefix or "", row)

    def _text(self, row: Row) -> Any:
        return self._value(self.task.doc_to_text, row)

    def _target(self, row: Row) -> Any:
        return self._value(self.task.doc_to_target, row, may_be_list=True)

    def _value(self, template: Any, row: Row, *, may_be_list: bool = False) -> Any:
        """Return what a function, a column's name or a template gives; a number is the place of a choice."""
        if callable(template):
            return template(row)
        if not isinstance(template, str):
            return template
        if template in row:
            return row[template]
        text = render(template, row)
        if text.isdigit() and self.task.doc_to_choice is not None:
            return int(text)
        is_list = may_be_list and len(text) >= 2 and (text[0], text[-1]) == ("[", "]")
        return _literal(text) if is_list else text

    def _choices(self, row: Row) -> list[str]:
        template = self.task.doc_to_choice
        if template is None:
            return []
        if callable(template):
            found = template(row)
        elif isinstance(template, str):
            found = row[template] if template in row else _list(template, row)
        else:
            found = list(template.values()) if isinstance(template, dict) else template
        choices = [str(choice) for choice in found]
        if len(choices) < 2 or not all(choices):
            raise ValueError(f"it has {len(choices)} choices, or an empty one")
        return choices


def _list(template: str, row: Row) -> Any:
    from jinja2 import meta

    try:
        return ast.literal_eval(render(template, row))
    except (SyntaxError, ValueError):
        missing = sorted(meta.find_undeclared_variables(_environment().parse(template)) - row.keys())
        raise ValueError(f"it has no field '{missing[0]}'" if missing else "its choices are no list") from None


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _apart(left: str, right: str) -> bool:
    """Tell whether a delimiter is needed between two texts."""
    return bool(left) and bool(right) and not (left[-1].isspace() or right[0].isspace())


def _joined(left: str, right: str) -> str:
    return left + (" " if _apart(left, right) else "") + right
