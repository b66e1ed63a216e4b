"""LoRA through the real command: it learns, resumes to the bit, all readers take its folder, no other base will do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from mini_llm import Generator
from mini_llm.adapter import stack_of
from mini_llm.checkpoint import load_model, read_model_config
from mini_llm.errors import UsageError, UserError
from mini_llm.inference.engine.engine import Engine
from mini_llm.inference.engine.request import Request
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.model.transformer import Transformer
from mini_llm.pointers import resolve_checkpoint
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.run.metrics import read_metrics
from mini_llm.tune.adapter_files import begin
from mini_llm.tune.config import LoraConfig, SftConfig, with_base
from mini_llm.tune.lora import plain_copy
from mini_llm.tune.markers import marker_ids
from mini_llm.tune.sft import sft

SMALL = {"block_size": 127, "batch_size": 4, "compile": False, "device": "cpu", "dtype": "float32"}
MARKERS = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
IDS = torch.arange(3, 60)[None]


@pytest.fixture
def settings(base: Path, spelling_file: Path, tmp_path: Path) -> Callable[..., SftConfig]:
    def make(**changes: Any) -> SftConfig:
        values = {"base": str(base), "data": [str(spelling_file)], "out_dir": str(tmp_path / "run"), **SMALL}
        return SftConfig.model_validate({**values, "lora": {"rank": 4}, "epochs": 2, "eval_interval": 3, **changes})

    return make


def trained(base: Path, lora: LoraConfig) -> Transformer:
    """Return a model with LoRA whose every trained number was moved."""
    model = Transformer(read_model_config(base))
    begin(model, base, str(base), lora, Tokenizer.load(base), seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.05)
    return model.eval()


def test_it_begins_as_the_base_and_moves_nothing_of_it(settings, base: Path) -> None:  # type: ignore[no-untyped-def]
    before = (base / "model.safetensors").read_bytes()
    run = sft(settings(epochs=20, learning_rate=0.01))
    assert (base / "model.safetensors").read_bytes() == before
    losses = [row["val_loss"] for row in read_metrics(run) if "val_loss" in row]
    whole = sft(settings(lora={"rank": 0}, out_dir=str(run.with_name("whole")), epochs=None, max_iters=1))
    assert losses[0] == next(row["val_loss"] for row in read_metrics(whole) if "val_loss" in row)
    assert losses[-1] < losses[0] - 0.5
    saved = load_file(run / "latest/adapter_model.safetensors")
    assert len(saved) == 2 * 7 * 2 + 1, "A and B of seven matrices in two layers, and the rows of the markers"
    state = load_file(run / "latest/training_state/optimizer.safetensors")
    assert {key.partition("/")[2].rpartition(".")[0].rpartition(".")[2] for key in state} == {
        "lora_A",
        "lora_B",
        "embed_tokens",
    }
    small = (run / "latest/adapter_model.safetensors").stat().st_size
    assert small < (base / "model.safetensors").stat().st_size / 2


@pytest.mark.parametrize("async_save", [True, False])
def test_a_stopped_run_goes_on_to_the_bit(async_save: bool, settings, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    changes = {"epochs": 4, "save_interval": 2, "async_save": async_save, "weight_average": 0.5, "skip_spikes": 4.0}
    whole = sft(settings(out_dir=str(tmp_path / "whole"), **changes))

    def stop(step: int, _model: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sft(settings(out_dir=str(tmp_path / "broken"), **changes), stop)
    broken = sft(settings(out_dir=str(tmp_path / "broken"), **changes))
    for name in ("metrics.jsonl", "latest/adapter_model.safetensors", "latest/training_state/optimizer.safetensors"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name


def test_another_base_is_refused_by_name(settings, base: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The same path, other weights: on resuming, and on reading."""
    mine = tmp_path / "base"
    shutil.copytree(base, mine)
    run = sft(settings(base=str(mine)))
    weights = load_file(mine / "model.safetensors")
    weights["model.norm.weight"] *= 1.5
    save_file(weights, mine / "model.safetensors", {"format": "pt"})
    (mine / "checksums.json").unlink()
    for use in (lambda: sft(settings(base=str(mine), epochs=4)), lambda: Generator(run, device="cpu")):
        with pytest.raises(UserError, match=r"is not the model that the adapter .* was trained on"):
            use()
    shutil.rmtree(mine)
    with pytest.raises(UserError, match=r"the model that it changes is not at .*base any more"):
        Generator(run, device="cpu")


def test_run_and_base_may_be_moved_together(settings, base: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    old = tmp_path / "old"
    shutil.copytree(base, old / "base")
    run = sft(settings(base=str(old / "base"), out_dir=str(old / "run")))
    expected = load_model(resolve_checkpoint(run), device="cpu", dtype=torch.float32)(IDS)
    old.rename(tmp_path / "new")
    moved = load_model(resolve_checkpoint(tmp_path / "new/run"), device="cpu", dtype=torch.float32)
    assert torch.equal(moved(IDS), expected)


def test_another_rank_is_another_run(settings) -> None:  # type: ignore[no-untyped-def]
    sft(settings())
    with pytest.raises(UsageError, match=r"lora\.rank 4 -> 8"):
        sft(settings(lora={"rank": 8}))
    with pytest.raises(UsageError, match=r"lora\.rank 4 -> 0"):
        sft(settings(lora={"rank": 0}))


def test_an_adapter_is_a_base_too(settings, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Full tuning begins from the sum; LoRA puts another adapter on the first."""
    first = sft(settings(learning_rate=0.01))
    start = load_model(resolve_checkpoint(first), device="cpu", dtype=torch.float32)(IDS)
    one_step = {"epochs": None, "max_iters": 1, "learning_rate": 0.0, "base": str(first)}
    whole = sft(settings(lora={"rank": 0}, out_dir=str(tmp_path / "whole"), **one_step))
    stacked = sft(settings(out_dir=str(tmp_path / "stacked"), **one_step))
    assert [p.parent.parent.name for p in stack_of(resolve_checkpoint(stacked))[1]] == ["run", "stacked"]
    for run in (whole, stacked):
        found = load_model(resolve_checkpoint(run), device="cpu", dtype=torch.float32)(IDS)
        assert torch.equal(found, start)


def test_pretraining_and_llama_cpp_take_the_sum(settings, tiny_chat_store: Path, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    """`init_from` an adapter at a rate of zero, and a GGUF file: the numbers of base + adapter."""
    adapter = sft(settings(learning_rate=0.01))
    summed = load_model(resolve_checkpoint(adapter), device="cpu", dtype=torch.float32)
    out, file = tmp_path / "more", tmp_path / "sum.gguf"
    words = [f"init_from={adapter}", f"data_dir={tiny_chat_store}", f"out_dir={out}", "learning_rate=0", "min_lr=0"]
    words += [
        "max_iters=1",
        "block_size=64",
        "batch_size=2",
        "eval_iters=1",
        "device=cpu",
        "dtype=float32",
        "compile=false",
    ]
    for verb in (["train", *words], ["export", adapter, "--to", "gguf", "--type", "f32", "--out", file],
                 ["chat", adapter, "--max-new-tokens", "2", "--device", "cpu"]):  # fmt: skip
        result = run_cli(*verb, stdin="Spell ant.")
        assert result.returncode == 0, result.stderr
    assert torch.equal(load_model(resolve_checkpoint(out), device="cpu", dtype=torch.float32)(IDS), summed(IDS))
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
    weights = summed.state_dict()
    for theirs, ours in (("token_embd", "embed_tokens"), ("blk.1.ffn_down", "layers.1.mlp.down_proj")):
        assert torch.equal(torch.tensor(found[f"{theirs}.weight"]), weights[f"model.{ours}.weight"]), theirs


@pytest.mark.parametrize("backend", ["eager", pytest.param("compiled", marks=pytest.mark.needs_compiler)])
@pytest.mark.parametrize("train_markers", [True, False])
def test_an_engine_reads_the_live_model(backend: str, train_markers: bool, base: Path) -> None:
    """Samples and rollouts while training: by the model itself, and by its plain copy, the same text."""
    model = trained(base, LoraConfig(rank=4, train_markers=train_markers))

    def write(of: Transformer) -> list[int]:
        engine = Engine(of, vocab_size=of.config.vocab_size, eos_ids=set(), backend=backend, max_slots=1)
        request = Request(prompt_ids=[1, 5, 9, 40], sampling=SamplingParams(temperature=0), max_new_tokens=24, seed=0)
        return list(engine.submit(request))

    with torch.no_grad():
        torch.testing.assert_close(plain_copy(model)(IDS), model(IDS), atol=1e-5, rtol=1e-4)
    assert write(plain_copy(model)) == write(model)
    assert write(model) != write(load_model(base, device="cpu", dtype=torch.float32))


@pytest.mark.needs_torch_compile
def test_compiled_training_is_the_same(settings, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    runs = [sft(settings(compile=flag, out_dir=str(tmp_path / str(flag)))) for flag in (True, False)]
    losses = [[row["loss"] for row in read_metrics(run) if "loss" in row] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_markers_are_trained_where_the_base_never_saw_them(settings, base: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    tokenizer = Tokenizer.load(base)
    assert [tokenizer.name_of(i) for i in marker_ids(tokenizer)] == MARKERS

    def rows(run: Path) -> object:
        return json.loads((run / "latest/adapter_config.json").read_bytes())["trainable_token_indices"]

    chat = sft(settings(lora={"rank": 0}, out_dir=str(tmp_path / "chat")))
    for name, start, choice, expected in (
        ("auto", base, "auto", marker_ids(tokenizer)), ("off", base, False, None),
        ("seen", chat, "auto", None), ("on", chat, True, marker_ids(tokenizer)),
    ):  # fmt: skip
        lora = {"rank": 2, "train_markers": choice}
        run = sft(settings(base=str(start), lora=lora, out_dir=str(tmp_path / name), epochs=None, max_iters=1))
        assert rows(run) == expected, name


def test_rates_are_lora_s_own(settings, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The base's Muon and its rates are for whole matrices."""
    chat = sft(settings(lora={"rank": 0}, optimizer="muon", learning_rate=0.02, out_dir=str(tmp_path / "muon")))
    of_lora = with_base(settings(base=str(chat)))
    assert (of_lora.optimizer, of_lora.learning_rate, of_lora.weight_decay) == ("adamw", 0.003, 0)
    assert with_base(settings(base=str(chat), learning_rate=0.5)).learning_rate == 0.5
    of_all = with_base(settings(base=str(chat), lora={"rank": 0}))
    assert (of_all.optimizer, of_all.learning_rate) == ("muon", 0.01)


def test_the_command_says_what_is_trained(base: Path, spelling_file: Path, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    words = ["sft", "--base", base, "--data", spelling_file, "lora.rank=4", "device=cpu", "compile=false", "epochs=1"]
    words += ["block_size=127", f"out_dir={tmp_path / 'run'}"]
    rehearsed = run_cli(*words, "--dry-run")
    assert rehearsed.returncode == 0, rehearsed.stderr
    assert "frozen, and 5,760 beside them that are trained" in rehearsed.stdout
    assert not (tmp_path / "run").exists()
    done = run_cli(*words)
    assert done.returncode == 0, done.stderr
    assert "5,760 beside them" in done.stderr
    assert "tok/s" in done.stderr
    assert "MFU" not in done.stderr  # a share of pretraining's operations: under LoRA it was 180 %
    for verb in (["generate", tmp_path / "run", "--prompt", "Spell", "--max-new-tokens", "4", "--device", "cpu"],
                 ["report", tmp_path / "run"], ["plot", tmp_path / "run", "--terminal"],
                 ["export", tmp_path / "run", "--merge", "--out", tmp_path / "hf"]):  # fmt: skip
        result = run_cli(*verb)
        assert result.returncode == 0, result.stderr
    plain, summed = (
        load_model(f, device="cpu", dtype=torch.float32) for f in (tmp_path / "hf", tmp_path / "run/latest")
    )
    assert torch.equal(plain(IDS), summed(IDS))
    refused = run_cli(*words, "optimizer=muon")
    assert refused.returncode == 2
    assert "lora needs optimizer=adamw" in refused.stderr


def test_what_peft_can_and_this_cannot_is_named(settings) -> None:  # type: ignore[no-untyped-def]
    folder = resolve_checkpoint(sft(settings(epochs=None, max_iters=1)))
    (folder / "checksums.json").unlink()
    config = json.loads((folder / "adapter_config.json").read_bytes())
    for changes, message in (
        ({"use_dora": True}, "use_dora is not supported"),
        ({"peft_type": "IA3"}, "only 'LORA'"),
        ({"r": "many"}, "is damaged"),
        ({"r": 3}, "do not fit"),
        ({"trainable_token_indices": [1]}, "do not fit"),
        ({"base_model_name_or_path": None}, "does not say which model"),
        ({"bias": "all"}, "bias is not supported"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UserError, match=message):
            load_model(folder, device="cpu", dtype=torch.float32)
