"""Overlap: does the training text hold the questions? Thirteen words in a row that both have say yes.

Words are letters and digits in lower case, the rest parts them (GPT-3, arXiv 2005.14165, appendix C). An item shorter
than 13 words counts where all its words stand in a row; under 8 words nothing is said. A row of words is a number,
h_1 + h_2 b + h_3 b^2 + ... of its words' hashes, so that a document is searched by a few additions of arrays.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from mini_llm import log
from mini_llm.data.token_store import TokenStore
from mini_llm.eval.evaluate import TaskResult, prepare_all
from mini_llm.eval.sets import parse_data
from mini_llm.eval.task import find_tasks
from mini_llm.tokenizer.tokenizer import Tokenizer

N = 13  # words
SHORTEST = 8  # words of an item that can be told at all
WORD = re.compile(r"[^\W_]+")
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplying by it loses nothing
MOST_WORDS = 2**22  # of the words whose hash is remembered
READ_TOKENS = 2**20


class Grams:
    """Rows of words of many items, to be looked for in documents."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.hashes: dict[str, int] = {}
        self.too_short: set[int] = set()
        sums: list[np.ndarray] = []
        owners: list[np.ndarray] = []
        self.lengths: set[int] = set()
        for number, text in enumerate(texts):
            words = self._words(text)
            if len(words) < SHORTEST:
                self.too_short.add(number)
                continue
            length = min(N, len(words))
            self.lengths.add(length)
            rows = dict(_sums(words, {length}))[length]
            sums.append(rows)
            owners.append(np.full(len(rows), number))
        everything = np.concatenate(sums) if sums else np.empty(0, dtype=np.uint64)
        order = np.argsort(everything, kind="stable")
        self.sums, self.owners = (
            everything[order],
            (np.concatenate(owners) if owners else np.empty(0, dtype=int))[order],
        )

    def found_in(self, document: str) -> set[int]:
        """Return the numbers of the items that share a row of words with a document."""
        if not len(self.sums):
            return set()
        hits: set[int] = set()
        for _, rows in _sums(self._words(document), self.lengths):
            start, end = (np.searchsorted(self.sums, rows, side=side) for side in ("left", "right"))
            for a, b in {*zip(start[end > start].tolist(), end[end > start].tolist(), strict=True)}:
                hits.update(self.owners[a:b].tolist())
        return hits

    def _words(self, text: str) -> np.ndarray:
        if len(self.hashes) > MOST_WORDS:
            self.hashes.clear()
        known = self.hashes
        ids = []
        for word in WORD.findall(text.lower()):
            if (number := known.get(word)) is None:
                number = known[word] = hash(word) & 0xFFFFFFFFFFFFFFFF
            ids.append(number)
        return np.array(ids, dtype=np.uint64)


def _sums(words: np.ndarray, lengths: set[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield, for each length, the numbers of all rows of so many words."""
    total: np.ndarray = np.zeros(len(words), dtype=np.uint64)
    factor = np.uint64(1)
    with np.errstate(over="ignore"):
        for n in range(min(max(lengths, default=0), len(words))):
            total = total[: len(words) - n] + words[n:] * factor
            factor = np.uint64(int(factor) * int(BASE) % 2**64)
            if n + 1 in lengths:
                yield n + 1, _mixed(total, n + 1)


def _mixed(sums: np.ndarray, length: int) -> np.ndarray:
    """Rows of different lengths are different numbers."""
    return sums ^ np.uint64(length)


def texts_of(names: list[str], data: list[str]) -> list[str]:
    """Return the text of every item of some tasks.

    Raises:
        UserError: a task or its rows are not there.
    """
    folders, files = parse_data(data)
    return [item.text for one in prepare_all(find_tasks(names, []), folders, files) for item in one.items]


def overlap_with(names: list[str], data: list[str]) -> Callable[[str], bool]:
    """Return the function that tells whether a text shares a row of words with an item of some tasks.

    Raises:
        UserError: a task or its rows are not there.
    """
    folders, files = parse_data(data)
    questions = prepare_all(find_tasks(names, []), folders, files)
    grams = Grams([item.text for one in questions for item in one.items])
    n_items = sum(len(one.items) for one in questions)
    log.info(f"{n_items:,} items, {len(grams.too_short):,} of them too short to be told (under {SHORTEST} words)")
    return lambda text: bool(grams.found_in(text))


def mark_overlaps(results: Sequence[TaskResult], *stores: TokenStore) -> None:
    """Note in each result which items the stores' training text holds."""
    owners = [(result, item) for result in results for item in result.items]
    grams = Grams([item.text for _, item in owners])
    found: set[int] = set()
    for text in itertools.chain.from_iterable(map(documents, stores)):
        found |= grams.found_in(text)
    for result in results:
        result.overlaps = {}
    for number, (result, item) in enumerate(owners):
        if number not in grams.too_short and result.overlaps is not None:
            result.overlaps[item.number] = number in found


def documents(store: TokenStore) -> Iterable[str]:
    """Yield the training documents of a store as text, those of more than a million tokens in parts."""
    split, tokenizer = store.split("train"), Tokenizer.load(store.tokenizer_folder)
    starts = [*split.document_starts().tolist(), split.n_tokens]
    total = split.n_tokens
    with log.byte_progress("looking for the items in the training text", 2 * total) as update:
        for start, end in itertools.pairwise(starts):
            for position in range(start, end, READ_TOKENS):
                # A part begins a little before its place: a row of words across the border is seen too.
                begin = max(start, position - 4 * N)
                yield tokenizer.decode(split.read(begin, min(position + READ_TOKENS, end) - begin).tolist())
            update(2 * end)
