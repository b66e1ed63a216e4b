"""From answers of which one is better to a model that prefers it: `pairs`, `dpo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mini_llm import output
from mini_llm.commands.arguments import (
    Backend,
    BackendName,
    ConfigOption,
    Device,
    DryRun,
    Dtype,
    MaxNewTokens,
    PrintConfig,
    Resume,
    RunArgument,
    SettingsArgument,
    words_of,
)


def pairs(
    model: RunArgument,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The .jsonl to write, for dpo.")],
    tasks: Annotated[
        str, typer.Option(metavar="NAMES", help="Skills to ask for, with commas: spelling,copying=300.")
    ] = "",
    n: Annotated[int, typer.Option("--n", help="Questions of a skill that names no number.", min=1, max=10**7)] = 500,
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="Questions with their answers instead: .jsonl or .parquet; may be repeated."),
    ] = None,
    corpus: Annotated[
        list[str] | None, typer.Option(help="Text that the skills' words are taken from. [default: made up]")
    ] = None,
    name: Annotated[str, typer.Option(help="What the model calls itself.")] = "Mini-LLM",
    samples: Annotated[int, typer.Option(help="Answers to each question.", min=2, max=4096)] = 8,
    temperature: Annotated[float, typer.Option(help="How freely they are drawn.", min=0.01, max=100.0)] = 1.0,
    max_new_tokens: MaxNewTokens = 256,
    seed: Annotated[int, typer.Option(help="Same seed, same pairs.", min=0, max=2**32 - 1)] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = BackendName.auto,
) -> None:
    """Let a model answer several times and checks choose the best and the worst: pairs for dpo.

    Stopped anywhere, the same command goes on.
    """
    from mini_llm.tune.asked import asked_of
    from mini_llm.tune.pairs import Sampling, write_pairs

    asked = asked_of(tasks, prompts or [], n=n, seed=seed, corpus=corpus or [], name=name)
    how = Sampling(samples, temperature, max_new_tokens, seed)
    write_pairs(model, out, asked, how, device=device, dtype=dtype, backend=backend.value)


def dpo(
    settings: SettingsArgument = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model to begin from, which is the reference too: a run of sft."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Pairs: .jsonl or .parquet files, folders or quoted globs; may be repeated."),
    ] = None,
    config: ConfigOption = None,
    resume: Resume = None,
    merge_turns: Annotated[bool, typer.Option("--merge-turns", help="Join two turns of one role in a row.")] = False,
    show: Annotated[int, typer.Option(help="Print so many pairs with what is learned in colour.", min=0)] = 0,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
) -> None:
    """Teach a model which of two answers is better. Stopped anywhere, the same command goes on from exactly there."""
    from mini_llm.config import dump_config, load_config
    from mini_llm.train.run.moved import follow_moved
    from mini_llm.tune.dpo_config import DpoConfig, with_chat_base

    words = words_of(settings, base=base, data=data, resume=resume, merge_turns=merge_turns)
    resolved = follow_moved(load_config(DpoConfig, config, words), config, words)
    if print_config:
        output.write(dump_config(with_chat_base(resolved)))
        return
    if show:
        from mini_llm.tune.show import show_pairs

        show_pairs(with_chat_base(resolved), show)
        return
    from mini_llm.tune.dpo import Preferences, prepared
    from mini_llm.tune.dpo import dpo as run

    if dry_run:
        from mini_llm.train.dry_run import dry_run as rehearse

        full, packed = prepared(resolved)
        output.line(rehearse(full, lambda fitting: Preferences(fitting, packed, rehearsal=True)))
        return
    run(resolved)
