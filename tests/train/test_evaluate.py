"""The held-out loss against a plain loop, and its bits per byte by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mini_llm.data.token_store import TokenSplit, TokenStore
from mini_llm.errors import UserError
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.evaluate import Evaluator
from mini_llm.train.loss import rows_loss_sum

CPU = torch.device("cpu")


@pytest.fixture
def split(tiny_store: Path) -> TokenSplit:
    return TokenStore.open(tiny_store).split("val")


@pytest.fixture
def token_bytes(tiny_store: Path) -> np.ndarray:
    return Tokenizer.load(tiny_store / "tokenizer").token_bytes()


@pytest.fixture
def model() -> Transformer:
    result = Transformer(ModelConfig(dim=32, n_layers=1, n_heads=2, vocab_size=512, max_seq_len=64))
    result.init_weights(0)
    return result.requires_grad_(False)


def evaluator(split: TokenSplit, token_bytes: np.ndarray, **changes: Any) -> Evaluator:
    values: dict[str, Any] = {"block_size": 32, "batch_size": 4, "max_rows": 10, **changes}
    return Evaluator(split, token_bytes=token_bytes, **values)


def test_it_equals_a_plain_loop_over_the_same_rows(
    split: TokenSplit, token_bytes: np.ndarray, model: Transformer
) -> None:
    evaluation = evaluator(split, token_bytes)
    result = evaluation.run(lambda rows: rows_loss_sum(model, rows, torch.float32), CPU)
    nats, text = 0.0, 0
    for start in evaluation.starts:
        ids = torch.from_numpy(split.read(int(start), 33))
        logits = model(ids[None, :-1])[0]
        nats += sum(-F.log_softmax(row, 0)[target].item() for row, target in zip(logits, ids[1:], strict=True))
        text += sum(int(token_bytes[i]) for i in ids[1:])
    assert result.tokens == 10 * 32
    assert result.loss == pytest.approx(nats / 320, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / text, rel=1e-5)
    assert result.loss == pytest.approx(math.log(512), rel=0.02)


def test_bits_per_byte_counts_the_bytes_of_real_text(
    split: TokenSplit, token_bytes: np.ndarray, tiny_store: Path
) -> None:
    """A guesser that gives each token 1/2 spends one bit a token."""
    evaluation = evaluator(split, token_bytes, max_rows=None)
    result = evaluation.run(lambda rows: torch.tensor(math.log(2) * rows[:, 1:].numel()), CPU)
    ids = split.read(1, result.tokens)
    n_bytes = len(Tokenizer.load(tiny_store / "tokenizer").decode(ids.tolist()).encode())
    assert result.bits_per_byte == pytest.approx(result.tokens / n_bytes, rel=1e-3)
    assert result.loss == pytest.approx(math.log(2))


def test_the_same_rows_each_time_spread_over_the_whole_split(split: TokenSplit, token_bytes: np.ndarray) -> None:
    seen: list[list[torch.Tensor]] = [[], []]
    evaluation = evaluator(split, token_bytes)
    for rows_seen in seen:
        evaluation.run(lambda rows, s=rows_seen: s.append(rows) or torch.zeros(()), CPU)  # type: ignore[misc, func-returns-value]
    assert torch.equal(torch.cat(seen[0]), torch.cat(seen[1]))
    assert [len(rows) for rows in seen[0]] == [4, 4, 2]
    assert len(set(evaluation.starts.tolist())) == 10
    assert evaluation.starts[-1] > 0.85 * split.n_tokens


@pytest.mark.parametrize("max_rows", [None, 10**9])
def test_all_of_a_short_split_each_row_once(max_rows: int | None, split: TokenSplit, token_bytes: np.ndarray) -> None:
    evaluation = evaluator(split, token_bytes, max_rows=max_rows)
    n_rows = (split.n_tokens - 1) // 32
    assert evaluation.starts.tolist() == [32 * i for i in range(n_rows)]
    assert evaluation.run(lambda rows: torch.zeros(()), CPU).tokens == 32 * n_rows


def test_a_split_without_room_for_a_row_is_refused(split: TokenSplit, token_bytes: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"the val split has .* tokens, one row needs"):
        evaluator(split, token_bytes, block_size=split.n_tokens)


def test_token_positions_beyond_32_bits() -> None:
    class Huge:
        n_tokens = 5 * 10**11

        def read(self, start: int, count: int) -> np.ndarray:
            assert 0 <= start <= self.n_tokens - count
            return np.zeros(count, dtype=np.int64)

    split: TokenSplit = Huge()  # type: ignore[assignment]
    evaluation = evaluator(split, np.ones(1, dtype=np.int64), max_rows=1000)
    assert evaluation.starts.min() == 0
    assert evaluation.starts[-1] > 4 * 10**11
    assert evaluation.run(lambda rows: torch.ones(()), CPU).tokens == 32_000
