"""Compile step.c for this very processor, once: a second or two, then the library waits in the user's cache folder.

It is there whole or not at all, its checksum beside it: code that a crash has cut off would end the process (SIGBUS).
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

from mini_llm import cache
from mini_llm.files import new_file, sha256_of, write_text
from mini_llm.temporary import temporary_folder
from mini_llm.threads import Worker

SOURCE = Path(__file__).with_name("step.c")
# The first set of flags that the compiler takes; without OpenMP one thread computes.
TUNE = ["-O2", "-shared", "-fPIC", "-ffp-contract=off"]
FLAGS = [
    [*TUNE, "-march=native", "-fopenmp"],
    [*TUNE, "-mcpu=native", "-fopenmp"],
    [*TUNE, "-march=native"],
    [*TUNE, "-mcpu=native"],
    [*TUNE],
]
PATIENCE = 60  # seconds; a compiler needs two

_compiling = threading.Lock()


class NoCompiler(Exception):
    """step.c cannot be compiled here; the message says why."""


def find_compiler() -> str | None:
    """Return the C compiler: `$CC`, or the first of cc, gcc and clang; None where there is none."""
    if os.name == "nt":  # MSVC has no vector types
        return None
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    return next((found for name in names if (found := shutil.which(name))), None)


def load_native() -> ctypes.CDLL:
    """Return the compiled step.c, from the cache where it is there.

    Raises:
        NoCompiler: there is no C compiler, or it does not take the source.
    """
    compiler, path = _compiler_and_library()
    for _ in range(2):  # a damaged library is made anew, once
        try:
            _compile_once(compiler, path)
            if not is_whole(path):
                raise OSError(f"{path} is damaged")
            return ctypes.CDLL(str(path))
        except OSError as problem:
            reason = str(problem)
            path.unlink(missing_ok=True)
    raise NoCompiler(reason)


def compile_meanwhile() -> Worker[None]:
    """Compile step.c in a thread of its own, if it is not there yet: the caller imports torch, which takes longer.

    The library is not loaded: torch's own OpenMP must come first. What goes wrong is told by `load_native`.
    """

    def attempt() -> None:
        with suppress(NoCompiler, OSError):
            _compile_once(*_compiler_and_library())

    return Worker(attempt)


def _compiler_and_library() -> tuple[str, Path]:
    compiler = find_compiler()
    if compiler is None:
        raise NoCompiler("no C compiler (cc, gcc or clang) was found")
    key = "\n".join([SOURCE.read_text(encoding="utf-8"), compiler, str(FLAGS), sys.platform, _processor()])
    return compiler, cache_folder() / f"step-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"


def _compile_once(compiler: str, path: Path) -> None:
    """Compile, if the library is not there yet; a second caller waits for the first."""
    with _compiling:
        if not is_whole(path):
            _compile(compiler, path)
            write_text(path.with_suffix(".sha256"), sha256_of(path))


def is_whole(path: Path) -> bool:
    """Tell whether a library is there, as it was compiled."""
    try:
        return path.with_suffix(".sha256").read_text(encoding="ascii") == sha256_of(path)
    except (OSError, ValueError):
        return False


def cache_folder() -> Path:
    """Return the folder of compiled code: `$XDG_CACHE_HOME/mini-llm`, or one in the user's home, for the user alone."""
    folder = cache.cache_folder()
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return _temporary_folder()  # a home that cannot be written: compiled anew by each process


@functools.cache
def _temporary_folder() -> Path:
    stack = ExitStack()
    atexit.register(stack.close)  # killed, it goes with the next call
    return stack.enter_context(temporary_folder())


def _compile(compiler: str, path: Path) -> None:
    errors = ""
    with temporary_folder() as folder:
        for flags in FLAGS:
            made = folder / path.name
            command = [compiler, *flags, "-o", str(made), str(SOURCE), "-lm"]
            try:
                result = subprocess.run(
                    command,
                    capture_output=True,
                    text=True,
                    timeout=PATIENCE,
                    check=False,
                    env={**os.environ, "TMPDIR": str(folder)},  # its own files go with ours, also after a kill
                )
            except subprocess.TimeoutExpired:
                raise NoCompiler(f"{compiler} has not compiled step.c after {PATIENCE} seconds") from None
            if result.returncode == 0:
                with new_file(path) as whole:  # or not at all: two processes may compile at once
                    shutil.copyfile(made, whole)
                return
            errors = errors or result.stderr
    raise NoCompiler(f"{compiler} cannot compile step.c: {(errors.strip().splitlines() or ['no message'])[0][:200]}")


def _processor() -> str:
    """Return what `-march=native` looks at: code for one processor may crash on another that shares the home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "\n".join(
        sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    )
