"""LoRA against PEFT: a checkpoint loads there with equal scores, merged and not, and a step has equal gradients."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from mini_llm.adapter import stack_of
from mini_llm.checkpoint import load_model, save_model
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.adapter_files import begin
from mini_llm.tune.config import LoraConfig

SHAPE = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=320, max_seq_len=256)
IDS = torch.arange(4, 60)[None] % 320  # 4 to 7 are the markers


def adapted(folder: Path, tokenizer: Tokenizer, lora: LoraConfig, *, tied: bool, qk_norm: bool = False) -> Path:
    """Write a base and an adapter whose every number is random, as after training; return the adapter's folder."""
    shape = SHAPE.model_copy(update={"tie_embeddings": tied, "qk_norm": qk_norm})
    base = Transformer(shape)
    base.init_weights(seed=0)
    save_model(folder / "base", base, tokenizer)
    model = Transformer(shape)
    kept = begin(model, folder / "base", str(folder / "base"), lora, tokenizer, seed=1)
    assert kept is not None
    torch.manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.05)
    target = folder / "adapter"
    target.mkdir()
    kept.write(target, kept.weights(model), shape, tokenizer)
    return target


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rslora", [True, False])
@pytest.mark.parametrize("train_markers", [True, False])
def test_peft_gives_equal_scores(
    tied: bool, rslora: bool, train_markers: bool, chat_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    lora = LoraConfig(rank=4, alpha=8, rslora=rslora, train_markers=train_markers)
    folder = adapted(tmp_path, chat_tokenizer, lora, tied=tied)
    ours = load_model(folder, device="cpu", dtype=torch.float32)
    base = load_model(stack_of(folder)[0], device="cpu", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), folder)
    with torch.no_grad():
        expected = theirs(IDS).logits
        assert (ours(IDS) - base(IDS)).abs().max() > 0.01, "the adapter must change something"
        torch.testing.assert_close(ours(IDS), expected, atol=1e-6, rtol=1e-5)
        merged = theirs.merge_and_unload()
        torch.testing.assert_close(ours(IDS), merged(IDS).logits, atol=1e-6, rtol=1e-5)
        for name, weight in merged.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], weight, atol=1e-7, rtol=1e-6)


def test_a_qwen3_base_too(chat_tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = adapted(tmp_path, chat_tokenizer, LoraConfig(rank=4), tied=True, qk_norm=True)
    ours = load_model(folder, device="cpu", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), folder)
    with torch.no_grad():
        # PEFT adds B (A x) to W x, where we multiply by one matrix: norms of q and k enlarge the rounding, to 4e-6.
        torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours(IDS), theirs.merge_and_unload()(IDS).logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_a_step_has_peft_s_gradients(tied: bool, chat_tokenizer: Tokenizer, tmp_path: Path) -> None:
    lora = LoraConfig(rank=4, train_markers=True)
    folder = adapted(tmp_path, chat_tokenizer, lora, tied=tied)
    model = Transformer(SHAPE.model_copy(update={"tie_embeddings": tied}))
    kept = begin(model, tmp_path / "base", str(tmp_path / "base"), lora, chat_tokenizer, seed=1)
    assert kept is not None
    kept.load(folder, model)
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), folder, is_trainable=True
    )
    for scores in (model(IDS), theirs(IDS).logits):
        torch.nn.functional.cross_entropy(scores[0, :-1], IDS[0, 1:]).backward()
    expected = {name.replace(".default", ""): p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    found = {
        name: p.grad
        for name, p in zip(kept.weights(model), [p for p in model.parameters() if p.requires_grad], strict=True)
    }
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-7, rtol=1e-4)


def test_peft_s_own_folder_is_read(chat_tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Made by PEFT, of two of the seven matrices; it says nothing of the base's hash."""
    base = Transformer(SHAPE)
    base.init_weights(seed=0)
    save_model(tmp_path / "base", base, chat_tokenizer)
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs", device="cpu", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-6, rtol=1e-5)
