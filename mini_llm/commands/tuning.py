"""From a model that continues to one that answers: `sft`."""

from __future__ import annotations

from typing import Annotated

import typer

from mini_llm import output
from mini_llm.commands.arguments import ConfigOption, SettingsArgument


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
    resume: Annotated[
        bool | None, typer.Option("--resume/--no-resume", help="Go on from the run's last checkpoint (the default).")
    ] = None,
    merge_turns: Annotated[bool, typer.Option("--merge-turns", help="Join two turns of one role in a row.")] = False,
    show: Annotated[int, typer.Option(help="Print so many conversations with what is learned in colour.", min=0)] = 0,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved settings and exit.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do one step at full size, say what the run would take, write nothing.")
    ] = False,
) -> None:
    """Teach a model to answer, from conversations. Stopped anywhere, the same command goes on, exactly where it was."""
    from mini_llm.config import dump_config, load_config
    from mini_llm.tune.config import SftConfig, with_base

    words = list(settings or [])
    words += [f"base={base}"] if base else []
    words += [f"data=[{', '.join(repr(source) for source in data)}]"] if data else []
    words += [] if resume is None else [f"resume={str(resume).lower()}"]
    words += ["merge_turns=true"] if merge_turns else []
    resolved = load_config(SftConfig, config, words)
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
