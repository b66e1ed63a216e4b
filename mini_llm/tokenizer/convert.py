"""One vocabulary in two formats: SentencePiece's `tokenizer.model` and Hugging Face's `tokenizer.json`, the same ids.

Three things keep the ids equal. Merges: SentencePiece joins any two neighbours that form a piece, best score first, so
each way to split a piece becomes one merge rule of that rank. Spaces: both write them as U+2581, and both first escape
a literal U+2581 (and the escape character), so that no text is lost. Unigram scores are multiples of 1/64
(`clean_model`), so that their sums are exact in SentencePiece's 32-bit floats as well as in 64 bits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def older_format(folder: Path) -> str | None:
    """Return what helps where a model has a tokenizer, but no tokenizer.json: it needs no new one."""
    if (folder / "tokenizer.model").is_file() or (folder / "vocab.json").is_file():
        return (
            "its tokenizer is in an older format; transformers writes the new one into the same folder: python -c "
            f"\"import transformers as t; t.AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')\""
        )
    if (folder / "config.json").is_file():
        return "this model came without its tokenizer: give one with --tokenizer DIR, or put its tokenizer.json there"
    return None


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
    import tokenizers
    from sentencepiece import SentencePieceProcessor
    from tokenizers import decoders, normalizers, pre_tokenizers, processors

    pieces = SentencePieceProcessor(model_proto=model)
    result = tokenizers.Tokenizer(_unigram(pieces) if model_type == "unigram" else bpe_model(pieces))
    result.normalizer = normalizers.Sequence(
        [normalizers.Replace(char, escape) for char, escape in ESCAPES.items()] + [normalizers.Replace(" ", SPACE)]
    )
    result.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+"), "isolated")
    result.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        + [decoders.Replace(escape, char) for char, escape in reversed(ESCAPES.items())]
    )
    result.add_special_tokens([tokenizers.AddedToken(name, normalized=False) for name in SPECIAL_TOKENS])
    result.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", pieces.bos_id())])
    # Not `save`: where the disk is full it raises a bare Exception.
    (folder / "tokenizer.json").write_text(result.to_str(pretty=True), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(_config(), indent=2) + "\n", encoding="utf-8")


def bpe_model(pieces: Any) -> Any:
    """Return the `tokenizers` model whose merges do what a SentencePiece BPE processor does."""
    from tokenizers import models

    vocab = {pieces.id_to_piece(i): i for i in range(len(pieces))}
    scores = {p: pieces.get_score(i) for p, i in vocab.items() if _is_text(pieces, i)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(scores, key=lambda piece: -scores[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)


def _unigram(pieces: Any) -> Any:
    from tokenizers import models

    scored = [
        (pieces.id_to_piece(i), pieces.get_score(i) if _is_text(pieces, i) else NEVER) for i in range(len(pieces))
    ]
    return models.Unigram(scored, unk_id=pieces.unk_id(), byte_fallback=True)


def _is_text(pieces: Any, i: int) -> bool:
    return not (pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_byte(i))


def _config() -> dict[str, Any]:
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
