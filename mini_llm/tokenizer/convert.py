"""One vocabulary in two formats: SentencePiece's `tokenizer.model` and Hugging Face's `tokenizer.json`, the same ids.

Three things keep the ids equal. Merges: SentencePiece joins any two neighbours that form a piece, best score first, so
each way to split a piece becomes one merge rule of that rank. Spaces: both write them as U+2581, and both first escape
a literal U+2581 (and the escape character), so that no text is lost. Unigram scores are multiples of 1/64
(`clean_model`), so that their sums are exact in SentencePiece's 32-bit floats as well as in 64 bits.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mini_llm.tokenizer.markers import CHAT_TEMPLATE, END_MARKER, ROLE_MARKERS

SPACE = "\u2581"
# U+E000 is for private use. It opens an escape, so it is escaped itself; the order matters when the rules are undone.
ESCAPES = {"\ue000": "\ue000\ue001", SPACE: "\ue000\ue002"}
# The place in the list is the id. The 256 bytes follow.
CHAT_MARKERS = [*ROLE_MARKERS.values(), END_MARKER]
SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<pad>", *CHAT_MARKERS]
# Hugging Face's Unigram would take "</s>" in a text for the token. At this score it never does, as long as every
# character of such a name is a token too: a whole name spelled out costs less than 1,000.
NEVER = -1e6
NAME_CHARACTERS = "".join(sorted({*"".join(SPECIAL_TOKENS), *"<0x123456789ABCDEF>"}))


class Piece(NamedTuple):
    """A piece of a SentencePiece model; control tokens, bytes and what is unknown are no text."""

    name: str
    score: float
    is_text: bool


def clean_model(model: bytes) -> bytes:
    """Return a SentencePiece model with scores in multiples of 1/64 and without the paths of its training files."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    for piece in proto.pieces:
        piece.score = round(piece.score * 64) / 64
    proto.normalizer_spec.ClearField("normalization_rule_tsv")
    proto.denormalizer_spec.ClearField("normalization_rule_tsv")
    return proto.SerializeToString()


def write_hugging_face(model: bytes, model_type: str, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` with the ids of a SentencePiece "bpe" or "unigram" model."""
    from sentencepiece import SentencePieceProcessor

    pieces = pieces_of(SentencePieceProcessor(model_proto=model))
    (folder / "tokenizer.json").write_text(hugging_face_json(pieces, model_type), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config_values(), indent=2) + "\n", encoding="utf-8")


def pieces_of(processor: Any) -> list[Piece]:
    """Return the pieces of a SentencePieceProcessor."""
    kinds = (processor.is_control, processor.is_unknown, processor.is_byte)
    return [
        Piece(processor.id_to_piece(i), processor.get_score(i), not any(kind(i) for kind in kinds))
        for i in range(len(processor))
    ]


def hugging_face_json(pieces: Sequence[Piece], model_type: str) -> str:
    """Return a tokenizer.json with the ids of a SentencePiece "bpe" or "unigram" model that was trained here."""
    import tokenizers

    added = [added_token(i, name, special=True) for i, name in enumerate(SPECIAL_TOKENS)]
    values = _unigram(pieces) if model_type == "unigram" else _bpe(pieces)
    # Through the library: a text of its form, and what it cannot read comes out here.
    spec = {"version": "1.0", "added_tokens": added, **RULES, "model": values}
    return tokenizers.Tokenizer.from_str(json.dumps(spec)).to_str(pretty=True)


def bpe_model(pieces: Any) -> Any:
    """Return the `tokenizers` model whose merges do what a SentencePiece BPE processor does."""
    from tokenizers import models

    values = _bpe(pieces_of(pieces))
    merges = [(left, right) for left, right in values["merges"]]
    return models.BPE(values["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)


def bpe_values(
    vocabulary: Mapping[str, int], scores: Mapping[str, float], *, unknown: str = "<unk>", has_bytes: bool = True
) -> dict[str, Any]:
    """Return `model` of a tokenizer.json: its merges do what SentencePiece does with pieces of these scores."""
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(scores, key=lambda piece: -scores[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return {**BPE_SETTINGS, "unk_token": unknown, "byte_fallback": has_bytes, "vocab": vocabulary, "merges": merges}


def added_token(token_id: int, name: str, special: bool) -> dict[str, Any]:
    """Return an entry of `added_tokens`."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": name, **plain, "special": special}


def template_values(before: Sequence[tuple[str, int]], after: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Return `post_processor`: the tokens that stand before and after a text."""
    body: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
    ends = [[{"SpecialToken": {"id": name, "type_id": 0}} for name, _ in tokens] for tokens in (before, after)]
    return {
        "type": "TemplateProcessing",
        "single": [*ends[0], body, *ends[1]],
        "pair": [body, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in (*before, *after)},
    }


def _bpe(pieces: Sequence[Piece]) -> dict[str, Any]:
    vocabulary = {piece.name: i for i, piece in enumerate(pieces)}
    return bpe_values(vocabulary, {piece.name: piece.score for piece in pieces if piece.is_text})


def _unigram(pieces: Sequence[Piece]) -> dict[str, Any]:
    return {**UNIGRAM_SETTINGS, "vocab": [(piece.name, piece.score if piece.is_text else NEVER) for piece in pieces]}


def is_made_here(values: Mapping[str, Any]) -> bool:
    """Tell whether all of a tokenizer.json but its vocabulary is what is written here."""
    rules = {key: values.get(key) for key in RULES}
    settings = {key: value for key, value in values["model"].items() if key not in ("vocab", "merges")}
    return rules == RULES and settings in (BPE_SETTINGS, UNIGRAM_SETTINGS)


def _replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


# A tokenizer.json's settings, all but the vocabulary.
BEFORE_SPACES = f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+"
BPE_SETTINGS = {
    "type": "BPE",
    "dropout": None,
    "unk_token": "<unk>",
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": True,
    "byte_fallback": True,
    "ignore_merges": False,
}
UNIGRAM_SETTINGS = {"type": "Unigram", "unk_id": 0, "byte_fallback": True}
RULES = {
    "truncation": None,
    "padding": None,
    "normalizer": {
        "type": "Sequence",
        "normalizers": [*itertools.starmap(_replace, ESCAPES.items()), _replace(" ", SPACE)],
    },
    "pre_tokenizer": {
        "type": "Split",
        "pattern": {"Regex": BEFORE_SPACES},
        "behavior": "Isolated",
        "invert": False,
    },
    "post_processor": template_values([("<s>", 1)], []),
    "decoder": {
        "type": "Sequence",
        "decoders": [
            _replace(SPACE, " "),
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            *(_replace(escape, char) for char, escape in reversed(ESCAPES.items())),
        ],
    },
}


def config_values() -> dict[str, Any]:
    """Return the tokenizer_config.json of a tokenizer that was trained here."""
    return {
        # Not LlamaTokenizer: transformers 5 rebuilds that one by its own rules and ignores most of tokenizer.json.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "extra_special_tokens": CHAT_MARKERS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,
        "chat_template": CHAT_TEMPLATE,
    }
