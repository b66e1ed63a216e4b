"""Cleaning: stage after stage, here or on a cluster, resumable by task; at the end a table of what went and why."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mini_llm import log
from mini_llm.data.clean.config import CleanConfig
from mini_llm.data.clean.plan import Plan, check_room, group, key, needs
from mini_llm.data.clean.report import Report, read_report
from mini_llm.data.remote import is_address
from mini_llm.data.sources import Corpus
from mini_llm.errors import UserError
from mini_llm.files import Kind, check_replaceable, write_text
from mini_llm.signals import raise_on_signal
from mini_llm.temporary import alone
from mini_llm.user_files import json_object, shown, writing_to


def _is_cleaned_here(folder: Path) -> bool:
    """Tell by the report, or by work that goes on: `kept` alone is a name that anybody may give."""
    at_work = any(re.fullmatch("work-[0-9a-f]{12}", entry.name) for entry in folder.iterdir())
    return at_work or {"kept", "steps"} <= json_object(folder / "report.json").keys()


TEXTS = r"([0-9]{5,}\.jsonl\.gz)?"
CLEAN_FOLDER = Kind(
    "a folder of cleaned text",
    re.compile(rf"kept/{TEXTS}|dropped/([\w-]+/{TEXTS})?|work-[0-9a-f]{{12}}/.*|report\.(json|md)"),
    _is_cleaned_here,
)
RESULTS = ("kept", "dropped")
WHEN_DONE = "when they are done, the same command makes the table"


@dataclass(frozen=True)
class Where:
    """Where the tasks run: `workers` processes here, a Ray cluster, or Slurm with its settings."""

    workers: int = 1
    ray: bool = False
    slurm: tuple[tuple[str, str], ...] = ()

    @property
    def is_here(self) -> bool:
        """Whether this machine does the work."""
        return not self.slurm and not self.ray

    def at_once(self, groups: list[list[str]]) -> int:
        """Return how many processes work at a time here."""
        return min(self.workers, len(groups))


def clean(
    sources: list[str],
    out: Path,
    config: CleanConfig,
    where: Where,
    text_column: str = "text",
    items: tuple[str, ...] = (),
) -> Report | None:
    """Clean `sources` into OUT/kept and OUT/dropped and return the report; None where it was handed to Slurm.

    Texts that share `decontaminate_n_grams` words in a row with one of `items` are dropped.

    Raises:
        UserError: no text, damage, no room, no Ray or Slurm, a step that failed; what was cleaned before is as it was.
        Interrupted: what was done stays, and the same command goes on.
    """
    if where.ray and importlib.util.find_spec("ray") is None:
        raise UserError("--ray needs the package ray", "pip install 'ray[default]'")
    files = local_files(sources, text_column)
    _check_apart(sources, files, out)
    check_replaceable(out, CLEAN_FOLDER)
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    with alone(out, UserError(f"another process is cleaning into {shown(out)}", "wait for it, or give another --out")):
        return _clean(files, out, config, where, text_column, items)


def _clean(
    files: list[Path], out: Path, config: CleanConfig, where: Where, text_column: str, items: tuple[str, ...]
) -> Report | None:
    with writing_to(out):
        work = out / f"work-{key(config, files, text_column, list(items))}"
        for stale in out.glob("work-*"):
            if stale != work:
                shutil.rmtree(stale)
        work.mkdir(parents=True, exist_ok=True)
    groups = group(files)
    needed = needs(config, files, text_column, where.at_once(groups))
    check_room(out, needed, works_here=where.is_here)
    plan = Plan(config.model_dump(mode="json"), groups, text_column, str(work.absolute()), bool(items))
    plan.save()
    if items:
        from mini_llm.data.clean.stages import write_grams

        write_grams(list(items), config, work / "grams")
    with raise_on_signal(f"stopped; what is done stays in {shown(work)}: the same command goes on from there"):
        if where.slurm and not _submit(plan, dict(where.slurm)):
            return None
        for number, stage in enumerate(plan.stages()):
            _run(plan, number, f"{number + 1} of {len(plan.stages())}, {stage.name}", stage.tasks, where)
    return _finish(plan, out)


def local_files(sources: list[str], text_column: str) -> list[Path]:
    """Return the files behind the sources.

    Raises:
        UserError: there are none, or some lie elsewhere.
    """
    for source in sources:  # before anybody is asked: a server may be silent
        if is_address(source):
            raise UserError(f"{source} lies elsewhere", "fetch it first: hf download, or aws s3 sync")
    corpus = Corpus(sources, text_column)
    log.note(f"left out: {corpus.found.left()}") if corpus.found.left_out else None
    return [file for file in corpus.files if isinstance(file, Path)]


def _check_apart(sources: list[str], files: list[Path], out: Path) -> None:
    """Refuse an `out` with text to be read in it, for it is emptied first, or one that the next run would read."""
    place = out.resolve()
    around = [Path(source).resolve() for source in sources if Path(source).is_dir()]
    if any(folder in place.parents for folder in around) or any(place in file.resolve().parents for file in files):
        raise UserError(f"{shown(out)} and the text that is to be cleaned lie in each other", "give another --out")


def done(plan: Plan, number: int) -> int:
    """Return how many tasks of a stage are done."""
    return len(list(plan.logs(number).glob("completions/*")))


def _run(plan: Plan, number: int, name: str, tasks: int, where: Where) -> None:
    if done(plan, number) >= tasks:
        return
    start = shown_at = time.monotonic()
    record = Path(plan.work, f"stage-{number}.log")
    words = [plan.work, str(number), str(where.workers), "ray" if where.ray else "local"]
    with record.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "mini_llm.data.clean.stage", *words],
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            while process.poll() is None:
                time.sleep(0.05)
                if time.monotonic() - shown_at > log.LINE_SECONDS:
                    shown_at = time.monotonic()
                    log.note(f"{name}: {done(plan, number):,} of {tasks:,} tasks, {shown_at - start:.0f} s")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert process.stdout is not None
    said = process.stdout.read().decode("utf-8", "replace").strip().splitlines()
    if process.returncode == 0 and done(plan, number) >= tasks:
        log.info(f"{name}: {time.monotonic() - start:.1f} s")
        return
    if said and said[-1].startswith("{"):
        told = json.loads(said[-1])
        raise UserError(told["message"], told["hint"])
    last = [line for line in record.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][-1:]
    raise UserError(f"cleaning failed in stage {name}: {(last or ['?'])[0][:300]}", f"all it said is in {record}")


def _submit(plan: Plan, settings: dict[str, str]) -> bool:
    """Hand all stages to Slurm; true where they are done already."""
    stages = plan.stages()
    if all(done(plan, number) >= stage.tasks for number, stage in enumerate(stages)):
        return True
    record = Path(plan.work, "submitted")
    if record.exists() and "again" not in settings:
        log.info(f"submitted before ({record.read_text().strip()}); {WHEN_DONE}")
        log.info("to submit again what is missing: --slurm again=1,...")
        return False
    if shutil.which("sbatch") is None:
        raise UserError("there is no sbatch here", "run it on a login node of the cluster, or without --slurm")
    from datatrove.executor.slurm import SlurmPipelineExecutor

    last, programs = None, shlex.quote(str(Path(sys.executable).parent))  # conda has no bin/activate
    for number, stage in enumerate(stages):
        last = SlurmPipelineExecutor(
            stage.steps,
            tasks=stage.tasks,
            time=settings.get("time", "24:00:00"),
            partition=settings.get("partition", "cpu"),
            cpus_per_task=int(settings.get("cpus", "1")),
            mem_per_cpu_gb=int(settings.get("mem", "4")),
            qos=settings.get("qos", "normal"),
            job_name=f"clean-{number}",
            env_command=f"export PATH={programs}:$PATH",
            logging_dir=str(plan.logs(number)),
            depends=last,
        )
    assert last is not None
    try:
        last.run()
    except subprocess.CalledProcessError as problem:
        raise UserError(f"sbatch ended with code {problem.returncode}: what it said is above") from None
    record.write_text(f"job {last.job_id} is the last\n", encoding="utf-8")
    log.info(f"submitted {len(stages)} jobs ({last.job_id} is the last); {WHEN_DONE}")
    return False


def _finish(plan: Plan, out: Path) -> Report:
    """Put the result in the place of an older one, write the report, and forget the work.

    Killed on the way it goes on: `whole` says that what is no longer in the work has come to its place.
    """
    work = Path(plan.work)
    report = read_report(plan)
    if not (work / "whole").exists():
        for name in RESULTS:
            (work / name).mkdir(exist_ok=True)
        (work / "whole").touch()
    for name in RESULTS:
        if (work / name).exists():
            shutil.rmtree(out / name, ignore_errors=True)
            (work / name).rename(out / name)
    write_text(out / "report.md", report.markdown() + "\n")
    write_text(out / "report.json", json.dumps(report.as_json(), indent=1) + "\n")
    shutil.rmtree(work)
    return report
