"""Compiling step.c: once, into the user's cache; what cannot be compiled is said in a sentence."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mini_llm.inference.backends import native
from mini_llm.inference.backends.native import NoCompiler, cache_folder, load_native


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mini-llm"


@pytest.mark.needs_compiler
def test_it_is_compiled_once_and_for_the_user_alone(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_native()
    made = {*cache.iterdir()}
    assert {path.suffix for path in made} == {".so", ".sha256"}
    assert cache.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(native, "_compile", lambda *_: pytest.fail("compiled again"))
    load_native()
    assert {*cache.iterdir()} == made


@pytest.mark.needs_compiler
def test_another_processor_gets_code_of_its_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    monkeypatch.setattr(native, "_compile", lambda _, path: made.append(path))
    for processor in ("one", "another"):
        monkeypatch.setattr(native, "_processor", lambda name=processor: name)
        with pytest.raises(NoCompiler):
            load_native()
    assert len(set(made)) == 2


@pytest.mark.needs_compiler
def test_a_damaged_library_is_made_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_it, junk = native._compile, [b"not a library", b""]

    def damaged(compiler: str, path: Path) -> None:
        path.write_bytes(junk.pop())
        monkeypatch.setattr(native, "_compile", compile_it)

    monkeypatch.setattr(native, "_compile", damaged)
    load_native()
    (made,) = cache.glob("*.so")
    assert made.stat().st_size > 1000


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what is compiled of step.c, with its sum beside it."""
    compiler, path = native.find_compiler(), tmp_path_factory.mktemp("library") / "step.so"
    assert compiler is not None
    native._compile_once(compiler, path)
    return path


@pytest.mark.needs_compiler
@pytest.mark.parametrize("left", [0.0, 0.3, 0.7, 0.999])
def test_a_library_that_was_cut_short_is_made_anew(library: Path, folder: Path, left: float, run_cli) -> None:  # type: ignore[no-untyped-def]
    """The processor would be sent SIGBUS, at the latest by the first step; so this process does not load it."""
    made, whole = native._compiler_and_library()[1], library.read_bytes()
    made.write_bytes(whole[: int(left * len(whole))])
    shutil.copy(library.with_suffix(".sha256"), made.with_suffix(".sha256"))
    result = run_cli("generate", folder, "--prompt", "The", "--max-new-tokens", "2")
    assert result.returncode == 0, result.stderr
    assert made.read_bytes() == whole


@pytest.mark.needs_compiler
def test_nothing_is_left_of_a_compilation_that_was_killed(cache: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    (tmp_path / "cc").write_text("#!/bin/sh\ntouch $TMPDIR/ccxyz.o\nkill -9 $PPID\n")
    (tmp_path / "cc").chmod(0o755)
    code = "from mini_llm.inference.backends.native import load_native; load_native()"
    for compiler, code_of_exit, n_left in ((tmp_path / "cc", -9, 1), ("cc", 0, 0)):
        env = {**os.environ, "TMPDIR": str(temporary), "CC": str(compiler)}
        found = subprocess.run([sys.executable, "-c", code], env=env, check=False, capture_output=True)
        assert found.returncode == code_of_exit, found.stderr
        assert len(list(temporary.iterdir())) == n_left
    assert {path.suffix for path in cache.iterdir()} == {".so", ".sha256"}


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_that_works_it_says_so(compiler: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(NoCompiler, match=r"no C compiler|false cannot compile step\.c"):
        load_native()
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.needs_compiler
def test_a_full_disk_is_a_reason_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(native, "_compile", full)
    with pytest.raises(NoCompiler, match="no space left"):
        load_native()


def test_a_compiler_that_hangs_is_a_reason_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("CC", str(slow))
    monkeypatch.setattr(native, "PATIENCE", 0.1)
    with pytest.raises(NoCompiler, match=r"slow has not compiled step\.c after 0\.1 seconds"):
        load_native()


def test_where_no_folder_can_be_made_a_temporary_one_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_folder().is_dir()
    assert cache_folder() == cache_folder()  # what is compiled meanwhile is what is loaded


def test_a_folder_that_may_not_be_written_is_not_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: path != cache)
    assert cache_folder() != cache


@pytest.mark.needs_compiler
def test_it_is_compiled_in_the_meantime_and_not_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_it, calls = native._compile, []

    def counted(compiler: str, path: Path) -> None:
        calls.append(path)
        compile_it(compiler, path)

    monkeypatch.setattr(native, "_compile", counted)
    compiling = native.compile_meanwhile()
    load_native()  # waits for the thread, or is what the thread waits for
    assert compiling.wait(60)
    assert len(calls) == 1
    monkeypatch.setenv("CC", "false")
    native.compile_meanwhile()  # says nothing: load_native will


def test_the_first_token_waits_for_no_compiler_of_torch(folder: Path) -> None:
    code = (
        "import sys; from mini_llm.inference.generate import Generator; "
        "Generator(sys.argv[1], device='cpu').generate('The', max_new_tokens=2); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == 0
