"""From raw text to text worth learning from: `clean`."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mini_llm import log, output
from mini_llm.commands.arguments import TextColumn
from mini_llm.errors import UsageError, UserError
from mini_llm.units import size

if TYPE_CHECKING:
    from mini_llm.data.clean.config import CleanConfig
    from mini_llm.data.clean.run import Where


def clean(
    words: Annotated[
        list[str],
        typer.Argument(metavar="SOURCES [KEY=VALUE]", help="Files, folders, quoted globs; settings over the file's."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the text that stays (kept/), what goes (dropped/) and why.")],
    config: Annotated[Path | None, typer.Option(help="YAML file of rules. [default: configs/clean-web.yaml's]")] = None,
    text_column: TextColumn = "text",
    workers: Annotated[int | None, typer.Option(help="Processes; default: all cores.", min=1)] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Run on the Ray cluster that this machine belongs to.")] = False,
    slurm: Annotated[
        str | None,
        typer.Option(metavar="KEY=VALUE,...", help="Submit to Slurm: partition=cpu,time=24:00:00,cpus=1,mem=4."),
    ] = None,
    decontaminate: Annotated[
        str | None, typer.Option(metavar="SETS", help="Drop texts that share 13 words in a row with these tasks.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="DIR | TASK=FILE", help="Where those sets are. [default: the hub]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done and what it needs.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Clean raw text: broken Unicode, addresses, junk, other languages, duplicates, what is in an evaluation."""
    try:
        import datatrove  # noqa: F401
    except ImportError:
        raise UserError("cleaning needs the package datatrove", "pip install 'mini-llm[clean]'") from None
    from mini_llm.config import load_config
    from mini_llm.data.clean.config import CleanConfig
    from mini_llm.data.clean.run import Where
    from mini_llm.data.clean.run import clean as run
    from mini_llm.data.prepare import cores

    sources = [word for word in words if not _is_setting(word)]
    settings = load_config(CleanConfig, config, [word for word in words if _is_setting(word)])
    where = Where(workers or cores(), ray, tuple(sorted(_pairs(slurm).items())))
    items: tuple[str, ...] = ()
    if decontaminate:
        from mini_llm.eval.overlap import texts_of

        items = tuple(texts_of([name.strip() for name in decontaminate.split(",") if name.strip()], list(data or [])))
    if dry_run:
        return _say_plan(sources, settings, text_column, out, where, decontaminates=bool(items))
    report = run(sources, out, settings, where, text_column, items)
    if report is None:
        return None
    output.line(json.dumps(report.as_json()) if json_output else report.markdown())
    log.info(f"what was dropped, and why each: {out / 'dropped'}")
    if not report.kept:
        log.warn(f"nothing was kept: the rule that dropped most is {report.strictest()}; null leaves a rule out")
        return None
    log.info(f"next: mini-llm prepare {shlex.quote(str(out / 'kept'))} --tokenizer DIR --out data/tokens")
    return None


def _say_plan(
    sources: list[str], settings: CleanConfig, text_column: str, out: Path, where: Where, *, decontaminates: bool
) -> None:
    from mini_llm.data.clean.plan import Plan, check_room, group, needs
    from mini_llm.data.clean.run import local_files

    files = local_files(sources, text_column)
    groups = group(files)
    needed = needs(settings, files, text_column, where.at_once(groups))
    plan = Plan(settings.model_dump(mode="json"), groups, text_column, str(out / "work"), decontaminates)
    log.info(f"{len(files):,} files, about {size(needed.text)} of text; about {size(needed.disk)} of disk meanwhile")
    joining = f"; to join near duplicates at most {size(needed.joining)}" if needed.joining else ""
    log.info(f"memory of {needed.workers} worker{'s' * (needed.workers != 1)}: about {size(needed.memory)}{joining}")
    for stage in plan.stages():
        log.info(f"{stage.name}: {stage.tasks:,} task{'s' * (stage.tasks != 1)}")
    near = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    check_room(near, needed, works_here=where.is_here)


def _is_setting(word: str) -> bool:
    from mini_llm.data.clean.config import CleanConfig

    key, equals, _ = word.partition("=")
    return bool(equals) and key.partition(".")[0] in CleanConfig.model_fields and not Path(word).exists()


def _pairs(text: str | None) -> dict[str, str]:
    pairs = dict(pair.split("=", 1) for pair in (text or "").split(",") if "=" in pair)
    known = {"partition", "time", "cpus", "mem", "qos", "again"}
    if text is not None and (not pairs or pairs.keys() - known):
        raise UsageError(f"--slurm {text}: not understood", f"known keys: {', '.join(sorted(known))}, as KEY=VALUE,...")
    for key in {"cpus", "mem"} & pairs.keys():
        if not re.fullmatch("[1-9][0-9]{0,5}", pairs[key]):
            raise UsageError(
                f"--slurm {key}={pairs[key]}: must be a whole number from 1 on", "for example cpus=1,mem=4"
            )
    return pairs
