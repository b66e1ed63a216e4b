"""The predicted peak is within 15 % of what a real run takes, and each part says what it should."""

import json

import pytest
import torch

from mini_llm.config import load_config
from mini_llm.plan.memory import Scenario, predict_memory
from mini_llm.train.config import TrainConfig

SHAPE = ["device=cpu", "compile=false", "model.vocab_size=512", "model.n_heads=4", "block_size=256"]
RUNS = {
    "many tokens": ["batch_size=8", "model.dim=128", "model.n_layers=6", "model.vocab_size=8000"],
    "large weights": ["batch_size=1", "model.dim=512", "model.n_layers=4", "block_size=64"],
}


@pytest.mark.parametrize("run", RUNS)
def test_a_real_run_peaks_where_predicted(run, tiny_store, tmp_path, run_cli) -> None:
    words = [*SHAPE, *RUNS[run]]
    plan = json.loads(run_cli("plan", *words, "--gpu", "cpu", "--json").stdout)
    quick = ["max_iters=2", "eval_iters=1", "log_interval=1", f"data_dir={tiny_store}", f"out_dir={tmp_path / 'run'}"]
    result = run_cli("train", *words, *quick, fresh=True)  # memory that came by a fork would count
    assert result.returncode == 0, result.stderr
    timing = [json.loads(line) for line in (tmp_path / "run" / "timing.jsonl").read_text().splitlines()]
    predicted, measured = plan["memory_bytes"]["as configured"]["peak"], timing[-1]["memory_gb"] * 1e9
    assert predicted == pytest.approx(measured, rel=0.15)


def memory(*words: str, scenario: Scenario | None = None, dtype: torch.dtype = torch.float32, on_cpu: bool = False):
    config = load_config(TrainConfig, None, ["compile=false", "model.dim=64", "model.n_heads=4", *words])
    return predict_memory(config, dtype, scenario or Scenario("as configured"), on_cpu=on_cpu)


def test_adamw_remembers_two_numbers_a_weight_and_muon_one_for_matrices() -> None:
    adamw, muon = memory(), memory("optimizer=muon")
    assert adamw.optimizer == 2 * adamw.weights == 2 * adamw.gradients
    matrices = 16 * (4 * 64 * 64 + 3 * 64 * 256)
    assert adamw.optimizer - muon.optimizer == 4 * matrices


def test_micro_batches_share_activations_and_logits() -> None:
    whole = memory("batch_size=8")
    pieces = memory("batch_size=2", "gradient_accumulation_steps=4")
    assert pieces.logits * 4 == whole.logits
    assert pieces.activations == pytest.approx(whole.activations / 4, rel=0.01)  # RoPE's tables are there once
    assert pieces.peak < whole.peak


@pytest.mark.parametrize("compiled", ["true", "false"])
def test_checkpointing_and_sharding_cut_their_own_parts(compiled) -> None:
    words = ("model.n_layers=12", f"compile={compiled}")
    plain = memory(*words)
    checkpointed = memory(*words, scenario=Scenario("", checkpointing=True))
    sharded = memory(*words, scenario=Scenario("", shards=8))
    assert checkpointed.activations < plain.activations / 3
    assert checkpointed.weights == plain.weights
    assert sharded.activations == plain.activations
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(sharded, part) == getattr(plain, part) // 8


def test_lower_precision_keeps_copies_of_weights_and_smaller_activations() -> None:
    full, low = memory(), memory(dtype=torch.bfloat16)
    assert (full.autocast, full.weights) == (0, low.weights)
    assert low.autocast == 2 * (16 * (4 * 64 * 64 + 3 * 64 * 256) + 32000 * 64)
    assert low.activations < full.activations


def test_a_compiled_head_holds_its_scores_once_in_the_products_type() -> None:
    words = ("compile=true", "batch_size=2", "model.vocab_size=1000", "block_size=256")
    full, low = memory(*words), memory(*words, dtype=torch.bfloat16)
    assert (full.logits, low.logits) == (4 * 2 * 256 * 1000, 2 * 2 * 256 * 1000)


def test_a_gpus_head_in_chunks_holds_no_float32_scores() -> None:
    """1 GiB of scores would be a chunk; they are half of it in bfloat16, and their gradient takes their place."""
    words = ("batch_size=128", "model.vocab_size=32000", "block_size=1024", "model.max_seq_len=1024")
    full, low = memory(*words), memory(*words, dtype=torch.bfloat16)
    gradients = 2 * 4 * 64 * (32000 + 128 * 1024)
    assert (full.logits, low.logits) == (2**30 + gradients, 2**29 + gradients)
    assert memory(*words, dtype=torch.bfloat16, on_cpu=True).logits == 2 * 32 * 2**20 + gradients


def test_only_a_cpu_holds_the_program_too() -> None:
    assert memory().program == memory().allocator == 0
    assert memory(on_cpu=True).program > 2e8


@pytest.mark.parametrize("length", ["512", "1024", "2048"])
def test_attention_on_a_gpu_keeps_no_weights_whatever_the_length(length) -> None:
    short, row = (
        memory("batch_size=4", "model.max_seq_len=2048", "block_size=256"),
        memory("batch_size=1", "model.max_seq_len=2048", f"block_size={length}"),
    )
    assert row.activations / int(length) == pytest.approx(short.activations / 1024, rel=0.02)
