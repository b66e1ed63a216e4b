"""Text to ids and back, from a folder with a `tokenizer.json`: ours, or any Llama-like model's.

`decode(encode(text)) == text` for every text, and no text can become a control token.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from mini_llm.errors import UserError
from mini_llm.hub import TOKENIZER_FILES, fetch, is_hub_name
from mini_llm.terminal import no_stderr
from mini_llm.tokenizer.bounded import at_work, is_panic, own_patterns
from mini_llm.tokenizer.decoding import DecodingRules, TextStream, read_rules
from mini_llm.tokenizer.folder import HOW_TO_TRAIN, read_definition, what_helps
from mini_llm.tokenizer.markers import END_MARKER
from mini_llm.tokenizer.trial import check_tokenizer

# For folders without a tokenizer_config.json.
USUAL_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


class Tokenizer:
    """A loaded tokenizer. `load` is the way to make one.

    `vocab_size` counts the ids, special ones included; `text_vocab_size` those up to the last that is not added.
    `bos_id`, `eos_id` and `pad_id` are None where the tokenizer has none; `eos_ids` are all ids that end a text or a
    turn; `prefix_ids` is what the tokenizer itself puts before a text. `own_patterns` are its regular expressions that
    are not known to end. `fingerprint` is "sha256:" and the SHA-256 of tokenizer.json: token stores and checkpoints
    remember it.
    """

    def __init__(self, folder: Path, backend: tokenizers.Tokenizer, config: dict[str, Any], fingerprint: str) -> None:
        self.folder = folder
        self.config = config  # tokenizer_config.json
        self.fingerprint = fingerprint
        self._backend = backend
        self.own_patterns = own_patterns(backend)
        backend.no_truncation()
        backend.encode_special_tokens = True  # "</s>" in a text is four characters, not the end of it
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.text_vocab_size: int = max(backend.get_vocab(with_added_tokens=False).values(), default=-1) + 1
        self.rules = self._read_rules()
        self.bos_id, self.eos_id, self.pad_id = (self._named_id(config, name) for name in USUAL_NAMES)
        ends = (self.eos_id, self.special_id(END_MARKER))
        self.eos_ids = [i for i in ends if i is not None]
        whole, body = (backend.encode("a", add_special_tokens=flag).ids for flag in (True, False))
        self.prefix_ids: list[int] = next(whole[:n] for n in range(len(whole)) if whole[n : n + len(body)] == body)

    @classmethod
    def load(cls, folder: Path | str) -> Tokenizer:
        """Load the tokenizer of a folder, or of `hf://USER/NAME[@REV]`.

        Raises:
            UserError: the folder or its tokenizer.json is missing, unreadable, empty, damaged or of an unknown kind.
        """
        folder = fetch(folder, TOKENIZER_FILES) if is_hub_name(folder) else Path(folder)
        path, text, config = read_definition(folder)
        try:
            check_tokenizer(text, tokenizers.__version__)
            with no_stderr():
                backend = tokenizers.Tokenizer.from_str(text.decode("utf-8"))
                backend.no_padding()
            return cls(folder, backend, config, f"sha256:{hashlib.sha256(text).hexdigest()}")
        except BaseException as problem:  # tokenizers raises bare Exceptions, and a panic is not even that
            if not (isinstance(problem, Exception) or is_panic(problem)):
                raise
            hint = what_helps(folder) or HOW_TO_TRAIN
            raise UserError(f"{path} is not a tokenizer that can be used: {problem}", hint) from None

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without special tokens. Lone surrogates, which UTF-8 lacks, count as U+FFFD."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Encode many texts, on all cores.

        Raises:
            UserError: a foreign tokenizer fails at one of them.
        """
        return [encoding.ids for encoding in self._run(self._backend.encode_batch_fast, texts)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`. Special tokens give nothing, bytes that are not UTF-8 give U+FFFD."""
        return TextStream(self.rules).feed(b"".join(map(self.rules.bytes_of, ids)), final=True)

    def token_bytes(self) -> np.ndarray:
        """Return int64 [vocab_size]: how many bytes of text each token stands for, 0 for special ones."""
        return np.array([len(data) for data in self.rules.table], dtype=np.int64)

    def encode_spans(self, text: str, *, markers: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids, and which characters of `text` each stands for.

        With `markers` the names of special tokens stand for these, as in a chat template; never for a user's words.
        """
        backend = self.with_control_tokens if markers else self._backend
        [found] = self._run(backend.encode_batch, [text])
        return found.ids, found.offsets

    @functools.cached_property
    def special_tokens(self) -> dict[str, int]:
        """The control tokens by name."""
        return {token.content: i for i, token in self._backend.get_added_tokens_decoder().items() if token.special}

    @functools.cached_property
    def added_tokens(self) -> list[str]:
        """The names of all tokens that the algorithm itself would never make: control tokens and their like."""
        return [token.content for token in self._backend.get_added_tokens_decoder().values()]

    def as_json(self) -> str:
        """Return it as a tokenizer.json."""
        text: str = self._backend.to_str()
        return text

    @functools.cached_property
    def with_control_tokens(self) -> tokenizers.Tokenizer:
        """The same tokenizer, for texts in which a control token's name means it: a chat template's.

        A copy: another thread may encode a user's words meanwhile.
        """
        clone = tokenizers.Tokenizer.from_str(self.as_json())
        clone.encode_special_tokens = False
        return clone

    @functools.cached_property
    def prefixes_first_only(self) -> bool:
        """Whether a space is put before the first piece of a text and not after control tokens."""
        kind = self._backend.pre_tokenizer
        return kind is not None and b'"prepend_scheme":"first"' in kind.__getstate__()

    def special_id(self, token: str) -> int | None:
        """Return the id of a special token by its name, or None."""
        return self.special_tokens.get(token)

    def name_of(self, token_id: int) -> str:
        """Return how the tokenizer itself writes a token, for instance `<s>`; empty where there is none."""
        return self._backend.id_to_token(token_id) or ""

    def encode_with_markers(self, text: str) -> list[int]:
        """Return the ids of `text`, where the names of special tokens stand for these."""
        return self.encode_spans(text, markers=True)[0]

    def copy_to(self, folder: Path) -> None:
        """Write the tokenizer's files into `folder`, a tokenizer.json among them."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in TOKENIZER_FILES:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)
        if not (folder / "tokenizer.json").exists():
            (folder / "tokenizer.json").write_bytes(read_definition(self.folder).text)
            (folder / "tokenizer_config.json").write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")

    def _run(self, encode: Callable[..., list[tokenizers.Encoding]], texts: list[str]) -> list[tokenizers.Encoding]:
        return at_work(encode, texts, self.folder, bounded=bool(self.own_patterns))

    def _read_rules(self) -> DecodingRules:
        decoder = self._backend.decoder
        tokens = [self._backend.id_to_token(i) or "" for i in range(self.vocab_size)]
        special = {i for i, token in self._backend.get_added_tokens_decoder().items() if token.special}
        return read_rules(json.loads(decoder.__getstate__()) if decoder else None, tokens, special)

    def _named_id(self, config: dict[str, Any], name: str) -> int | None:
        token = config.get(name, None if config else USUAL_NAMES[name])
        if isinstance(token, dict):  # how transformers 4 writes an AddedToken
            token = token.get("content")
        return None if token is None else self._backend.token_to_id(token)


class StreamDecoder:
    """Ids in, text out, whole characters only; all pieces together equal `decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._rules = tokenizer.rules
        self._stream = TextStream(self._rules)

    def push(self, token_id: int) -> str:
        """Return the text that this token completes, often none while a character is still in parts."""
        return self._stream.feed(self._rules.bytes_of(token_id))

    def flush(self) -> str:
        """Return what is left at the end: half a character becomes U+FFFD."""
        return self._stream.feed(b"", final=True)
