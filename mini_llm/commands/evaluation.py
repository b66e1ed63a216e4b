"""How good a model is, and a page about it: `eval`, `report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mini_llm import log, output
from mini_llm.commands.arguments import Device
from mini_llm.errors import UsageError


def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A run, a checkpoint, any Llama folder, or a server: http://HOST:PORT."),
    ],
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask as in a chat: skills, forms, identity, recall; stopping and repeating.")
    ] = False,
    tasks: Annotated[
        str, typer.Option(help="Tasks, with commas between: piqa,arc_easy,blimp,mmlu_anatomy, or paths of YAML files.")
    ] = "",
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR | TASK=FILE",
            help="Where the sets are [default: the hub]; with --chat, conversations.",
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="Text for the loss, as for prepare; with --chat, for words."),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="Token store: its held-out loss, and overlap with its text. [default: the run's]"),
    ] = None,
    shots: Annotated[
        int | None, typer.Option(help="Examples before each question. [default: the task's]", min=0)
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Only so many items of each task, or with --chat of each skill.", min=1),
    ] = None,
    overlap: Annotated[
        bool | None,
        typer.Option(
            "--overlap/--no-overlap", help="Look for the items in the training text. [default: if it is small]"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for results as lm-eval writes them. [default: RUN/eval]")
    ] = None,
    samples: Annotated[bool, typer.Option("--samples", help="Also write every item with its scores.")] = False,
    include: Annotated[
        list[Path] | None, typer.Option(help="Folder with YAML tasks of yours; may be repeated.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="A tokenizer's folder; default: the model's own.")] = None,
    device: Device = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (as stored, where the device is fast in it), float32, bfloat16 or float16.")
    ] = "auto",
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="With --chat: what was tuned, to say what was forgotten.")
    ] = None,
    name: Annotated[str, typer.Option(help="With --chat: how the model should call itself.")] = "Mini-LLM",
    run_task_code: Annotated[
        bool, typer.Option("--run-task-code", help="Allow tasks to run the Python beside their YAML.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results in lm-eval's JSON, not the table.")
    ] = False,
) -> None:
    """Say how good a model is: standard tasks with lm-eval's scores, and the loss on any text."""
    if chat:
        if tasks:
            raise UsageError("--chat has its own questions", "ask tasks by another call, without --chat")
        wishes_of_chat = {"base": base, "name": name, "n": limit or 100, "device": device, "dtype": dtype}
        places = {"conversations": list(data or []), "corpus": list(text or []), "store": store, "out": out}
        _evaluate_chat(model, {**wishes_of_chat, **places}, samples, as_json)
        return
    from mini_llm.eval.run import Wishes, run_evaluation, show

    wishes = Wishes(
        model=model,
        tasks=[name.strip() for name in tasks.split(",") if name.strip()],
        data=list(data or []),
        include=list(include or []),
        texts=list(text or []),
        store=store,
        shots=shots,
        limit=limit,
        overlap=overlap,
        out=out,
        samples=samples,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        run_task_code=run_task_code,
    )
    run_evaluation(wishes, lambda found: output.line(json.dumps(found, default=str) if as_json else show(found)))


def _evaluate_chat(model: str, wishes: dict[str, Any], samples: bool, as_json: bool) -> None:
    from mini_llm.eval import chat_report
    from mini_llm.eval.chat import ChatWishes, evaluate_chat, folder_of
    from mini_llm.user_files import writing_to

    asked = ChatWishes(model, **wishes)
    found, answers = evaluate_chat(asked)
    values = chat_report.as_json(found, answers)
    output.line(json.dumps(values, default=str) if as_json else chat_report.markdown(found, answers))
    if folder := folder_of(asked):
        with writing_to(folder):
            log.info(f"kept: {chat_report.keep(folder, values, answers, samples=samples)}")


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    out: Annotated[
        Path | None, typer.Option(help="Path of the two files, without an ending. [default: RUN/report]")
    ] = None,
    price: Annotated[float | None, typer.Option(help="Price of the machine for an hour.", min=0)] = None,
    samples: Annotated[bool, typer.Option("--samples/--no-samples", help="Let the model write some texts.")] = True,
) -> None:
    """Write one honest page about a run, as Markdown and as an HTML file without scripts."""
    from mini_llm.report.report import write_report

    for path in write_report(run, out=out, price=price, samples=samples):
        log.info(f"report: {path}")
