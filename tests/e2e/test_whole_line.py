"""The whole line as a user runs it: raw text in, a model that writes out, each arrow one command of its own process."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from mini_llm.train.run.metrics import read_metrics

ENV = {"OMP_NUM_THREADS": "1"}  # for models this small a second core costs more than it brings
PROMPT = "Fellow citizens of the Senate and House of Representatives:\n\n"


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, run_cli: Any, sotu_texts: list[str]) -> Path:
    """Return a folder where tokenizer, tokens and run were made by the command line from 1 MB of text."""
    folder = tmp_path_factory.mktemp("line")
    with (folder / "speeches.jsonl").open("w", encoding="utf-8") as file:
        size = 0
        for text in sotu_texts[::8]:
            size += len(text)
            if size < 1_000_000:
                file.write(json.dumps({"text": text}) + "\n")
    settings = [
        "batch_size=16", "block_size=64", "max_iters=150", "learning_rate=5e-3", "min_lr=0", "warmup_iters=10",
        "eval_interval=75", "eval_iters=8", "save_interval=75", "log_interval=10", "compile=false", "model.dim=64",
        "model.n_layers=2", "model.n_heads=4", "model.n_kv_heads=2", "model.vocab_size=1024", "model.max_seq_len=256",
    ]  # fmt: skip
    for words in (
        ["tokenizer", "train", folder / "speeches.jsonl", "--out", folder / "tokenizer", "--vocab-size", 1024],
        ["prepare", folder / "speeches.jsonl", "--tokenizer", folder / "tokenizer", "--out", folder / "tokens",
         "--val-fraction", 0.1],
        ["train", f"data_dir={folder / 'tokens'}", f"out_dir={folder / 'run'}", *settings],
    ):  # fmt: skip
        result = run_cli(*words, env=ENV, fresh=True)
        assert result.returncode == 0, result.stderr
        assert result.stdout == ""  # results alone go there
    return folder


Run = Callable[..., CompletedProcess[str]]


def test_the_loss_falls(line: Path) -> None:
    rows = read_metrics(line / "run")
    held_out = [row["val_loss"] for row in rows if "val_loss" in row]
    assert held_out[0] == pytest.approx(6.93, rel=0.02)  # ln 1024
    assert held_out == sorted(held_out, reverse=True)
    assert held_out[-1] < held_out[0] - 1.2


def test_it_writes_on_from_the_prompt(line: Path, run_cli: Run) -> None:
    result = run_cli(
        "generate", line / "run", "--prompt", PROMPT, "--max-new-tokens", 30, "--seed", 1, env=ENV, fresh=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(PROMPT)
    assert len(result.stdout) > len(PROMPT) + 10


def test_it_chats_through_a_pipe(line: Path, run_cli: Run) -> None:
    words = ["chat", line / "run", "--max-new-tokens", 20, "--seed", 1]
    result = run_cli(*words, stdin="What is the state of the Union?\n", env=ENV, fresh=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_transformers_writes_the_same_greedy_text(line: Path, run_cli: Run) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = ["--prompt", PROMPT, "--temperature", 0, "--max-new-tokens", 60, "--dtype", "float32", "--device", "cpu"]
    ours = run_cli("generate", line / "run", *words, env=ENV)
    assert ours.returncode == 0, ours.stderr
    folder = line / "run" / "latest"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(PROMPT, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=60, do_sample=False)
    assert ours.stdout.rstrip("\n") == tokenizer.decode(out[0], skip_special_tokens=True).rstrip("\n")


def test_the_demo_works_whole_and_goes_on_where_it_was(tmp_path: Path, run_cli: Run, sotu_texts: list[str]) -> None:
    (tmp_path / "small.txt").write_text("\n\n".join(sotu_texts[::25])[:400_000], encoding="utf-8")
    words = ["demo", "--corpus", tmp_path / "small.txt", "--minutes", 0.1, "--out", tmp_path / "demo"]
    result = run_cli(*words, env=ENV, timeout=500, fresh=True)
    assert result.returncode == 0, result.stderr
    assert "bits per byte" in result.stderr
    assert "xz -9" in result.stderr
    assert result.stdout.count("--- sample") == 3
    assert (tmp_path / "demo" / "run" / "plots" / "curves.png").read_bytes().startswith(b"\x89PNG")
    metrics = (tmp_path / "demo" / "run" / "metrics.jsonl").read_bytes()
    written = run_cli("generate", tmp_path / "demo", "--prompt", "The people", "--max-new-tokens", 5, env=ENV)
    assert written.stdout.startswith("The people")
    other = run_cli("demo", "--corpus", "README.md", "--out", tmp_path / "demo", env=ENV)
    assert other.returncode == 2
    assert "another corpus" in other.stderr
    (tmp_path / "demo").rename(tmp_path / "moved")
    again = run_cli("demo", "--corpus", tmp_path / "small.txt", "--out", tmp_path / "moved", env=ENV, timeout=500)
    assert again.returncode == 0, again.stderr
    assert "going on with the run" in again.stderr
    assert again.stdout == result.stdout
    for run in (result, again):
        assert "read 1 files, 1 documents; left out: nothing" in run.stderr.splitlines()
    assert (tmp_path / "moved" / "run" / "metrics.jsonl").read_bytes() == metrics
    assert not (tmp_path / "demo").exists()


def test_a_corpus_too_small_for_a_demo_says_so_before_it_measures(tmp_path: Path, run_cli: Run) -> None:
    (tmp_path / "tiny.txt").write_text("A few words, again and again and again. " * 40, encoding="utf-8")
    result = run_cli("demo", "--corpus", tmp_path / "tiny.txt", "--out", tmp_path / "demo", env=ENV)
    assert result.returncode == 1
    assert "the corpus is too small" in result.stderr
    assert "measuring" not in result.stderr
    assert "Traceback" not in result.stderr


def test_int8_costs_less_than_half_a_percent_of_held_out_loss(line: Path) -> None:
    from mini_llm.data.token_store import TokenStore
    from mini_llm.inference.backends.eager import Rows
    from mini_llm.inference.generate import Generator

    split = TokenStore.open(line / "tokens").split("val")
    losses = {}
    for dtype in ("float32", "int8"):
        backend = Generator(line / "run", device="cpu", dtype=dtype).engine.backend
        backend.cache.reserve(1, 256)
        total = 0.0
        for start in range(0, 16 * 256, 256):
            ids = torch.tensor(split.read(start, 257).astype("int64"))
            places = list(range(256))
            scores = backend.run(Rows(ids[:-1].tolist(), [0] * 256, places, places))
            total += float(torch.nn.functional.cross_entropy(scores, ids[1:]))
        losses[dtype] = total / 16
    assert losses["float32"] < 6
    assert losses["int8"] == pytest.approx(losses["float32"], rel=0.005)
