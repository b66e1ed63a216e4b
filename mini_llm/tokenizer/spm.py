"""SentencePiece's `tokenizer.model` without a tokenizer.json beside it: written as one, with the same ids.

Llama 2, Mistral and their kin came so. Only plain values are read from the file; no code of SentencePiece runs on it.
Text is cut before spaces where no piece goes across one: the same ids, in a fraction of the time. As in transformers, a
text that begins with a symbol of the user's gets no space before it, which SentencePiece would put there.
The format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

from mini_llm.tokenizer.convert import (
    BEFORE_SPACES,
    NEVER,
    SPACE,
    SPECIAL_TOKENS,
    Piece,
    added_token,
    bpe_values,
    hugging_face_json,
    template_values,
)

UNIGRAM, BPE = 1, 2  # of trainer_spec.model_type
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6  # of a piece's type
NOT_TEXT = (UNKNOWN, CONTROL, USER_DEFINED, BYTE)
ACROSS_SPACE = re.compile(f"[^{SPACE}]{SPACE}")


class NoModel(ValueError):
    """The file is damaged, or something else."""


def read_model(data: bytes) -> Any:
    """Return a SentencePiece model's values.

    Raises:
        NoModel: it is none.
        ValueError: it is of a kind that no tokenizer.json can equal.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    try:
        model = sentencepiece_model_pb2.ModelProto.FromString(data)  # type: ignore[attr-defined]
    except DecodeError:
        raise NoModel("it is no SentencePiece model") from None
    names = [piece.piece for piece in model.pieces]
    if not names or len({*names}) < len(names):
        raise NoModel("it has no pieces, or one of them twice")
    if model.trainer_spec.model_type not in (UNIGRAM, BPE):
        raise ValueError("it is a SentencePiece model of words or characters")
    if model.trainer_spec.treat_whitespace_as_suffix or not model.normalizer_spec.escape_whitespaces:
        raise ValueError("it writes spaces in a way of its own")
    if sum(piece.type == UNKNOWN for piece in model.pieces) != 1:
        raise ValueError("it has no piece, or several, for what is unknown")
    return model


def as_tokenizer_json(model: Any, config: Mapping[str, Any], more: Mapping[str, int]) -> dict[str, Any]:
    """Return the values of a tokenizer.json.

    `config` is the folder's tokenizer_config.json; `more` are the tokens that the folder adds to the model's, with ids.

    Raises:
        ValueError: a token that is added has another's id.
    """
    if model.denormalizer_spec.precompiled_charsmap:
        raise ValueError("it has rules of its own for decoding")
    pieces, spec = list(model.pieces), model.trainer_spec
    vocabulary = {piece.piece: i for i, piece in enumerate(pieces)}
    for name, i in more.items():
        if vocabulary.setdefault(name, i) != i or (i < len(pieces) and pieces[i].piece != name):
            raise ValueError(f"the folder adds {name[:40]!r} as id {i}, which is another token's")
    apart = {piece.piece: piece.type != USER_DEFINED for piece in pieces if piece.type in NOT_TEXT[:3]}
    apart = {**dict.fromkeys(more, True), **{name: special for name, special in apart.items() if " " not in name}}
    names = {i: name for name, i in vocabulary.items()}
    before = [spec.bos_id] if config.get("add_bos_token", True) and spec.bos_id in names else []
    after = [spec.eos_id] if config.get("add_eos_token", False) and spec.eos_id in names else []
    if spec.model_type == BPE:
        scores = {piece.piece: piece.score for piece in pieces if piece.type not in NOT_TEXT}
        values = bpe_values(vocabulary, scores, unknown=_unknown(pieces), has_bytes=spec.byte_fallback)
    else:
        values = _unigram(pieces, more, spec.byte_fallback)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _apart(i, name, apart[name], model.normalizer_spec) for i, name in sorted(names.items()) if name in apart
        ],
        "normalizer": _normalizer(model.normalizer_spec),
        "pre_tokenizer": _pre_tokenizer(model),
        "post_processor": template_values([(names[i], i) for i in before], [(names[i], i) for i in after]),
        "decoder": _decoder(model.normalizer_spec),
        "model": values,
    }


def is_made_here(model: Any) -> bool:
    """Tell whether `tokenizer train` wrote this model."""
    return [piece.piece for piece in model.pieces[: len(SPECIAL_TOKENS)]] == SPECIAL_TOKENS


def our_tokenizer_json(model: Any) -> str:
    """Return the tokenizer.json that `tokenizer train` wrote beside this model of its."""
    pieces = [Piece(piece.piece, piece.score, piece.type not in NOT_TEXT) for piece in model.pieces]
    return hugging_face_json(pieces, {UNIGRAM: "unigram", BPE: "bpe"}[model.trainer_spec.model_type])


def special_names(model: Any) -> dict[str, str]:
    """Return bos_token and the like, as a tokenizer_config.json would name them."""
    spec, names = model.trainer_spec, [piece.piece for piece in model.pieces]
    ids = {"bos": spec.bos_id, "eos": spec.eos_id, "pad": spec.pad_id}
    found = {f"{name}_token": names[i] for name, i in ids.items() if 0 <= i < len(names)}
    return {**found, "unk_token": _unknown(model.pieces)}


def _unknown(pieces: Any) -> str:
    return next(str(piece.piece) for piece in pieces if piece.type == UNKNOWN)


def _apart(i: int, name: str, special: bool, spec: Any) -> dict[str, Any]:
    """Return a token that is found before the text is cut: a symbol where spaces are signs already, as in the piece."""
    if not special and name.startswith(SPACE) and spec.add_dummy_prefix:
        raise ValueError(f"its symbol {name!r} begins with a space")
    return {**added_token(i, name, special), "normalized": not special and not spec.precompiled_charsmap}


def _unigram(pieces: list[Any], more: Mapping[str, int], has_bytes: bool) -> dict[str, Any]:
    scored = [(piece.piece, NEVER if piece.type in NOT_TEXT else piece.score) for piece in pieces]
    added = sorted(((i, name) for name, i in more.items() if i >= len(pieces)))
    if [i for i, _ in added] != list(range(len(pieces), len(pieces) + len(added))):
        raise ValueError("the folder adds tokens with gaps between their ids")
    scored += [(name, NEVER) for _, name in added]
    unknown = next(i for i, piece in enumerate(pieces) if piece.type == UNKNOWN)
    return {"type": "Unigram", "unk_id": unknown, "vocab": scored, "byte_fallback": has_bytes}


def _normalizer(spec: Any) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:
        # A space that stays in front is the one that goes before the first word.
        steps += [_replace(r" +\z" if spec.add_dummy_prefix else r"\A +| +\z", ""), _replace(" {2,}", " ")]
    elif spec.add_dummy_prefix:  # Metaspace puts one before all texts but these
        steps.append(_replace(rf"\A[ {SPACE}]", SPACE * 2))
    return {"type": "Sequence", "normalizers": [*steps, _replace(" ", SPACE)]}


def _pre_tokenizer(model: Any) -> dict[str, Any]:
    """Return where a text is cut; no piece goes across such a place, so that the ids stay the same."""
    # transformers' way: one space before the first word of the text, none after a control token.
    scheme = "first" if model.normalizer_spec.add_dummy_prefix else "never"
    steps = [{"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}]
    texts = [piece.piece for piece in model.pieces if piece.type not in NOT_TEXT]
    if model.trainer_spec.model_type == UNIGRAM:
        # A control token's name is cut at the characters that are no text: it would cost less than what they become.
        characters = "".join(map(re.escape, sorted({*SPACE, *"".join(texts)})))
        steps.append(_split(f"[^{characters}]+"))
    if not any(ACROSS_SPACE.search(text) for text in texts):
        steps.append(_split(BEFORE_SPACES))
    return {"type": "Sequence", "pretokenizers": steps}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _decoder(spec: Any) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if spec.add_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}
