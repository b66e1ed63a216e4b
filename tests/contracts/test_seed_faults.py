"""The faults of the published 50M model are absent here: the first tests of this project.

Its cached decoding saw key 0 alone, its weights were never initialised, its tokenizer lost newlines and tabs.
(The fourth, that nothing resumed, is kept away by tests/train/.)
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F

from mini_llm.model.config import ModelConfig
from mini_llm.model.kv_cache import KVCache
from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.train import train_tokenizer


def test_a_decoded_token_sees_all_that_came_before() -> None:
    config = ModelConfig(dim=64, n_layers=2, n_heads=4, vocab_size=100, max_seq_len=32)
    torch.manual_seed(0)
    model = Transformer(config).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.normal_(std=0.3)  # far from uniform attention
    ids = torch.randint(100, (1, 16))
    cache = KVCache(config, 1, 16)
    cached = torch.cat([model(ids[:, :8], cache=cache)] + [model(i, cache=cache) for i in ids[:, 8:].split(1, 1)], 1)
    torch.testing.assert_close(cached, model(ids), atol=1e-4, rtol=1e-4)


def test_the_first_loss_of_the_50m_model_is_a_uniform_guess() -> None:
    model = Transformer(ModelConfig()).requires_grad_(False)
    model.init_weights(seed=1337)
    ids = torch.randint(32_000, (2, 65), generator=torch.Generator().manual_seed(0))
    loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).item()
    assert abs(loss - math.log(32_000)) < 0.03 * math.log(32_000)


def test_the_tokenizer_keeps_newlines_tabs_and_runs_of_spaces(sotu_texts: list[str], tmp_path: Path) -> None:
    tokenizer = train_tokenizer(
        sotu_texts[:3], tmp_path / "tokenizer", vocab_size=400, model_type="bpe", sample_bytes=100_000, seed=0
    )
    text = "def f(x):\n\tif x:\n        return  x\n\n\n# naïve 😀\r\n  "
    assert tokenizer.decode(tokenizer.encode(text)) == text
