"""`mini-llm eval`: results on stdout, kept as lm-eval writes them, and clear words where something is wrong."""

import json
import re
from pathlib import Path

import pytest


def test_the_table_and_what_is_kept(run_cli, model_folder: Path, sets: Path, tmp_path: Path) -> None:
    words = ("--tasks", "piqa,lambada,blimp", "--data", sets, "--out", tmp_path / "out", "--samples")
    result = run_cli("eval", model_folder, *words, fresh=True)
    assert result.returncode == 0, result.stderr
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in result.stdout.splitlines() if line[:1] == "|"
    ]
    assert rows[0][:9] == ["Tasks", "Version", "Filter", "n-shot", "Metric", "", "Value", "", "Stderr"]
    assert [row[0] for row in rows[2:] if row[0]] == ["piqa", "lambada_openai", "blimp"]
    assert "2 of its 67 members are there" in result.stderr
    assert "not above chance" in result.stdout
    (path,) = (tmp_path / "out").glob("results_*.json")
    found = json.loads(path.read_text())
    value = found["results"]["piqa"]["acc,none"]
    assert rows[2][6] == f"{value:.4f}"
    assert {"acc_stderr,none", "acc_norm,none", "sample_len"} <= found["results"]["piqa"].keys()
    assert found["group_subtasks"]["blimp"] == [
        "blimp_anaphor_gender_agreement",
        "blimp_regular_plural_subject_verb_agreement_1",
    ]
    (samples,) = (tmp_path / "out").glob("samples_piqa_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert sum(line["acc"] for line in lines) / len(lines) == value
    assert re.fullmatch(r"Question: .*\nAnswer:", lines[0]["arguments"]["gen_args_0"]["arg_0"])


def test_json_is_the_whole_of_stdout(run_cli, model_folder: Path, sets: Path) -> None:
    result = run_cli(
        "eval", model_folder, "--tasks", "copa", "--data", f"copa={sets / 'copa.jsonl'}", "--json", "--limit", 5
    )
    found = json.loads(result.stdout)
    assert found["n-samples"]["copa"] == {"original": 20, "effective": 5}
    assert found["mini_llm"]["lines"][0]["chance"] == 0.5


def test_results_are_told_also_where_they_cannot_be_kept(run_cli, model_folder: Path, tiny_corpus, tmp_path) -> None:
    text = tiny_corpus(tmp_path / "text.txt", documents=1)
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        result = run_cli("eval", model_folder, "--text", text, "--out", out)
        assert result.returncode == 1
        assert f"cannot write {out}" in result.stderr
        assert "nats/token" in result.stdout
    assert (tmp_path / "file").read_text() == "mine"


def test_the_loss_of_a_text(run_cli, model_folder: Path, tiny_corpus, tmp_path: Path) -> None:
    corpus = tiny_corpus(tmp_path / "text.jsonl", 5)
    result = run_cli("eval", model_folder, "--text", corpus, "--json")
    (loss,) = json.loads(result.stdout)["mini_llm"]["texts"]
    n_bytes = sum(len(json.loads(line)["text"].encode()) for line in corpus.read_text().splitlines())
    assert (loss["documents"], loss["bytes"]) == (5, n_bytes)
    assert loss["bits_per_byte"] == pytest.approx(loss["loss"] * loss["tokens"] / n_bytes / 0.6931471805599453)
    assert loss["bits_per_byte_lm_eval"] > loss["bits_per_byte"]
    assert "foretells BOS too" in run_cli("eval", model_folder, "--text", corpus).stdout


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (["--tasks", "piqqa"], "no task 'piqqa', did you mean 'piqa'?", 2),
        ([], "nothing to evaluate", 2),
        (["--tasks", "piqa", "--data", "nowhere"], "no such file or folder: nowhere", 1),
        (["--tasks", "piqa", "--data", "README.md"], "which task is it for?", 1),
        (["--tasks", "piqa", "--data", "piqa=README.md"], "unknown format '.md'", 1),
        (["--tasks", "nothing.yaml"], "cannot read the task nothing.yaml", 1),
        (["--tasks", "piqa", "--data", "tests/eval/sets", "--shots", "99"], "99 examples are asked for", 1),
        (["--tasks", "piqa", "--data", "tests/eval/sets", "--dtype", "int4"], "dtype 'int4'", 2),
        (["--text", "nowhere.txt"], "nowhere.txt", 1),
        (["--store", "nowhere"], "nowhere", 1),
        (["--tasks", "piqa", "--data", "tests/eval/sets", "--overlap"], "needs the training text", 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said(words: list[str], said: str, code: int, run_cli, model_folder: Path) -> None:
    result = run_cli("eval", model_folder, *words)
    assert result.returncode == code, result.stderr
    assert said in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_a_model_that_is_not_there(run_cli, sets: Path) -> None:
    result = run_cli("eval", "nowhere", "--tasks", "piqa", "--data", sets)
    assert (result.returncode, "no such folder: nowhere" in result.stderr) == (1, True)
    result = run_cli("eval", "http://127.0.0.1:9", "--tasks", "piqa", "--data", sets)
    assert result.returncode == 1
    assert "is the server running?" in result.stderr
