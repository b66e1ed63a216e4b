"""A small card makes fewer scores at once, by its memory; in chunks the loss is what it is in one piece."""

from types import SimpleNamespace

import pytest
import torch

from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.train import head_loss, loss
from mini_llm.train.head_room import fit_head, scores_room

GB = 10**9


@pytest.mark.parametrize(("memory", "whole", "chunk"), [(8 * GB, 1.0 * GB, 0.25 * GB), (24 * GB, 3 * GB, 0.75 * GB)])
def test_a_small_card_gets_an_eighth_of_its_memory(memory: int, whole: float, chunk: float) -> None:
    assert scores_room(memory) == (whole, chunk)


def test_a_large_card_gets_no_more_than_is_fast() -> None:
    assert scores_room(80 * GB) == scores_room(float("inf")) == (8 * 2**30, 2**30)


def test_what_a_card_has_decides_before_anything_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=24 * GB))
    monkeypatch.setattr(loss, "MOST_SCORES_BYTES", {**loss.MOST_SCORES_BYTES})
    monkeypatch.setattr(head_loss, "CHUNK_BYTES", {**head_loss.CHUNK_BYTES})
    for module, name in ((loss, "MOST_SCORES_BYTES"), (head_loss, "CHUNK_BYTES")):
        monkeypatch.setattr(f"mini_llm.train.head_room.{name}", getattr(module, name))
    fit_head(torch.device("cpu"))
    assert "cuda" not in loss.MOST_SCORES_BYTES
    fit_head(torch.device("cuda"))
    assert (loss.MOST_SCORES_BYTES["cuda"], head_loss.CHUNK_BYTES["cuda"]) == (3 * GB, 0.75 * GB)
    with torch.device("meta"):
        model = Transformer(ModelConfig(dim=8, n_layers=1, n_heads=2, vocab_size=32000))
    rows = SimpleNamespace(device=SimpleNamespace(type="cuda"), numel=lambda: 64 * 1024)
    assert loss.wants_chunks(model, rows, torch.bfloat16)  # 8.4 GB
    rows.numel = lambda: 16 * 1024
    assert not loss.wants_chunks(model, rows, torch.bfloat16)  # 2.1 GB


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_held_out_loss_in_chunks_is_the_whole_ones(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Transformer(ModelConfig(dim=32, n_layers=1, n_heads=2, vocab_size=70, max_seq_len=64)).eval()
    model.init_weights(seed=0)
    rows = torch.randint(70, (3, 33), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(head_loss, "CHUNK_BYTES", {"cpu": 7 * 4 * 70})  # 7 tokens of 96: the last chunk is shorter
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        x_ND = model.model(rows[:, :-1]).flatten(0, 1)
        found = head_loss.held_out_head_loss(x_ND, model.lm_head, rows[:, 1:].flatten())
    with torch.no_grad():
        expected = loss.rows_loss_sum(model, rows, dtype)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
