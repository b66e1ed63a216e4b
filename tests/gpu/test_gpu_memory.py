"""Memory of a GPU: what is predicted is what is taken, out of memory halves the batch, float16 survives."""

import gc
import json
import re
from pathlib import Path

import pytest
import torch

from mini_llm.config import load_config
from mini_llm.device import forget_peak_memory, memory_gb
from mini_llm.plan.memory import Scenario, predict_memory
from mini_llm.train.config import TrainConfig
from mini_llm.train.dry_run import dry_run
from mini_llm.train.run.metrics import read_metrics
from mini_llm.train.train import train

LARGE = "model.vocab_size=32000 block_size=1024 model.max_seq_len=1024"
SHAPES = {
    "4x384, compiled, 32 rows": f"{LARGE} batch_size=32 model.n_layers=4 compile=true",  # fewer layers compile sooner
    "16x384, eager, float32": f"{LARGE} batch_size=4 model.n_layers=16 compile=false dtype=float32",
    "8x768, eager, Muon, 2 micro-batches": f"{LARGE} batch_size=8 model.n_layers=8 model.dim=768 model.n_heads=12 "
    "compile=false optimizer=muon gradient_accumulation_steps=2",
    "4x1024, GQA, compiled": f"{LARGE} batch_size=8 model.n_layers=4 model.dim=1024 model.n_heads=16 "
    "model.n_kv_heads=4 compile=true",
}
TOY = (
    "batch_size=2 block_size=64 model.dim=64 model.n_layers=2 model.n_heads=4 model.vocab_size=512 "
    "compile=false dtype=float32"
)


def settings(words: str, store: Path, run: Path, device: str) -> TrainConfig:
    fixed = f"data_dir={store} out_dir={run} device={device} max_iters=3 eval_iters=1 log_interval=1 async_save=false"
    return load_config(TrainConfig, None, [*fixed.split(), "warmup_iters=1", *words.split()])


def forget_all() -> None:
    """What is compiled holds tensors, and a model that was trained is garbage that nobody has collected yet."""
    torch.compiler.reset()
    gc.collect()
    forget_peak_memory(torch.device("cuda"))


@pytest.mark.only_cuda
@pytest.mark.parametrize("shape", SHAPES)
def test_the_peak_is_where_plan_and_dry_run_say(shape: str, device: str, store: Path, tmp_path: Path) -> None:
    from mini_llm.device import pick_dtype

    config = settings(SHAPES[shape], store, tmp_path / "run", device)
    forget_all()
    dtype = pick_dtype(config.dtype, torch.device(device))
    room = torch.cuda.get_device_properties(0).total_memory
    predicted = predict_memory(config, dtype, Scenario("as configured"), on_cpu=False, room=room).peak / 1e9
    said = re.search(r"memory +([\d.]+) GB at the peak", dry_run(config))
    assert said
    forget_all()
    train(config)
    measured = read_metrics(tmp_path / "run", "timing")[-1]["memory_gb"]
    print(f"{shape}: predicted {predicted:.2f} GB, dry run {said[1]} GB, measured {measured:.2f} GB")
    assert (predicted, float(said[1])) == pytest.approx((measured, measured), rel=0.15), "plan, dry run; measured"


def test_the_plan_and_the_dry_run_take_the_device(device: str, store: Path, tmp_path: Path, run_cli) -> None:
    words = [f"data_dir={store}", f"out_dir={tmp_path / 'run'}", f"device={device}", *TOY.split()]
    plan = json.loads(run_cli("plan", *words, "--json", *(["--gpu", "cpu"] if device == "cpu" else [])).stdout)
    assert plan["memory_bytes"]["as configured"]["peak"] > 0
    said = run_cli("train", *words, "--dry-run")
    assert said.returncode == 0, said.stderr
    assert device in said.stdout
    assert memory_gb(torch.device(device)) >= 0


@pytest.mark.only_cuda
@pytest.mark.parametrize("compiled", ["true", "false"])
def test_auto_batch_halves_on_a_real_out_of_memory(compiled: str, store: Path, tmp_path: Path, capsys) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + 1.0e9) / total))
    try:  # 32 rows of 512 tokens take some 2 GB with these scores, 8 take a quarter of it
        shape = "batch_size=64 block_size=512 model.max_seq_len=512 model.n_layers=2 model.vocab_size=16000"
        words = f"{shape} compile={compiled}"
        train(settings(f"{words} auto_batch=true eval_iters=2", store, tmp_path / "run", "cuda"))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    found = load_config(TrainConfig, tmp_path / "run" / "config.yaml")
    assert found.batch_size < 64
    assert found.rows_per_step == 64
    assert "auto_batch goes on with" in capsys.readouterr().err
    assert read_metrics(tmp_path / "run")[-1]["step"] == 3


@pytest.mark.only_cuda
def test_float16_survives_an_overflow(store: Path, tmp_path: Path) -> None:
    from mini_llm.train.step import Stepper

    words = "batch_size=4 block_size=64 model.dim=64 model.n_layers=2 model.n_heads=2 model.vocab_size=512"
    for optimizer in ("adamw", "muon"):
        config = settings(f"{words} dtype=float16 compile=false optimizer={optimizer}", store, tmp_path / "run", "cuda")
        stepper = Stepper(config)
        stepper.compile()
        stepper.step()
        before = [p.detach().clone() for p in stepper.trainee.model.parameters()]
        stepper.trainee.scaler.update(2.0**40)
        result = stepper.step()
        assert result.grad_norm == float("inf") or result.grad_norm != result.grad_norm
        assert all(torch.equal(a, b) for a, b in zip(before, stepper.trainee.model.parameters(), strict=True))
        assert stepper.trainee.scaler.get_scale() == 2.0**39
        for _ in range(30):
            result = stepper.step()
        assert result.grad_norm < float("inf")
        assert not torch.equal(before[0], next(stepper.trainee.model.parameters()))


@pytest.mark.only_cuda
def test_a_profile_tells_the_gpus_time(store: Path, tmp_path: Path) -> None:
    words = "batch_size=4 block_size=64 model.dim=64 model.n_layers=2 model.n_heads=2 model.vocab_size=512 profile=true"
    train(settings(f"{words} max_iters=8 compile=false", store, tmp_path / "run", "cuda"))
    table = (tmp_path / "run" / "profile" / "table.txt").read_text(encoding="utf-8")
    assert "matrix products" in table
    assert "optimizer" in table
