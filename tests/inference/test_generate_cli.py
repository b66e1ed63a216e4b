"""`mini-llm generate`: the text alone on stdout, the rest on stderr, an exit code that tells."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mini_llm.inference.generate import Generator

RunCli = Callable[..., subprocess.CompletedProcess[str]]
MakeModel = Callable[..., Path]


@pytest.mark.needs_compiler
def test_stdout_holds_prompt_and_text_and_stderr_the_rest(run_cli: RunCli, folder: Path, generator: Generator) -> None:
    options = ["--temperature", 0, "--max-new-tokens", 20, "--stop", "zzz", "--stop", "yyy"]
    result = run_cli("generate", folder, "--prompt", "The é\n😀", *options)
    assert result.stdout == generator.generate("The é\n😀", max_new_tokens=20, temperature=0) + "\n"
    assert re.fullmatch(r"20 tokens, [\d.]+ tokens/s \(length\)\n", result.stderr)
    assert result.returncode == 0


def test_a_prompt_from_stdin_and_every_option(run_cli: RunCli, folder: Path, generator: Generator) -> None:
    flags = ["--seed", 5, "--temperature", 0.9, "--top-k", 50, "--top-p", 0.8, "--min-p", 0.01, "--typical-p", 0.9]
    flags += ["--repetition-penalty", 1.5, "--presence-penalty", 0.1, "--frequency-penalty", 0.2]
    flags += ["--logit-bias", "300=2.5", "--logit-bias", "301=-1", "--ban", 302, "--ban", 303, "--backend", "eager"]
    flags += ["--context-overflow", "slide", "--max-new-tokens", 150]
    result = run_cli("generate", folder, *flags, "--prompt", "-", stdin="We the\npeople")
    expected = generator.generate(
        "We the\npeople", 150, 0.9, 0.8, top_k=50, min_p=0.01, typical_p=0.9, repetition_penalty=1.5,
        presence_penalty=0.1, frequency_penalty=0.2, logit_bias={300: 2.5, 301: -1}, banned_ids=[302, 303],
        seed=5, context_overflow="slide",
    )  # fmt: skip
    assert result.stdout == expected + "\n"


@pytest.mark.parametrize("sign", ["n", "t"])
def test_a_stop_string_of_signs(run_cli: RunCli, folder: Path, sign: str) -> None:
    byte = 8 + ord({"n": "\n", "t": "\t"}[sign])  # the token of that byte, which is all that the model will write
    flags = ["--temperature", 0, "--logit-bias", f"{byte}=99", "--max-new-tokens", 5, "--stop", rf"\{sign}"]
    result = run_cli("generate", folder, "--prompt", "The é", *flags)
    assert result.stdout == "The é\n"
    assert "(stop)" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere", "--prompt", "x"], 1, "no such folder"),
        (["FOLDER", "--prompt", "x", "--top-p", 0], 2, "top_p=0.0 must be"),
        (["FOLDER", "--prompt", "x", "--stop", ""], 2, "stop string must not be empty"),
        (["FOLDER", "--prompt", "x", "--logit-bias", "the=1"], 2, "--logit-bias 'the=1' must be ID=NUMBER"),
        (["FOLDER", "--prompt", "x", "--ban", 400], 2, "token id 400 does not exist"),
        (["FOLDER", "--prompt", "x" * 300], 1, "--context-overflow slide"),
        (["FOLDER"], 2, "--prompt"),
    ],
)
def test_what_the_user_can_mend_is_said_without_a_traceback(
    run_cli: RunCli, folder: Path, arguments: list[object], code: int, message: str
) -> None:
    result = run_cli("generate", *[folder if word == "FOLDER" else word for word in arguments])
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_bytes_that_are_not_utf8_become_replacement_characters(folder: Path) -> None:
    command = [sys.executable, "-m", "mini_llm", "generate", folder, "--max-new-tokens", "1", "--prompt"]
    in_an_argument = subprocess.run([*command, b"a\xffb"], capture_output=True, check=True)
    assert in_an_argument.stdout.startswith(b"a?b")
    on_stdin = subprocess.run([*command, "-"], input=b"a\xffb", capture_output=True, check=True)
    assert on_stdin.stdout.startswith("a\ufffdb".encode())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_ends_the_line_and_exits_with_130(
    start_cli: Callable[..., subprocess.Popen[bytes]], endless: Path
) -> None:
    process = start_cli("generate", endless, "--prompt", "Start", "--temperature", 0, "--max-new-tokens", 50_000)
    assert process.stdout
    assert process.stdout.read(30).startswith(b"Start")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stdout.endswith(b"\n")
    assert b"Traceback" not in stderr
