"""The command line's options for writing text, made of `SamplingParams`, so that no verb lists them again."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from mini_llm.errors import UsageError
from mini_llm.inference.sampling.params import SamplingParams, knobs

LogitBias = Annotated[
    list[str] | None,
    typer.Option("--logit-bias", metavar="ID=NUMBER", help="Add NUMBER to the score of token ID; may be repeated."),
]
Ban = Annotated[list[int] | None, typer.Option("--ban", metavar="ID", help="Never write token ID; may be repeated.")]


def with_sampling(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb that takes `sampling: SamplingParams` an option for each of its knobs in place of it."""

    @functools.wraps(verb)
    def with_options(**values: Any) -> None:
        numbers = {knob.name: values.pop(knob.name) for knob in knobs()}
        biases, banned = read_biases(values.pop("logit_bias")), tuple(values.pop("ban") or ())
        try:
            sampling = SamplingParams(**numbers, logit_bias=biases, banned_ids=banned)
        except UsageError as problem:
            knob = problem.message.partition("=")[0]
            raise typer.BadParameter(problem.message, param_hint=f"--{knob.replace('_', '-')}") from None
        verb(sampling=sampling, **values)

    options = {knob.name: (_annotation(knob), knob.default) for knob in knobs()}
    options |= {"logit_bias": (LogitBias, None), "ban": (Ban, None)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(verb, eval_str=True).parameters.values():
        if parameter.annotation is SamplingParams:
            parameters += [
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
                for name, (annotation, default) in options.items()
            ]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options


def _annotation(knob: dataclasses.Field[Any]) -> Any:
    return Annotated[type(knob.default), typer.Option(help=knob.metadata["help"])]


def read_biases(words: list[str] | None) -> dict[int, float]:
    """Read `ID=NUMBER` words.

    Raises:
        UsageError: a word of another form.
    """
    biases = {}
    for word in words or []:
        token_id, _, number = word.partition("=")
        try:
            biases[int(token_id)] = float(number)
        except ValueError:
            raise UsageError(f"--logit-bias '{word}' must be ID=NUMBER, for example 42=-5") from None
    return biases
