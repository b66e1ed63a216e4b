"""Answers that fit a JSON schema, by construction: at each token a grammar says which ones may come.

The masks are llguidance's (MIT). They come before penalties and filters; log-probabilities stay the model's own.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import llguidance
import numpy as np
import torch
from torch import Tensor

from mini_llm.tokenizer.bounded import is_panic
from mini_llm.tokenizer.tokenizer import Tokenizer

# By default a grammar lets spaces go on for ever, and a weak model writes nothing else.
RULES = {"whitespace_flexible": False}


def guide_tokenizer(tokenizer: Tokenizer) -> llguidance.LLTokenizer:
    """Return the tokenizer as llguidance reads it.

    Raises:
        ValueError: it cannot.
    """
    try:
        return llguidance.LLTokenizer(tokenizer.as_json(), eos_token=tokenizer.eos_id)
    except BaseException as problem:  # tokenizers with very long tokens make it panic, which is no Exception
        if not (isinstance(problem, Exception) or is_panic(problem)):
            raise
        raise ValueError("this model's tokenizer cannot be held to a schema") from None


class SchemaGuide:
    """Holds one text to a schema; the text may end when the JSON is whole, and must when nothing can follow.

    Raises:
        ValueError: the schema is not understood, or not even its first token can be found.
    """

    def __init__(self, tokenizer: Any, schema: object, vocab_size: int) -> None:
        self.vocab_size, self.eos_id = vocab_size, int(tokenizer.eos_token)
        try:
            rules = {**schema, "x-guidance": RULES} if isinstance(schema, dict) else schema
            grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(rules))
            self._matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
            if not self._matcher.get_error():
                self._matcher.compute_bitmask()
            problem = self._matcher.get_error()
        except (ValueError, RecursionError) as refused:
            problem = str(refused)
        if problem:
            raise ValueError(f"the schema is not understood: {problem.splitlines()[0][:200]}")

    def copy(self) -> SchemaGuide:
        """Return one that holds another text to the same schema."""
        twin = copy.copy(self)
        twin._matcher = self._matcher.deep_copy()
        return twin

    @property
    def problem(self) -> str | None:
        """Why the text had to end before its JSON was whole: a schema with too many ways to go on."""
        found = self._matcher.get_error() if self._matcher.is_error() else ""
        return found.splitlines()[0][:200] if found else None

    def allowed(self) -> Tensor:
        """Return which tokens may come next; only the end where none can."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        mask = np.unpackbits(bits, bitorder="little")[: self.vocab_size].astype(bool)
        mask = np.pad(mask, (0, self.vocab_size - len(mask)))
        if not mask.any():
            mask[self.eos_id] = True
        return torch.from_numpy(mask)

    def accept(self, token_id: int) -> None:
        """Take the token that was chosen."""
        if token_id != self.eos_id:
            self._matcher.consume_token(token_id)
