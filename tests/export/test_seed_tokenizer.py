"""The seed's tokenizer comes over with the ids that its training data had."""

import json
from pathlib import Path

import pytest

from mini_llm.errors import UserError
from mini_llm.export.seed_tokenizer import seed_tokenizer

TEXTS = ["The state of the union is strong.", "two  spaces\n\ttab 🔥 naïve </s> <user>", " 1790"]


def test_pieces_are_sentencepieces_and_text_survives(spm_model: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(spm_model))
    with seed_tokenizer(spm_model, 600) as tokenizer:
        assert tokenizer is not None
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (1, 2, 3, 600)
        assert tokenizer.prefix_ids == [1]
        # The seed's tokenizer.json puts no space first, where spm.model does.
        assert tokenizer.encode(" The state of the union is strong.") == pieces.encode(
            "The state of the union is strong."
        )
        for text in TEXTS:
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokenizer_json_is_taken_as_it_is_and_before_spm_model(spm_model: Path, tmp_path: Path) -> None:
    with seed_tokenizer(spm_model, 600) as tokenizer:
        assert tokenizer is not None
        tokenizer.copy_to(tmp_path)
    (tmp_path / "spm.model").write_bytes(b"never read")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    for source in (tmp_path, tmp_path / "spm.model", tmp_path / "tokenizer.json"):
        with seed_tokenizer(source, 600) as tokenizer:
            assert tokenizer is not None
            assert (tokenizer.folder / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
            config = json.loads((tokenizer.folder / "tokenizer_config.json").read_text())
            assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_transformers_gives_the_same_ids(spm_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    with seed_tokenizer(spm_model, 600) as tokenizer:
        assert tokenizer is not None
        tokenizer.copy_to(tmp_path)
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        for text in TEXTS:
            found = theirs(text, split_special_tokens=True)["input_ids"]
            assert found == [1, *tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, b"", "no tokenizer at"),
        ("spm.model", b"", "not a SentencePiece model"),
        ("spm.model", b"\x00\x01garbage", "not a SentencePiece model"),
        ("tokenizer.json", b"{}", "tokenizer.json"),
    ],
)
def test_bad_files_are_named(name: str | None, content: bytes, message: str, tmp_path: Path) -> None:
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message), seed_tokenizer(tmp_path, 600):
        pass


def test_a_tokenizer_larger_than_the_model_is_refused(spm_model: Path) -> None:
    with pytest.raises(UserError, match="600 tokens, the model 300"), seed_tokenizer(spm_model, 300):
        pass
