"""The campaign: makes the sound world, runs every case through the real command line, and counts verdicts by area."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import importlib
import json
import os
import pkgutil
import queue
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _bad_inputs import areas
from _bad_inputs.case import Case, Outcome, judge
from _bad_inputs.hostile import is_plain
from _bad_inputs.world import ROOT, SFT, TUNE, Verb, World, result_of, write_raw

HERE = Path(__file__).resolve().parent
OUTPUT_BYTES = 200_000


class Server:
    """One server process of server.py: a command at a time."""

    def __init__(self) -> None:
        jobs, answers = os.pipe(), os.pipe()
        self.errors = os.open(os.devnull, os.O_WRONLY)

        def lead() -> None:  # descriptors 3, 4 and 5, which the server expects
            kept = [os.dup2(number, 100 + i) for i, number in enumerate((jobs[0], answers[1], self.errors))]
            for number, i in zip(kept, (3, 4, 5), strict=True):
                os.dup2(number, i, inheritable=True)
            os.closerange(6, 256)

        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "server.py")], preexec_fn=lead, close_fds=False, stdin=subprocess.DEVNULL
        )
        os.close(jobs[0])
        os.close(answers[1])
        self.jobs, self.answers = os.fdopen(jobs[1], "w"), os.fdopen(answers[0])

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run one command and return its code, seconds and memory."""
        self.jobs.write(json.dumps(job) + "\n")
        self.jobs.flush()
        answer = json.loads(self.answers.readline())
        assert isinstance(answer, dict)
        return answer

    def close(self) -> None:
        """End the server."""
        self.jobs.close()
        self.process.wait()
        self.answers.close()
        os.close(self.errors)


class Campaign:
    """A world, its servers and the verdicts."""

    def __init__(self, folder: Path, n_servers: int) -> None:
        self.folder = folder
        folder.chmod(0o755)
        self.world = World(folder / "world")
        for name in ("tmp", "home", "cases"):
            (folder / name).mkdir()
        self.servers = [Server() for _ in range(n_servers)]
        self.numbers = iter(range(10**9))

    def close(self) -> None:
        """End the servers."""
        for server in self.servers:
            server.close()

    def make_world(self) -> None:
        """Make everything that is sound, with the commands themselves."""
        home = self.world.home
        write_raw(home)
        subprocess.run(
            [sys.executable, "-m", "_bad_inputs.world", str(home / "seed.pt")],
            check=True, env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        )  # fmt: skip
        for words in (
            ["tokenizer", "train", "corpus", "--out", "tok", "--vocab-size", "400"],
            ["prepare", "corpus", "--tokenizer", "tok", "--out", "tokens", "--val-fraction", "0.1"],
            ["train", "--config", "train.yaml"],
            ["generate", "run", "--prompt", "a"],  # compiles what a CPU needs, once
        ):
            self._sound(Verb(words[0], words, ()), home)
        shutil.copytree(home / "run" / "latest", home / "model", symlinks=False)
        (home / "free").mkdir()  # a model folder without checksums, as from elsewhere
        for path in (home / "model").iterdir():
            if path.is_file() and path.name != "checksums.json":
                shutil.copyfile(path, home / "free" / path.name)
        learn = ["epochs=40", "learning_rate=0.02", "eval_interval=1000"]
        for words, name in (
            (["sft", "--base", "model", "--data", "chats.jsonl", *TUNE, *learn, "out_dir=taught"], "chat"),
            (["sft", "--base", "model", "--data", "chats.jsonl", *SFT, "lora.rank=2", "out_dir=thin"], "adapter"),
        ):
            self._sound(Verb(words[0], words, ()), home)
            run = home / words[-1].partition("=")[2]
            shutil.copytree(run / "latest", home / name, symlinks=False)
            shutil.rmtree(run)

    def _results_for(self, cases: list[Case]) -> None:
        """Make the sound result of every verb that one of the cases is held against."""
        for name in dict.fromkeys(getattr(case.check, "verb", None) for case in cases):
            if name and name not in self.world.results:
                verb, folder = self.world.verbs[name], self._new_folder()
                self.world.make(verb)(folder)
                self.world.results[name] = result_of(verb, self._sound(verb, folder))
                shutil.rmtree(folder)

    def _sound(self, verb: Verb, folder: Path) -> Outcome:
        case = Case("world", verb.name, verb.words, lambda _: None, stdin=verb.stdin, deadline=120)
        outcome = self._run(self.servers[0], case, folder)
        if outcome.code != 0:
            sys.exit(f"the sound command failed: mini-llm {' '.join(verb.words)}\n{outcome.said}")
        return outcome

    def results(self, cases: list[Case]) -> Iterator[tuple[Case, str, str, Outcome]]:
        """Yield each case with its verdict, as they end."""
        self._results_for(cases)
        waiting: queue.SimpleQueue[Case | None] = queue.SimpleQueue()
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for case in cases:
            waiting.put(case)

        def work(server: Server) -> None:
            waiting.put(None)
            try:
                while (case := waiting.get()) is not None:
                    done.put(self.one(server, case))
            except BaseException as problem:
                done.put(problem)

        for server in self.servers:
            threading.Thread(target=work, args=(server,), daemon=True).start()
        for _ in cases:
            result = done.get()
            if isinstance(result, BaseException):
                raise result
            yield result

    def one(self, server: Server, case: Case) -> tuple[Case, str, str, Outcome]:
        """Fill a folder, run the command in it, judge, and remove the folder.

        What seems to hang is tried again with four times as long: on a busy machine two seconds of work take a minute.
        """
        found = self._once(server, case)
        if found[1] == "hang":
            found = self._once(server, dataclasses.replace(case, deadline=4 * case.deadline))
        return found

    def _once(self, server: Server, case: Case) -> tuple[Case, str, str, Outcome]:
        folder = self._new_folder()
        case.make(folder)
        before = _snapshot(folder)
        outcome = self._run(server, case, folder)
        after = _snapshot(folder)
        outcome.lost = [
            name
            for name, found in before.items()
            if after.get(name) != found and not any(fnmatch.fnmatch(name, pattern) for pattern in case.changes)
        ]
        try:
            verdict, reason = judge(case, outcome)
        except Exception as problem:  # a result that its check cannot even read
            verdict, reason = "silent", f"the result cannot be read: {type(problem).__name__}: {problem}"
        subprocess.run(["chmod", "-R", "u+rwx", str(folder)], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(folder, ignore_errors=True)
        return case, verdict, reason, outcome

    def _new_folder(self) -> Path:
        folder = self.folder / "cases" / str(next(self.numbers))
        folder.mkdir()
        folder.chmod(0o777)
        return folder

    def _run(self, server: Server, case: Case, folder: Path) -> Outcome:
        outputs = [folder.with_name(f"{folder.name}.{name}") for name in ("out", "err", "tmp")]
        outputs[2].mkdir()
        outputs[2].chmod(0o777)
        env = {"TMPDIR": str(outputs[2]), "HOME": str(self.folder / "home"),
               "XDG_CACHE_HOME": str(self.folder / "home"),
               "NO_COLOR": "" if case.is_terminal else "1", **case.env}  # fmt: skip
        job = {
            "folder": str(folder), "words": case.words, "env": env, "limits": case.limits, "kill": case.kill,
            "deadline": case.deadline, "fresh": case.fresh, "script": case.script, "nobody": case.nobody,
            "stdin": case.stdin, "shown": str(outputs[0]),
            "stdout": str(outputs[0]) if case.stdout == "file" else case.stdout,
            "stderr": str(outputs[1]) if case.stderr == "file" else case.stderr,
        }  # fmt: skip
        answer = server.run(job)
        texts = [path.read_bytes()[:OUTPUT_BYTES] if path.is_file() else b"" for path in outputs[:2]]
        # torch.compile keeps its own cache there, to be found again
        litter = [path.name for path in outputs[2].iterdir() if not path.name.startswith("torchinductor")]
        for path in outputs[:2]:
            path.unlink(missing_ok=True)
        shutil.rmtree(outputs[2], ignore_errors=True)
        return Outcome(answer["code"], answer["seconds"], answer["timed_out"], *texts, folder=folder, litter=litter)


def _snapshot(folder: Path) -> dict[str, str]:
    found = {}
    for root, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(root, name)
            relative = os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace")
            if path.is_symlink():
                found[relative] = f"link {os.readlink(path)!r}"
            elif path.is_dir():
                found[relative] = "folder"
            else:
                found[relative] = hashlib.md5(path.read_bytes()).hexdigest() if is_plain(path) else "special"
    return found


def area_names() -> list[str]:
    """Return the areas: the files of areas/."""
    return [module.name for module in pkgutil.iter_modules(areas.__path__)]


def all_cases(world: World, seed: int, only: list[str] | None = None) -> list[Case]:
    """Return the cases of all areas; the same seed gives the same ones."""
    cases: list[Case] = []
    for name in only or area_names():
        module = importlib.import_module(f"_bad_inputs.areas.{name}")
        cases += module.cases(world, random.Random(f"{seed} {name}"))
    return cases


def chosen(cases: list[Case], count: int, seed: int) -> list[Case]:
    """Return `count` of the cases, as many of each area as it has, drawn by the dice."""
    dice, by_area = random.Random(seed), dict[str, list[Case]]()
    for case in cases:
        by_area.setdefault(case.area, []).append(case)
    picked: list[Case] = []
    for left, found in zip(range(len(by_area), 0, -1), sorted(by_area.values(), key=len), strict=True):
        picked += dice.sample(found, min((count - len(picked)) // left, len(found)))
    return picked


def is_quick(case: Case) -> bool:
    """Tell whether a case belongs into a small sample: no new interpreter, no waiting."""
    return not case.fresh and case.kill is None and case.deadline <= 40


def repository_version() -> str:
    """Return the commit that was tried."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"
