"""A server that has imported everything once and forks a process for each command: milliseconds instead of seconds.

It reads one job a line (JSON) on descriptor 3 and answers on descriptor 4. A forked process becomes the command line
as the system would start it: its own standard streams, limits, folder and user, and Python's whole way out. A job that
asks for a fresh one gets a new interpreter instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import resource
import runpy
import select
import signal
import sys
import termios
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
OUTPUT_BYTES = 200_000  # more is not read: enough for every message
ADDRESS_SPACE = 8 * 10**9  # a command that wants more meets MemoryError rather than this machine's end
QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "200", "TERM": "xterm-256color"}


def main() -> None:
    """Serve jobs; in a forked process, become the command."""
    sys.path.insert(0, str(ROOT))
    os.environ.update(QUIET)
    _import_everything()
    gc.freeze()  # a collection in a child would copy all pages
    jobs = os.fdopen(3, encoding="utf-8", closefd=False)
    answers = os.fdopen(4, "w", encoding="utf-8", closefd=False)
    for line in jobs:
        job = json.loads(line)
        terminal = os.openpty() if job["stdout"] == "terminal" else None
        pid = os.fork()
        if pid == 0:
            for number in (3, 4, 5):  # 5: the server's own complaints
                os.close(number)
            _become(job, terminal)
            return
        if terminal:
            os.close(terminal[1])
        answers.write(json.dumps(_watch(pid, job, terminal and terminal[0])) + "\n")
        answers.flush()


def _import_everything() -> None:
    import pkgutil

    import torch._dynamo  # an optimizer's first step imports it

    import mini_llm.cli

    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(mini_llm.__path__, "mini_llm."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):
                __import__(module.name)
    with contextlib.suppress(ImportError):
        import pyarrow.parquet  # noqa: F401
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _watch(pid: int, job: dict[str, Any], terminal: int | None) -> dict[str, Any]:
    """Wait for a command's end, send it its signal, and end it and all that it has started at the deadline."""
    begin = time.monotonic()
    end, kill_at = begin + job["deadline"], begin + job["kill"][1] if job["kill"] else None
    exits = os.pidfd_open(pid)
    watched = [exits] if terminal is None else [exits, terminal]
    shown, timed_out, ended = bytearray(), False, False
    while not ended:
        until = min(end, end if kill_at is None else kill_at)
        ready = select.select(watched, [], [], max(0.0, until - time.monotonic()))[0]
        if terminal in ready:
            watched = watched if _read_into(shown, terminal) else [exits]
            continue
        ended = exits in ready
        now = time.monotonic()
        if kill_at is not None and now >= kill_at:
            os.kill(pid, job["kill"][0])  # a process that has ended is still there: nobody has waited for it
            kill_at = None
        if not ended and now >= end:
            timed_out = ended = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    os.close(exits)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # what it has left running
    if terminal is not None:
        while select.select([terminal], [], [], 0.05)[0] and _read_into(shown, terminal):
            pass
        os.close(terminal)
        with open(job["shown"], "wb") as file:
            file.write(shown)
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    seconds = time.monotonic() - begin
    return {"code": code, "seconds": seconds, "timed_out": timed_out, "megabytes": usage.ru_maxrss // 1000}


def _read_into(shown: bytearray, terminal: int) -> bool:
    """Take what the terminal shows; False where the other side has gone."""
    try:
        data = os.read(terminal, 65536)
    except OSError:
        return False
    if len(shown) < OUTPUT_BYTES:
        shown += data
    return bool(data)


# --- in the forked process -------------------------------------------------------------------------------------------


def _become(job: dict[str, Any], terminal: tuple[int, int] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as until the command line is imported
    os.chdir(job["folder"])
    os.environ.update(job["env"])
    if terminal:
        _sit_at(terminal, job["stdin"])
    else:
        os.setpgid(0, 0)
        _redirect(0, job["stdin"])
        _redirect(1, job["stdout"])
        _redirect(2, job["stderr"])
    if job["nobody"]:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    for name, value in job["limits"].items():
        number = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(number, (value, resource.getrlimit(number)[1]))
    words, script = job["words"], job.get("script")
    if job["fresh"]:
        start = [str(ROOT / script)] if script else ["-m", "mini_llm"]
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(sys.executable, [sys.executable, *start, *words])
    sys.stdin, sys.stdout, sys.stderr = (_stream(number) for number in range(3))
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    sys.argv = [script or "mini-llm", *words]
    if script:
        runpy.run_path(str(ROOT / script), run_name="__main__")
        return
    from mini_llm.cli import main as command_line

    command_line()


def _redirect(number: int, to: str) -> None:
    """Let one of the standard streams lead where the job says."""
    flags = os.O_RDONLY if number == 0 else os.O_WRONLY
    with contextlib.suppress(OSError):
        os.close(number)
    if to == "closed":
        return
    if to == "left":
        read, write = os.pipe()
        os.close(read)
        opened = write
    elif to == "waiting":  # a pipe that nobody writes to, as a person who does not type
        opened, _ = os.pipe()
    else:
        path = {"null": os.devnull, "full": "/dev/full", "folder": ".", "endless": "/dev/zero"}.get(to, to)
        opened = os.open(path, flags | (os.O_CREAT if number else 0), 0o666)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
    os.set_inheritable(number, True)  # for a new interpreter


def _sit_at(terminal: tuple[int, int], stdin: str) -> None:
    """Make the terminal that of this process, and its standard streams."""
    os.close(terminal[0])
    os.setsid()
    fcntl.ioctl(terminal[1], termios.TIOCSCTTY, 0)
    for number in range(3):
        os.dup2(terminal[1], number)
    os.close(terminal[1])
    if stdin != "terminal":
        _redirect(0, stdin)


def _stream(number: int) -> Any:
    """Return the text stream that a new interpreter would make; None where the descriptor is closed."""
    try:
        os.fstat(number)
    except OSError:
        return None
    if number == 0:
        return open(0, encoding="utf-8", closefd=False)
    errors = "backslashreplace" if number == 2 else "strict"
    buffering = 1 if number == 2 or os.isatty(number) else -1
    return open(number, "w", encoding="utf-8", errors=errors, buffering=buffering, closefd=False)


if __name__ == "__main__":
    main()
