"""The command line in processes that start in milliseconds: forked from a server that has already imported torch."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["mini_llm.train.train", "mini_llm.train.parallel.tensor", "torch.distributed.fsdp", "torch._dynamo"]
)


def _main(arguments: list[str], stderr: str, before: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    sys.stderr = open(stderr, "w", buffering=1, encoding="utf-8")  # noqa: SIM115 (ends with the process)
    sys.argv = ["mini-llm", *arguments]
    os.environ["COLUMNS"] = "300"
    import torch

    from mini_llm.cli import main

    torch.set_num_threads(1)
    exec(before, {})
    main()


class CliProcess:
    """A running `mini-llm ARGUMENTS`; `before` is Python that it executes first, for instance to make a disk full."""

    def __init__(self, *arguments: object, stderr: Path, before: str = "") -> None:
        self.stderr_path = stderr
        self.process = CONTEXT.Process(target=_main, args=([str(a) for a in arguments], str(stderr), before))
        self.process.start()

    def wait(self, timeout: float = 120) -> int:
        """Wait for its end and return the exit code; negative: the signal that ended it."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(self.stderr)
        return self.process.exitcode

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.process.pid is not None
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    @property
    def stderr(self) -> str:
        return self.stderr_path.read_text(encoding="utf-8") if self.stderr_path.exists() else ""


def wait_until(condition: Callable[[], bool], alive: Callable[[], bool], timeout: float = 120) -> None:
    """Poll until `condition`, or until what is watched has ended."""
    end = time.monotonic() + timeout
    while not condition() and alive():
        assert time.monotonic() < end, "timeout"
        time.sleep(0.001)


def last_step(run: Path) -> int:
    """Return the step of the last line in the run's metrics."""
    from mini_llm.train.run.metrics import read_metrics

    return max((row["step"] for row in read_metrics(run)), default=-1)
