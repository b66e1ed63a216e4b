"""Tuning and several processes on a GPU: every verb runs there, and learns from the first step what a CPU would."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mini_llm.checkpoint import save_model
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.run.metrics import read_metrics

SHAPE = ModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=512, max_seq_len=256)
WORDS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "owl", "pig", "rat", "cow"]
COMMON = ["max_iters=4", "warmup_iters=1", "eval_interval=2", "save_interval=2", "log_interval=1", "seed=3"]
PROCESSES = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]


@pytest.fixture(scope="module")
def base(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = Transformer(SHAPE)
    model.init_weights(seed=0)
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model(folder, model, Tokenizer.load(store.parent / "tokenizer"))
    return folder


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def talk(a: str, b: str) -> list[dict]:
    return [{"role": "user", "content": f"Spell {a}{b}."}, {"role": "assistant", "content": " ".join(a + b)}]


def start(words: list[str], device: str) -> subprocess.Popen[str]:
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
        **({} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}),
    }
    return subprocess.Popen(
        [sys.executable, *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_every_verb_of_tuning_learns_what_a_cpu_would(
    device: str, base: Path, store: Path, tmp_path: Path, run_cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    chats = write(tmp_path / "chats.jsonl", [{"messages": talk(a, b)} for a in WORDS for b in WORDS])
    pairs = write(
        tmp_path / "pairs.jsonl",
        [
            {"prompt": talk(a, b)[:1], "chosen": talk(a, b)[1:], "rejected": [{"role": "assistant", "content": a}]}
            for a in WORDS
            for b in WORDS
        ],
    )
    small = "batch_size=4 block_size=64 compile=false"
    rl = "prompts_per_step=4 samples=4 max_new_tokens=12 eval_questions=8"
    wanted = {
        "sft": ["sft", "--base", str(base), "--data", str(chats), *small.split()],
        "sft compiled, replay": [
            "sft",
            "--base",
            str(base),
            "--data",
            str(chats),
            *["batch_size=4", "block_size=64", "compile=true", "replay=0.3"],
            f"data_dir={store}",
        ],
        "lora": ["sft", "--base", str(base), "--data", str(chats), *small.split(), "lora.rank=4"],
        "dpo": ["dpo", "--base", str(base), "--data", str(pairs), *small.split()],
        "rl": ["rl", "--base", str(base), "--task", "spelling", *small.split(), *rl.split()],
    }
    started = {}
    for where in {device, "cpu"}:
        for kind, words in wanted.items():
            out = tmp_path / f"{where} {kind}"
            command = [*words, *COMMON, f"out_dir={out}", f"device={where}", "dtype=float32"]
            if device == "cpu":  # no card whose minutes count: one after the other, without the seconds of a start
                said = run_cli(*command, env={"OMP_NUM_THREADS": "1"})
                assert said.returncode == 0, f"{where}, {kind}: {said.stderr}"
            else:
                started[where, kind] = start(["-m", "mini_llm", *command], where)
    for (where, kind), process in started.items():
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, f"{where}, {kind}: {errors}"
    for kind in wanted:
        found, expected = (read_metrics(tmp_path / f"{where} {kind}") for where in (device, "cpu"))
        first = [next(row["loss"] for row in rows if "loss" in row) for rows in (found, expected)]
        assert first[0] == pytest.approx(first[1], rel=1e-4, abs=1e-6), kind


@pytest.mark.only_cuda
@pytest.mark.parametrize("shard", ["ddp", "full"])
def test_processes_connected_by_nccl_learn_what_one_alone_learns(shard: str, store: Path, tmp_path: Path) -> None:
    words = [
        "-m", "mini_llm", "train", f"data_dir={store}", "device=cuda", *COMMON, "batch_size=4", "block_size=64",
        "model.dim=64", "model.n_layers=2", "model.n_heads=4", "model.vocab_size=512", "model.max_seq_len=64",
        "optimizer=muon", "dtype=float32",
    ]  # fmt: skip
    runs = {
        "alone": start([*words, "compile=false", f"out_dir={tmp_path / 'alone'}"], "cuda"),
        "eager": start(
            [*PROCESSES, *words, "compile=false", f"parallel.shard={shard}", f"out_dir={tmp_path / 'eager'}"], "cuda"
        ),
        "bf16": start(
            [
                *PROCESSES,
                *words,
                "compile=true",
                "dtype=bfloat16",
                f"parallel.shard={shard}",
                f"out_dir={tmp_path / 'bf16'}",
            ],
            "cuda",
        ),
    }
    for kind, process in runs.items():
        said = process.communicate(timeout=120)
        assert process.returncode == 0, f"{kind}: {said[1]}"
    losses = {kind: [row["loss"] for row in read_metrics(tmp_path / kind) if "loss" in row] for kind in runs}
    assert losses["eager"] == pytest.approx(losses["alone"], rel=1e-5)
    assert losses["bf16"] == pytest.approx(losses["alone"], rel=2e-2)
    assert torch.cuda.is_available()
