"""How well a model foretells a text: nats a token, perplexity a token and a word, bits a byte.

Each document counts for itself, every token once and none is free: a document's first token is foretold from BOS. BOS
itself is not foretold, as lm-eval's hf backend does where the tokenizer adds it; its number is given beside.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mini_llm import log
from mini_llm.data.token_store import TokenStore
from mini_llm.errors import UserError
from mini_llm.eval.evaluate import rolling_loglikelihoods
from mini_llm.eval.language_model import LanguageModel, LocalModel
from mini_llm.eval.metrics import judge_text
from mini_llm.train.evaluate import Evaluator
from mini_llm.train.loss import rows_loss_sum

BATCH_CHARS = 2**20  # of text that are scored at a time


@dataclass
class TextLoss:
    """Sums over documents. `nats_with_bos` is under lm-eval's rule."""

    name: str
    documents: int = 0
    tokens: int = 0
    words: int = 0
    n_bytes: int = 0
    nats: float = 0.0
    nats_with_bos: float = 0.0

    def numbers(self) -> dict[str, Any]:
        """Return what these sums say."""
        bits = 1 / math.log(2) / max(1, self.n_bytes)
        loss = self.nats / max(1, self.tokens)
        return {
            "text": self.name,
            "documents": self.documents,
            "tokens": self.tokens,
            "bytes": self.n_bytes,
            "loss": loss,
            "perplexity": math.exp(min(700.0, loss)),
            "word_perplexity": math.exp(min(700.0, self.nats / max(1, self.words))) if self.words else None,
            "bits_per_byte": self.nats * bits,
            "bits_per_byte_lm_eval": self.nats_with_bos * bits,
        }


def loss_of_documents(model: LanguageModel, texts: Iterable[str], name: str) -> TextLoss:
    """Return the loss on documents, each scored alone from a full context."""
    found, batch, size = TextLoss(name), [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARS:
            _add(found, model, batch)
            batch, size = [], 0
    if batch:
        _add(found, model, batch)
    if not found.tokens:
        raise UserError(f"no text in {name}")
    return found


def _add(found: TextLoss, model: LanguageModel, texts: list[str]) -> None:
    found.documents += len(texts)
    found.tokens += sum(map(len, model.encode_batch(texts)))
    for text in texts:
        _, words = judge_text(text, 0.0)["word_perplexity"]
        found.words += words
        found.n_bytes += len(text.encode("utf-8", "replace"))
    found.nats -= sum(rolling_loglikelihoods(model, texts, predict_prefix=False))
    if model.prefix_ids:
        found.nats_with_bos -= sum(rolling_loglikelihoods(model, texts, predict_prefix=True))
    else:
        found.nats_with_bos = found.nats


def loss_of_store(model: LocalModel, store: TokenStore, max_rows: int | None) -> dict[str, Any]:
    """Return the loss on a token store's held-out rows, as training measures it: documents one after another.

    Raises:
        UserError: the store is another tokenizer's, or has no held-out text.
    """
    if model.tokenizer.fingerprint != store.manifest.tokenizer_hash:
        raise UserError(
            f"{store.folder} was written by another tokenizer than the model's",
            "prepare the text again with the model's folder as --tokenizer, or give the text itself: --text",
        )
    evaluator = Evaluator(
        store.split("val"),
        block_size=min(model.max_length, store.split("val").n_tokens - 1),
        batch_size=max(1, 4096 // model.max_length),
        max_rows=max_rows,
        token_bytes=model.tokenizer.token_bytes(),
    )
    evaluator.before_batch = model.before_batch
    weight, done = model.model.lm_head.weight, itertools.count(1)
    with log.count_progress("foretelling held-out text", evaluator.n_batches, "batches") as update:

        def loss_sum(rows: Tensor) -> Tensor:
            total = rows_loss_sum(model.model, rows, weight.dtype)
            update(next(done))
            return total

        found = evaluator.run(loss_sum, weight.device)
    return {
        "text": f"{store.folder} (held out)",
        "tokens": found.tokens,
        "loss": found.loss,
        "perplexity": math.exp(min(700.0, found.loss)),
        "bits_per_byte": found.bits_per_byte,
    }
