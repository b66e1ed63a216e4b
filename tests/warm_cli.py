"""The command line without the seconds that importing torch takes: forked from a process that has imported it.

A command is a process of its own all the same: its words, environment, folder, streams, signals and exit code, and all
of mini_llm imported anew. What a library reads while it is imported cannot be given to it: then it starts from nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

READ_WHILE_IMPORTED = ("CUDA_", "GOMP_", "KMP_", "LANG", "LC_", "LD_", "MALLOC_", "MKL_", "MPL", "PYTHON", "TORCH")
PIPE_BYTES = 60_000  # that a pipe takes before anybody reads


def needs_a_fresh_start(env: Mapping[str, str], stdin: str = "") -> bool:
    """Tell whether a command cannot be forked: another system, or settings that a library reads while imported."""
    changed = {key for key in env.keys() | os.environ.keys() if env.get(key) != os.environ.get(key)}
    return (
        not hasattr(os, "pidfd_open")  # Linux has it
        or len(stdin.encode()) > PIPE_BYTES
        or any(key.startswith(READ_WHILE_IMPORTED) for key in changed)
    )


class WarmCli:
    """A process that has imported the libraries, and forks commands."""

    def __init__(self, threads: str | None) -> None:
        self.channel, theirs = socket.socketpair()
        env = {**os.environ, **({"OMP_NUM_THREADS": threads} if threads else {})}
        command = [sys.executable, __file__, str(theirs.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env, stdin=subprocess.DEVNULL)
        theirs.close()

    def start(self, words: Sequence[str], cwd: Path, env: Mapping[str, str], *streams: int) -> WarmProcess:
        """Start a command with three descriptors as its standard streams."""
        job = json.dumps({"words": list(words), "cwd": str(cwd), "env": dict(env)}).encode()
        ends, theirs = os.pipe()
        socket.send_fds(self.channel, [len(job).to_bytes(8, "big")], [*streams, theirs])
        self.channel.sendall(job)
        os.close(theirs)
        return WarmProcess(list(words), ends)

    def run(
        self, words: Sequence[str], *, timeout: float, cwd: Path, env: Mapping[str, str], stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end; words that begin with a file of Python are that program's.

        Raises:
            TimeoutExpired: it took longer than `timeout` seconds, and was ended.
        """
        read, write = os.pipe()
        os.write(write, stdin.encode())
        os.close(write)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = self.start(words, cwd, env, read, out.fileno(), err.fileno())
            os.close(read)
            try:
                code = process.wait(timeout)
            finally:
                process.kill()
                process.wait()
            return subprocess.CompletedProcess(list(words), code, _text(out), _text(err))

    def close(self) -> None:
        """End the process."""
        self.channel.close()
        self.process.wait()


class WarmProcess:
    """A command that was forked, with what `subprocess.Popen` has of a process."""

    def __init__(self, words: list[str], ends: int) -> None:
        self.args, self.ends = words, os.fdopen(ends, "rb", 0)
        self.pid = _number(self.ends)
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit code; negative: the signal that ended it.

        Raises:
            TimeoutExpired: it goes on.
        """
        if self.returncode is None:
            if not select.select([self.ends], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = os.waitstatus_to_exitcode(_number(self.ends))
            self.ends.close()
        assert self.returncode is not None
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code; None: it goes on."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to what has not ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def _number(file: BinaryIO) -> int:
    data = file.read(8)
    assert len(data) == 8, "the process that forks has ended"
    return int.from_bytes(data, "big")


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode("utf-8").replace("\r\n", "\n")


# --- the process that forks -------------------------------------------------------------------------------------------


def serve(channel: socket.socket) -> None:
    """Fork a process for each job, and tell its number and its end; in the forked one, become the command."""
    import_libraries()
    gc.collect()
    gc.freeze()  # a collection in a child would copy all pages
    running: dict[int, tuple[int, int]] = {}  # by the descriptor that tells the end: pid, and where to tell it
    while True:
        for ready in select.select([channel, *running], [], [])[0]:
            if ready is not channel:
                pid, ends = running.pop(ready)
                status = os.waitpid(pid, 0)[1]
                with contextlib.suppress(BrokenPipeError):  # nobody asks any more
                    os.write(ends, status.to_bytes(8, "big"))
                os.close(ends)
                os.close(ready)
                continue
            head, descriptors, *_ = socket.recv_fds(channel, 8, 4)
            if not head:
                return
            job = json.loads(_exactly(channel, int.from_bytes(head + _exactly(channel, 8 - len(head)), "big")))
            *streams, ends = descriptors
            pid = os.fork()
            if pid == 0:
                channel.close()
                for held in (ends, *running, *(where for _, where in running.values())):
                    os.close(held)
                become(job, streams)
            for stream in streams:
                os.close(stream)
            os.write(ends, pid.to_bytes(8, "big"))
            running[os.pidfd_open(pid)] = pid, ends


def _exactly(channel: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = channel.recv(count - len(data))
        assert part, "the other side has ended"
        data += part
    return data


def import_libraries() -> None:
    """Import what takes long: of other people, nothing of mini_llm."""
    import numpy  # noqa: F401
    import pydantic.main  # noqa: F401
    import rich.console  # noqa: F401
    import safetensors.torch  # noqa: F401
    import sentencepiece  # noqa: F401
    import tokenizers  # noqa: F401
    import torch._dynamo  # noqa: F401 (an optimizer's first step imports it)
    import typer.rich_utils  # noqa: F401
    import yaml  # noqa: F401

    for extra in ("jinja2", "matplotlib.figure", "matplotlib.backends.backend_agg", "fastapi", "uvicorn"):
        with contextlib.suppress(ImportError):
            __import__(extra)


def become(job: dict, streams: list[int]) -> None:
    """Turn this process into `python -m mini_llm WORDS`, or `python FILE.py`, as the system would start it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = sys.__stdin__ = _stream(0, "r")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _stream(1, "w")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _stream(2, "w", errors="backslashreplace", buffering=1)  # type: ignore[misc]
    program = job["words"][0] if job["words"] and job["words"][0].endswith(".py") else None
    sys.path[0] = os.path.dirname(program) if program else job["cwd"]
    sys.argv = [*([] if program else ["mini-llm"]), *job["words"]]
    code: object = 0
    try:
        if program:
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module("mini_llm", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    leave(code if isinstance(code, int) else 1)


def _stream(number: int, mode: str, **options: Any) -> Any:
    return open(number, mode, encoding="utf-8", closefd=False, **options)


def leave(code: int) -> None:
    """End as Python does, but for taking every module apart: that would copy 180 MB which are shared until then."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):  # closed
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
