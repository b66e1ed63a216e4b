"""What a compressor and a table of counts make of the same held-out text: the numbers beside which a model's stands."""

from __future__ import annotations

import lzma

import numpy as np

from mini_llm.data.token_store import TokenStore
from mini_llm.tokenizer.tokenizer import Tokenizer

ORDER = 5
MOST_TRAIN_TOKENS = 10_000_000  # that are counted: a minute; more text helps the table little beside the model
MOST_TEXT_TOKENS = 2_000_000  # of held-out text
BASE = 0x9E3779B97F4A7C15


def xz_bits_per_byte(store: TokenStore) -> float:
    """Return what `xz -9` needs for the held-out text; tokens lose nothing, so that they give the text back."""
    split = store.split("val")
    ids = split.read(0, min(split.n_tokens, MOST_TEXT_TOKENS))
    text = Tokenizer.load(store.tokenizer_folder).decode(ids.tolist()).encode()
    return 8 * len(lzma.compress(text, preset=9)) / max(1, len(text))


def ngram_bits_per_byte(store: TokenStore) -> float:
    """Return what an interpolated 5-gram model needs for the held-out tokens, learned from the training tokens.

    Witten and Bell's interpolation (1991): P(w | h) = (c(h w) + t(h) P(w | h')) / (c(h) + t(h)), where h' is h without
    its first token and t(h) the number of different tokens seen after h; at the bottom all tokens are equal.
    """
    train, val = store.split("train"), store.split("val")
    seen = train.read(0, min(train.n_tokens, MOST_TRAIN_TOKENS))
    asked = val.read(0, min(val.n_tokens, MOST_TEXT_TOKENS))
    probability = np.full(len(asked), 1 / store.manifest.vocab_size)
    for order in range(1, ORDER + 1):
        grams, place, counts = np.unique(_rows(seen, order), return_index=True, return_counts=True)
        contexts = _contexts(seen, order)[place]  # of each n-gram once
        names, group = np.unique(contexts, return_inverse=True)
        totals, kinds = np.bincount(group, weights=counts), np.bincount(group)
        mine = _rows(asked, order)
        start = order - 1  # the first tokens have no context of this length
        c_hw = _look_up(grams, counts, mine)
        c_h, t_h = (_look_up(names, values, _contexts(asked, order)) for values in (totals, kinds))
        known = c_h > 0
        tail = probability[start:]
        tail[known] = (c_hw[known] + t_h[known] * tail[known]) / (c_h[known] + t_h[known])
    text_bytes = int(Tokenizer.load(store.tokenizer_folder).token_bytes()[asked[1:]].sum())
    return float(-np.log2(probability[1:]).sum()) / max(1, text_bytes)


def _rows(ids: np.ndarray, length: int) -> np.ndarray:
    """Return a number for each row of `length` ids; the last id has the highest power."""
    total = np.zeros(max(0, len(ids) - length + 1), dtype=np.uint64)
    for place in range(length):
        factor = np.uint64(pow(BASE, place, 2**64))
        total += (ids[place : place + len(total)].astype(np.uint64) + np.uint64(1)) * factor
    return total


def _contexts(ids: np.ndarray, order: int) -> np.ndarray:
    """Return the number of what stands before the last id of each row."""
    n = max(0, len(ids) - order + 1)
    return _rows(ids, order - 1)[:n] if order > 1 else np.zeros(n, dtype=np.uint64)


def _look_up(names: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the values of names, in order, 0 for those that are not there."""
    place = np.minimum(np.searchsorted(names, wanted), max(0, len(names) - 1))
    return np.where(names[place] == wanted, values[place], 0).astype(np.float64)
