"""Compile step.c for this very processor, once: a second or two, then the library waits in the user's cache folder."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

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
            return ctypes.CDLL(str(path))
        except OSError as problem:
            reason = str(problem)
            path.unlink(missing_ok=True)
    raise NoCompiler(reason)


def compile_meanwhile() -> None:
    """Compile step.c in a thread of its own, if it is not there yet: the caller imports torch, which takes longer.

    The library is not loaded: torch's own OpenMP must come first. What goes wrong is told by `load_native`.
    """

    def attempt() -> None:
        with suppress(NoCompiler, OSError):
            _compile_once(*_compiler_and_library())

    threading.Thread(target=attempt, name="mini-llm compiler").start()


def _compiler_and_library() -> tuple[str, Path]:
    compiler = find_compiler()
    if compiler is None:
        raise NoCompiler("no C compiler (cc, gcc or clang) was found")
    key = "\n".join([SOURCE.read_text(encoding="utf-8"), compiler, str(FLAGS), sys.platform, _processor()])
    return compiler, cache_folder() / f"step-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"


def _compile_once(compiler: str, path: Path) -> None:
    """Compile, if the library is not there yet; a second caller waits for the first."""
    with _compiling:
        if not path.exists():
            _compile(compiler, path)


def cache_folder() -> Path:
    """Return the folder of compiled code: `$XDG_CACHE_HOME/mini-llm`, or one in the user's home, for the user alone."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mini-llm"
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return _temporary_folder()  # a home that cannot be written: compiled anew by each process


@functools.cache
def _temporary_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="mini-llm-"))


def _compile(compiler: str, path: Path) -> None:
    errors = ""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for flags in FLAGS:
            made = Path(folder) / path.name
            command = [compiler, *flags, "-o", str(made), str(SOURCE), "-lm"]
            try:
                result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
            except subprocess.TimeoutExpired:
                raise NoCompiler(f"{compiler} has not compiled step.c after {PATIENCE} seconds") from None
            if result.returncode == 0:
                made.replace(path)  # whole or not at all: two processes may compile at once
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
