"""What every benchmark shares: contenders that take turns, ratios of medians, the machine's name, results as JSON.

Contenders run in processes of their own, so that none disturbs another's compiler, threads or memory, and take turns in
one call: a machine that slows down for a minute slows all of them. Each process waits on its standard input for `go`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KEPT = os.environ.get("MINI_LLM_RESULTS")  # a folder: results go there, those of quick runs too
RESULTS = Path(KEPT) if KEPT else Path(__file__).resolve().parent / "results"
CRASHED: list[str] = []  # contenders that ended in an error: what is found is kept, and the command fails
MARK = "@benchmark "  # before each line that is meant for the other process: libraries print too


class Skipped(Exception):
    """A contender cannot run here; the message says why."""


def is_gpu(device: str) -> bool:
    """Tell whether work on `device` goes on after the call that started it."""
    return device.startswith("cuda")


def wait_for(device: str) -> None:
    """Wait until a GPU, this one and not just the current one, has done all it was given."""
    import torch

    if is_gpu(device):
        torch.cuda.synchronize(device)


def memory_speed(device: str, n_bytes: float) -> Callable[[], float]:
    """Return a function that measures in GB/s how fast so many bytes are read again and again, like weights.

    A CPU adds them up with all threads; a GPU copies them, which counts as reading and writing. What of them a cache
    can hold, it may. Ten times, since to start a GPU's work and to wait for it would be part of its time.
    """
    import torch

    numbers = torch.ones(int(n_bytes) // 8, dtype=torch.int64, device=device)
    read: Callable[[], Any] = numbers.sum
    n_moved = numbers.nbytes
    if is_gpu(device):
        read = functools.partial(torch.empty_like(numbers).copy_, numbers)
        n_moved *= 2

    def sample() -> float:
        read()  # into the cache
        wait_for(device)
        start = time.perf_counter()
        for _ in range(10):
            read()
        wait_for(device)
        return 10 * n_moved / (time.perf_counter() - start) / 1e9

    return sample


def gpu_clocks() -> dict[str, str] | None:
    """Return clocks, power and driver as nvidia-smi reads them now; None without it."""
    fields = "clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu,driver_version"
    try:
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"]
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(fields.split(","), (value.strip() for value in found.strip().split(",")), strict=False))


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return what a reader must know of this machine: processor, cores, instructions, GPU, software."""
    import torch

    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
            cpu = found[1]
    capability = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": capability,
        "gpu": torch.cuda.get_device_name(device if is_gpu(device) else None) if torch.cuda.is_available() else None,
        **({"gpu_clocks": gpu_clocks(), "cuda": torch.version.cuda} if is_gpu(device) else {}),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def machine_slug(about: dict[str, Any], device: str) -> str:
    """Return the machine as part of a file name: `amd-epyc-2-cores`, `nvidia-h200`."""
    name = about["gpu"] if is_gpu(device) else f"{about['cpu']} {about['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)|@.*?ghz|\bcpu\b|processor", "", name.lower())).strip("-")


def write_result(benchmark: str, result: dict[str, Any], device: str = "cpu") -> Path:
    """Write `results/BENCHMARK-MACHINE.json` and return its path; `result` must hold `machine`."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{benchmark}-{machine_slug(result['machine'], device)}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path


def read_result(benchmark: str, about: dict[str, Any], device: str = "cpu") -> dict[str, Any] | None:
    """Return what `write_result` has written of this machine; None if it has not."""
    path = RESULTS / f"{benchmark}-{machine_slug(about, device)}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


class KeptRuns:
    """Runs in a file of JSON lines: what was asked before, of the same code and data, is not run again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.done = {run["key"]: run for run in map(json.loads, lines)}

    def get(self, known: object, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the run of all that is `known` of it: as it was kept, or by `run`."""
        key = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
        if key not in self.done:
            self.done[key] = {"key": key, **run()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.done[key]) + "\n")
        return self.done[key]


def note(*words: object) -> None:
    """Say something to the person who waits; standard output is for results."""
    print(*words, file=sys.stderr, flush=True)


class Worker:
    """A process that does one sample of work at each `go` and answers with one JSON object."""

    def __init__(self, name: str, command: list[str], env: dict[str, str] | None = None) -> None:
        self.name, self.errors = name, tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self.is_late = False
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, cwd=ROOT, env=env
        )

    def answer(self) -> dict[str, Any]:
        """Wait for the next object.

        Raises:
            Skipped: the process said that it cannot run here, or ended.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                answer = json.loads(line.removeprefix(MARK))
                if "skipped" in answer:
                    raise Skipped(answer["skipped"])
                return answer
        code = self.process.wait()
        if self.is_late:
            raise Skipped("it was not ready in time")
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        raise Skipped(f"exit {code}: {lines[-1][:300] if lines else 'it said nothing'}")

    def go(self) -> dict[str, Any]:
        """Do one sample and return its answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `answer` says why it ended
        return self.answer()

    def ready(self, seconds: float | None) -> None:
        """Wait until it has warmed up, at most so long.

        Raises:
            Skipped: it cannot run here, ended, or takes longer.
        """

        def end() -> None:
            self.is_late = True
            self.process.kill()

        timer = threading.Timer(max(0.0, seconds), end) if seconds is not None else None
        if timer:
            timer.start()
        try:
            self.answer()
        finally:
            if timer:
                timer.cancel()

    def tell_to_end(self) -> None:
        """Let the process end by itself."""
        with contextlib.suppress(BrokenPipeError):
            if self.process.stdin:
                self.process.stdin.close()

    def close(self, seconds: float = 10) -> None:
        """End the process: torch's compiling processes can take long to go."""
        self.tell_to_end()
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()


def tell(answer: dict[str, Any]) -> None:
    """In a worker: send one object to the process that started it."""
    print(MARK + json.dumps(answer), flush=True)


def serve(prepare: Callable[[], Callable[[], dict[str, Any]]]) -> None:
    """In a worker: `prepare` warms up and returns the sample's function; then do one sample at each `go`."""
    try:
        sample = prepare()
    except (Skipped, ImportError) as problem:
        tell({"skipped": str(problem)})
        return
    tell({"ready": True})
    for line in sys.stdin:
        if line.strip() == "go":
            tell(sample())


Answers = dict[str, list[dict[str, Any]]]  # of each contender, one a round


def take_turns(
    commands: dict[str, list[str]],
    rounds: int,
    env: dict[str, dict[str, str]] | None = None,
    *,
    together: bool = False,
    after_round: Callable[[Answers, dict[str, str]], None] = lambda _answers, _skipped: None,
) -> tuple[Answers, dict[str, str]]:
    """Run every contender once a round, in turn, and return its answers, and why the others were skipped.

    `after_round` is given the same as it is by then: whoever is ended in the middle has left what was found.

    They start and warm up one after the other, so that the compiling of one is not the noise of the next; `together`
    lets all compile at once, where minutes of a GPU are short and cores are not, and gives one that finds no
    memory beside the others a second start. `env` gives the environment of those contenders that need another one.
    Where $MINI_LLM_SECONDS says how long all may take, whoever is not ready after 0.7 of it is left out.
    """
    workers: dict[str, Worker] = {}
    answers: Answers = {name: [] for name in commands}
    skipped: dict[str, str] = {}

    def found() -> Answers:
        return {name: values for name, values in answers.items() if name not in skipped}

    began, limit = time.monotonic(), os.environ.get("MINI_LLM_SECONDS")

    def start(name: str) -> None:
        note(f"  starting {name} ...")
        workers[name] = Worker(name, commands[name], (env or {}).get(name))

    def await_ready(name: str) -> None:
        skipped.pop(name, None)
        try:
            workers[name].ready(began + 0.7 * float(limit) - time.monotonic() if limit else None)
            note(f"  {name} is ready after {time.monotonic() - began:.0f} s")
        except Skipped as why:
            skipped[name] = str(why)
            note(f"  {name}: skipped ({why})")

    try:
        for name in commands if together else ():
            start(name)
        for name in commands:
            if not together:
                start(name)
            await_ready(name)
        for name in [name for name, why in skipped.items() if together and "out of memory" in why]:
            workers[name].close()
            start(name)
            await_ready(name)
        for number in range(rounds):
            for name in commands:
                if name not in skipped:
                    try:
                        answers[name].append(workers[name].go())
                    except Skipped as why:  # out of memory, say: the others go on
                        skipped[name] = str(why)
                        note(f"  {name}: ended ({why})")
            after_round(found(), dict(skipped))
            note(f"  round {number + 1} of {rounds}")
    finally:
        for worker in workers.values():
            worker.tell_to_end()
        for worker in workers.values():
            worker.close(3 if together else 10)
    CRASHED.extend(f"{name}: {why}" for name, why in skipped.items() if is_crash(why))
    return found(), skipped


def is_crash(why: str) -> bool:
    """Tell whether a contender was left out for an error; a missing package, or too little memory, is none."""
    return why.startswith("exit ") and "out of memory" not in why.lower()


def stepper_of_same_rows(settings: dict[str, Any], rows: Any = None) -> Any:
    """Return a `Stepper` that trains on the same rows in every step (random by default) and needs no token store."""
    import torch

    from mini_llm.train.config import TrainConfig
    from mini_llm.train.objective import Pretraining
    from mini_llm.train.step import Stepper

    config = TrainConfig.model_validate(settings)
    shape = (config.rows_per_step, config.block_size + 1)
    if rows is None:
        rows = torch.randint(config.model.vocab_size, shape, generator=torch.Generator().manual_seed(0))

    class SameRows(Pretraining):
        def __init__(self) -> None:
            self.config, self.fingerprints = config, {}

        def example(self) -> Any:
            return rows[: config.batch_size]

        def rows(self, step: int) -> Any:
            return rows

        def epoch(self, step: int) -> float:
            return float(step)

        def noted(self, step: int) -> dict[str, float]:
            return {}

    return Stepper(config, SameRows())


def median(values: Iterable[float]) -> float:
    """Return the middle value: a hiccup of the machine does not move it."""
    return statistics.median(values)


def mean_and_spread(values: list[float]) -> dict[str, Any]:
    """Return the mean, the standard deviation (0 of a single value) and the values."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "spread": spread, "each": values}


def pair_ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median of ours / theirs, round by round: both saw the same seconds of the machine."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def command_line() -> str:
    """Return what was typed, so that others can type it; of a path outside the repository they share only the name."""
    words = [re.sub(r"(^|=)/.*/", r"\1.../", word.replace(f"{ROOT}/", "")) for word in sys.argv[1:]]
    threads = os.environ.get("OMP_NUM_THREADS")
    typed = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])
    return f"OMP_NUM_THREADS={threads} {typed}" if threads else typed


def write_so_far(benchmark: str, result: dict[str, Any], *, device: str, keep: bool) -> dict[str, Any]:
    """Write the result and its command to a file if `keep`, in the place of what was there; return what is written."""
    result = {"command": command_line(), **result}
    if keep or KEPT:
        note(f"  written: {write_result(benchmark, result, device).name}")
    return result


def finish(benchmark: str, result: dict[str, Any], *, as_json: bool, device: str = "cpu", keep: bool = True) -> None:
    """Write the result and its command to a file if `keep`, and with `as_json` print it as the last line.

    Raises:
        SystemExit: a contender ended in an error.
    """
    if is_gpu(device):
        about = result["machine"]
        print(f"\n{about['gpu']}, clocks {about['gpu_clocks']}, torch {about['torch']}, CUDA {about['cuda']}")
    result = write_so_far(benchmark, result, device=device, keep=keep)
    note(f"  the command: {result['command']}")
    if as_json:
        print(json.dumps(result), flush=True)
    if CRASHED:
        sys.exit("ended in an error: " + "; ".join(CRASHED))
