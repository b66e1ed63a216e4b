"""What is counted without memory is what autograd keeps with it."""

import pytest
import torch

from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.plan.activations import eager_activations, saved_by_autograd
from mini_llm.train.loss import rows_loss_sum

SMALL = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "vocab_size": 96, "max_seq_len": 128}


def really_saved(config: ModelConfig, rows: int, tokens: int, dtype: torch.dtype) -> int:
    """Train on real tensors and add up what the backward pass will need, parameters aside."""
    model, sizes, kept = Transformer(config), {}, []
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept.append(x)
        if x.untyped_storage().data_ptr() not in own:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        rows_loss_sum(model, torch.zeros(rows, tokens + 1, dtype=torch.long), dtype)
    return sum(sizes.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("change", [{}, {"n_kv_heads": 1}, {"qk_norm": True}, {"dropout": 0.1}], ids=str)
def test_the_count_is_the_real_one(change, dtype) -> None:
    config = ModelConfig(**SMALL, **change)
    # The head has 96 tokens here and one there: float32 log-probabilities, autocast's copy of its weights.
    head = 95 * (4 * 2 * 64 + (0 if dtype == torch.float32 else 2 * 64))
    assert sum(saved_by_autograd(config, 2, 64, dtype)) + head == really_saved(config, 2, 64, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_blocks_and_the_rest_make_the_whole_at_any_depth(dtype) -> None:
    config = ModelConfig(**{**SMALL, "n_layers": 5})
    block, rest = eager_activations(config, 3, 32, dtype)
    copies = 0 if dtype == torch.float32 else 2 * 5 * (4 * 64 * 64 + 3 * 64 * 96)
    assert 5 * block.bytes + rest.bytes + copies == sum(saved_by_autograd(config, 3, 32, dtype))
