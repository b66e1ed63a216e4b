"""A folder with SentencePiece's file alone gives SentencePiece's ids, and transformers' where that reads it."""

import io
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from mini_llm.errors import UserError
from mini_llm.tokenizer.tokenizer import Tokenizer

LLAMA = {
    "model_type": "bpe",
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama 2": LLAMA,
    "without bytes": {"model_type": "bpe"},
    "pieces across spaces": {**LLAMA, "split_by_whitespace": False},
    "no space before": {**LLAMA, "add_dummy_prefix": False, "user_defined_symbols": ["<tool>", "\n\n"]},
    "unigram": {**LLAMA, "model_type": "unigram"},
    "t5": {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    "unigram with symbols": {**LLAMA, "model_type": "unigram", "user_defined_symbols": ["<tool>", "of▁the", "a b"]},
}
PLAIN = [
    "",
    " ",
    "  ",
    "a",
    " a",
    "  a b  c ",
    "\n a\n",
    "the people\tof  the States.",
    "<s>hi</s>",
    "ünï 漢字 🙂 x",
    "▁a ▁",
]


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, sotu_texts: list[str]) -> Path:
    """Return a folder with a tokenizer.model of the kind that is asked for, and nothing else."""
    model = io.BytesIO()
    lines = [line for text in sotu_texts[::25] for line in text.splitlines() if line]
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=1200, minloglevel=2, **KINDS[request.param]
    )
    out: Path = tmp_path_factory.mktemp("spm")
    (out / "tokenizer.model").write_bytes(model.getvalue())
    return out


def texts(sotu_texts: list[str]) -> list[str]:
    draw = random.Random(1)
    words = ["the", " ", "  ", "States", "of the", "\n", "\n\n", "<tool>", "12", "ü", "▁", "</s>", ",", "un", "\t"]
    return [*PLAIN, sotu_texts[7][:20000], *("".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(500))]


@pytest.mark.parametrize("folder", KINDS, indirect=True)
def test_the_ids_are_sentencepieces(folder: Path, sotu_texts: list[str]) -> None:
    reference = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.vocab_size == len(reference)
    for text in texts(sotu_texts):
        if text.startswith(("<tool>", "of the")) and tokenizer.prefixes_first_only:
            continue
        ids = reference.encode(text)
        assert tokenizer.encode(text) == ids, ascii(text[:100])
        assert reference.unk_id() in ids or tokenizer.decode(ids) == reference.decode(ids)
    named = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    for name, i in named.items():
        expected = getattr(reference, f"{name}_id")()
        assert (-1 if i is None else i) == expected, name
    assert tokenizer.prefix_ids == [i for i in [reference.bos_id()] if i >= 0]


@pytest.mark.parametrize("folder", ["llama 2"], indirect=True)
def test_the_ids_are_transformers(folder: Path, sotu_texts: list[str]) -> None:
    from transformers import AutoTokenizer

    settings: dict[str, Any] = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    settings["add_bos_token"] = True
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    for text in texts(sotu_texts)[1:]:
        if text[:1] not in (" ", "▁"):  # there it leaves SentencePiece's ids: it puts no second space before a first
            assert theirs(text, split_special_tokens=True)["input_ids"] == [*ours.prefix_ids, *ours.encode(text)]
    said = "<s>the people</s>of the States<s> x"
    expected = theirs(said, add_special_tokens=False)["input_ids"]
    assert ours.encode_with_markers(said)[:-3] == expected[: len(ours.encode_with_markers(said)) - 3]


@pytest.mark.parametrize("folder", ["llama 2"], indirect=True)
def test_tokens_that_the_folder_adds(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    (tmp_path / "added_tokens.json").write_text('{"<|im_start|>": 1200}')
    config = {"eos_token": "<|im_end|>", "added_tokens_decoder": {"1201": {"content": "<|im_end|>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.special_id("<|im_start|>"), tokenizer.eos_id, tokenizer.vocab_size) == (1200, 1201, 1202)
    (tmp_path / "added_tokens.json").write_text('{"<|im_start|>": 5}')
    with pytest.raises(
        UserError, match=r"tokenizer\.model is not .* '<\|im_start\|>' as id 5, which is another token's"
    ):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("folder", ["llama 2", "t5"], indirect=True)
def test_a_copy_holds_the_new_format_too(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    tokenizer.copy_to(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    copy = Tokenizer.load(tmp_path)
    assert copy.fingerprint == tokenizer.fingerprint
    assert (copy.bos_id, copy.eos_id, copy.pad_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert copy.encode("  the people\n") == tokenizer.encode("  the people\n")


def test_ours_without_its_new_format_is_the_same(ours: Tokenizer, nasty_texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((ours.folder / "tokenizer.model").read_bytes())
    alone = Tokenizer.load(tmp_path)
    assert alone.fingerprint == ours.fingerprint
    assert [alone.encode(text) for text in nasty_texts] == [ours.encode(text) for text in nasty_texts]
    assert (alone.bos_id, alone.eos_ids, alone.pad_id) == (ours.bos_id, ours.eos_ids, ours.pad_id)


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "huge"])
def test_damaged_models_are_named_and_no_new_one_is_asked_for(ours: Tokenizer, tmp_path: Path, damage: str) -> None:
    data = (ours.folder / "tokenizer.model").read_bytes()
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / "tokenizer.model"
    path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "noise": b"\xff" * 999}.get(damage, data))
    if damage == "huge":
        os.truncate(path, 2**40)
    with pytest.raises(UserError, match=r"tokenizer\.model is (not a tokenizer that can be used|damaged)") as raised:
        Tokenizer.load(tmp_path)
    assert "tokenizer train" not in str(raised.value)
    assert damage == "huge" or "fetch the model again" in str(raised.value)
