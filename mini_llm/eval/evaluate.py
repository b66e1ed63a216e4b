"""Evaluate: rows become items, items become requests, the model answers, the answers are judged."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mini_llm import log
from mini_llm.errors import UserError
from mini_llm.eval import metrics
from mini_llm.eval.items import Item, Prompts
from mini_llm.eval.language_model import MAX_NEW_TOKENS, LanguageModel, pairs_of, rolling_pairs
from mini_llm.eval.scorer import Score
from mini_llm.eval.sets import find_rows
from mini_llm.eval.task import Task
from mini_llm.hub import Unreachable

Values = dict[str, list[Any]]  # "metric,filter" -> one value an item


@dataclass(frozen=True)
class Questions:
    """A task's items, ready to be asked."""

    task: Task
    items: list[Item]
    n_rows: int  # of the whole split
    shots: int
    where: str
    split: str


@dataclass
class TaskResult:
    """What a task found. `values` has an entry an item that could be asked; `responses` too."""

    questions: Questions
    values: Values = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)
    responses: list[list[Any]] = field(default_factory=list)
    left_out: dict[int, str] = field(default_factory=dict)  # row -> why it could not be asked
    overlaps: dict[int, bool] | None = None  # row -> whether the training text holds it; short ones are missing

    @property
    def task(self) -> Task:
        """The task."""
        return self.questions.task

    def scores(self) -> dict[str, tuple[float, float | None]]:
        """Return each metric's value and standard error."""
        aggregations = {str(m.get("metric")): m.get("aggregation") for m in self.task.metric_list or []}
        return {
            key: metrics.aggregate(key.partition(",")[0], values, aggregations.get(key.partition(",")[0]))
            for key, values in self.values.items()
            if values
        }

    @property
    def chance(self) -> float:
        """What guessing gets."""
        return metrics.chance_of(self.task, self.items)


def prepare_questions(
    task: Task,
    folders: Sequence[Path],
    files: dict[str, Path],
    *,
    shots: int | None = None,
    limit: int | None = None,
    draw: int | None = None,
    seed: int = 0,
    only_here: bool = False,
) -> Questions:
    """Find a task's rows and make its items: the first `limit`, or `draw` of them by a seed, always the same.

    Raises:
        UserError: the rows are nowhere, damaged, or do not fit the task.
    """
    find = functools.partial(find_rows, task, folders=folders, files=files, only_here=only_here)
    found = find(task.split)
    shots = task.num_fewshot if shots is None else shots
    shot_rows: list[dict[str, Any]] = []
    if shots:
        split = task.fewshot_split or task.training_split or task.validation_split or task.split
        shot_rows = found.rows if split == found.split else find(split).rows
    prompts = Prompts(task, shots, shot_rows, found.where)
    numbers = range(len(found.rows) if limit is None else min(limit, len(found.rows)))
    chosen = list(numbers)
    if draw is not None and draw < len(chosen):
        chosen = sorted(random.Random(f"{seed}:{task.task}").sample(chosen, draw))
    items = [prompts.item(number, found.rows[number]) for number in chosen]
    return Questions(task, items, len(found.rows), shots, found.where, found.split)


def prepare_all(
    tasks: Sequence[Task], folders: Sequence[Path], files: dict[str, Path], **options: Any
) -> list[Questions]:
    """Return the questions of tasks; of a family, those members whose rows are there, but at least one.

    A hub that cannot be reached for one member is not asked for the others: each would wait as long.

    Raises:
        UserError: as `prepare_questions`.
    """
    made: list[Questions] = []
    missing: dict[str, list[UserError]] = {}
    for task in tasks:
        is_cut_off = any(isinstance(problem, Unreachable) for problems in missing.values() for problem in problems)
        try:
            made.append(prepare_questions(task, folders, files, only_here=is_cut_off, **options))
        except UserError as problem:
            if task.group is None:
                raise
            if isinstance(problem, Unreachable) and not is_cut_off:
                log.warn(f"the hub cannot be reached: of {task.group} only those members are asked that lie here")
            missing.setdefault(task.group, []).append(problem)
    for group, problems in missing.items():
        n = sum(one.task.group == group for one in made)
        if not n:
            raise problems[0]
        log.warn(f"{group}: {n} of its {n + len(problems)} members are there, and are all that is evaluated")
    return made


def ask(model: LanguageModel, questions: Questions, on_items: Callable[[int], None] = lambda _n: None) -> TaskResult:
    """Let the model answer a task's items; `on_items(n)`: n more requests are done.

    Raises:
        UserError: the model cannot do what the task asks.
    """
    ways = {
        "multiple_choice": _ask_choices,
        "loglikelihood": _ask_choices,
        "loglikelihood_rolling": _ask_texts,
        "generate_until": _ask_to_write,
    }
    result = TaskResult(questions)
    ways[questions.task.output_type](model, questions, result, on_items)
    if result.left_out:
        number, reason = next(iter(result.left_out.items()))
        more = f" and {len(result.left_out) - 1} more" if len(result.left_out) > 1 else ""
        log.warn(f"{questions.task.task}: row {number + 1}{more} left out: {reason}")
    if not result.items:
        raise UserError(f"{questions.task.task}: none of its items could be asked")
    return result


def _keep(
    result: TaskResult,
    item: Item,
    responses: list[Any],
    found: dict[str, Any],
    wanted: Sequence[str],
    kind: str = "none",
) -> None:
    if kind == "none" or not result.items or result.items[-1] is not item:
        result.items.append(item)
        result.responses.append(responses)
    for name in wanted:
        if name in found:
            result.values.setdefault(f"{name},{kind}", []).append(found[name])


def _ask_choices(
    model: LanguageModel, questions: Questions, result: TaskResult, on_items: Callable[[int], None]
) -> None:
    owners = [(item, request) for item in questions.items for request in item.requests]
    asked = pairs_of(model, [request for _, request in owners])
    result.left_out.update({owners[number][0].number: reason for number, reason in asked.unfit.items()})
    scores: dict[int, list[Score]] = {}
    for number, score in zip(asked.numbers, model.score(asked.pairs, on_items), strict=True):
        if not math.isfinite(score.loglikelihood):
            raise UserError(f"{model.name}: a log-likelihood is not a number: the weights are damaged")
        scores.setdefault(owners[number][0].number, []).append(score)
    task = questions.task
    for item in questions.items:
        if item.number in result.left_out:
            continue
        answers = scores[item.number]
        if task.process_results is not None:
            found = _judged(task, item, [tuple(answer) for answer in answers])
        elif task.output_type == "multiple_choice":
            found = metrics.judge_choice(item, answers)
        else:
            found = metrics.judge_continuation(answers[0])
        _keep(result, item, [list(answer) for answer in answers], found, task.metrics)


def _judged(task: Task, item: Item, answers: list[Any]) -> dict[str, Any]:
    try:
        return dict(task.process_results(item.row, answers))
    except (Exception, SystemExit) as problem:  # it is the task's own code
        reason = f"{type(problem).__name__}: {problem}"
        raise UserError(f"{task.task}: its process_results fails at row {item.number + 1}: {reason}") from None


def _ask_texts(model: LanguageModel, questions: Questions, result: TaskResult, on_items: Callable[[int], None]) -> None:
    """Score whole texts, under lm-eval's rule and, where BOS must not count, under the honest one too."""
    texts = [str(item.requests[0][1]) for item in questions.items]
    totals = rolling_loglikelihoods(model, texts, predict_prefix=True, on_items=on_items)
    honest = rolling_loglikelihoods(model, texts, predict_prefix=False) if model.prefix_ids else totals
    for item, text, total, own in zip(questions.items, texts, totals, honest, strict=True):
        if questions.task.process_results is not None:
            found = _judged(questions.task, item, [total])
            _keep(result, item, [total], found, questions.task.metrics)
            continue
        _keep(result, item, [total], metrics.judge_text(text, total), questions.task.metrics)
        if model.prefix_ids:
            for name, value in metrics.judge_text(text, own).items():
                if name in questions.task.metrics:
                    result.values.setdefault(f"{name},BOS not predicted", []).append(value)


def rolling_loglikelihoods(
    model: LanguageModel,
    texts: Sequence[str],
    *,
    predict_prefix: bool,
    on_items: Callable[[int], None] = lambda _n: None,
) -> list[float]:
    """Return the log-likelihood of each text in nats, every token foretold once."""
    windows = [
        (number, pair)
        for number, ids in enumerate(model.encode_batch(list(texts)))
        for pair in rolling_pairs(model, ids, predict_prefix=predict_prefix)
    ]
    totals = [0.0] * len(texts)
    for (number, _), score in zip(windows, model.score([pair for _, pair in windows], on_items), strict=True):
        totals[number] += score.loglikelihood
    return totals


def _ask_to_write(
    model: LanguageModel, questions: Questions, result: TaskResult, on_items: Callable[[int], None]
) -> None:
    task = questions.task
    options = task.generation_kwargs
    if options.get("do_sample") or float(options.get("temperature") or 0) > 0:
        raise UserError(
            f"{task.task} draws at random; only the likeliest text is evaluated", "do_sample: false in its YAML"
        )
    stops = options.get("until", [task.fewshot_delimiter])
    stops = [stops] if isinstance(stops, str) else list(stops)
    filters = task.filter_list or [{"name": "none", "filter": [{"function": "take_first"}]}]
    for step in (step for entry in filters for step in entry.get("filter", [])):
        if step.get("function") not in metrics.FILTERS:
            raise UserError(
                f"{task.task}: the filter '{step.get('function')}' is not known", f"known: {', '.join(metrics.FILTERS)}"
            )
    ids = [model.prefix_ids + found for found in model.encode_batch([item.requests[0][0] for item in questions.items])]
    written = model.write(
        [context or [model.first_id] for context in ids],
        [[stop for stop in stops if stop]] * len(ids),
        int(options.get("max_gen_toks", MAX_NEW_TOKENS)),
    )
    for item, text in zip(questions.items, written, strict=True):
        for entry in filters:
            answer = metrics.filtered(text, entry.get("filter", []))
            found = metrics.judge_written(task, item, answer)
            _keep(result, item, [text], found, task.metrics, str(entry.get("name", "none")))
        on_items(1)
