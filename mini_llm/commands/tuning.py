"""From a model that continues to one that answers: `skills`, `mix`, `sft`, `rl`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mini_llm import output
from mini_llm.commands.arguments import ConfigOption, DryRun, PrintConfig, Resume, SettingsArgument, words_of


class SideName(StrEnum):
    """What is learned from, or what is held out."""

    train = "train"
    new = "new"


def skills(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The .jsonl to write, for sft and rl.")],
    skills: Annotated[
        str, typer.Option(metavar="NAMES", help="Which, with commas: spelling,copying=3000. [default: all]")
    ] = "",
    n: Annotated[int, typer.Option("--n", help="Exercises of a skill that names no number.", min=1, max=10**7)] = 1000,
    corpus: Annotated[
        list[str] | None,
        typer.Option(help="Text to take words and sentences from, as for prepare; may be repeated. [default: made up]"),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model to tune: its vocabulary, for letters, joined and echo."),
    ] = None,
    name: Annotated[str, typer.Option(help="What the model calls itself.")] = "Mini-LLM",
    seed: Annotated[int, typer.Option(help="Same seed, same exercises.", min=0)] = 0,
    arguments: Annotated[SideName, typer.Option(help="Words and numbers to learn from, or those held out.")] = (
        SideName.train
    ),
    phrasings: Annotated[SideName, typer.Option(help="Questions to learn from, or those held out.")] = SideName.train,
    turns: Annotated[
        int, typer.Option(help="The most exercises in a conversation; 1: each alone, as rl wants them.", min=1, max=100)
    ] = 4,
) -> None:
    """Make exercises by program, each with a right answer and the check that knows others: for sft and rl."""
    from mini_llm.tune.skills.write import Wish, material_of, parse_counts, write_exercises

    counts = parse_counts(skills, n, with_drills=tokenizer is not None)
    wish = Wish(counts, seed, arguments.value, phrasings.value, turns)
    write_exercises(out, wish, material_of(corpus or [], name, tokenizer))


def mix(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCES", help="Conversations: .jsonl or .parquet files, folders or globs.")
    ],
    mixture: Annotated[Path, typer.Option(metavar="FILE", help="YAML, as configs/chat-mix.yaml.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The .jsonl to write, for sft.")],
) -> None:
    """Choose among conversations: so many of each source, so often, without what is not wanted."""
    from mini_llm.config import load_config
    from mini_llm.tune.mix import Mixture
    from mini_llm.tune.mix import mix as write_mixture

    write_mixture(sources, load_config(Mixture, mixture), out)


def sft(
    settings: SettingsArgument = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model to begin from: a run or any Llama folder."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Conversations: .jsonl or .parquet files, folders or quoted globs; may be repeated."),
    ] = None,
    config: ConfigOption = None,
    resume: Resume = None,
    merge_turns: Annotated[bool, typer.Option("--merge-turns", help="Join two turns of one role in a row.")] = False,
    show: Annotated[int, typer.Option(help="Print so many conversations with what is learned in colour.", min=0)] = 0,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
) -> None:
    """Teach a model to answer, from conversations. Stopped anywhere, the same command goes on, exactly where it was."""
    from mini_llm.config import dump_config, load_config
    from mini_llm.train.run.moved import follow_moved
    from mini_llm.tune.config import SftConfig, with_base

    words = words_of(settings, base=base, data=data, resume=resume, merge_turns=merge_turns)
    resolved = follow_moved(load_config(SftConfig, config, words), config, words)
    if print_config:
        output.write(dump_config(with_base(resolved)))
        return
    if show:
        from mini_llm.tune.show import show as print_conversations

        print_conversations(resolved, show)
        return
    from mini_llm.tune.sft import Answers, prepared
    from mini_llm.tune.sft import sft as run

    if dry_run:
        from mini_llm.train.dry_run import dry_run as rehearse

        full, packed = prepared(resolved)
        output.line(rehearse(full, lambda fitting: Answers(fitting, packed)))
        return
    run(resolved)


def rl(
    settings: SettingsArgument = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model to begin from: one that answers right now and then."),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="A skill made by program, such as spelling; may be repeated.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Questions with their answers: .jsonl or .parquet files, folders or quoted globs."),
    ] = None,
    config: ConfigOption = None,
    resume: Resume = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
) -> None:
    """Let a model learn from its own answers, by rewards that can be checked. The same command goes on, exactly."""
    from mini_llm.config import dump_config, load_config
    from mini_llm.train.run.moved import follow_moved
    from mini_llm.tune.config import with_base
    from mini_llm.tune.rl_config import RlConfig

    words = words_of(settings, base=base, task=task, data=data, resume=resume)
    resolved = follow_moved(load_config(RlConfig, config, words), config, words)
    if print_config:
        output.write(dump_config(with_base(resolved)))
        return
    from mini_llm.tune.rl import Rewarded, prepared
    from mini_llm.tune.rl import rl as run

    if dry_run:
        from mini_llm.train.dry_run import dry_run as rehearse

        full, asked = prepared(resolved)
        output.line(rehearse(full, lambda fitting: Rewarded(fitting, asked)))
        return
    run(resolved)
