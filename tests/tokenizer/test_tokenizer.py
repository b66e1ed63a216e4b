"""Every text comes back, no text becomes a control token, and a bad folder is named."""

import errno
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_llm.errors import UserError
from mini_llm.tokenizer.tokenizer import Tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.text(" \n\t▁\ue000\ue001\ue002<|>s/end0x4a")


def test_nasty_texts_come_back(ours: Tokenizer, nasty_texts: list[str]) -> None:
    for text, ids in zip(nasty_texts, ours.encode_batch(nasty_texts), strict=True):
        assert ours.decode(ids) == text
        assert ids == ours.encode(text)


def test_every_code_point_comes_back(ours: Tokenizer) -> None:
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    assert ours.decode(ours.encode(text)) == text


@given(TEXT)
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back_without_control_ids(ours: Tokenizer, text: str) -> None:
    ids = ours.encode(text)
    assert ours.decode(ids) == text
    assert min(ids, default=8) >= 8


@given(TEXT, TEXT)
@settings(max_examples=100, deadline=None)
def test_parts_join_to_the_whole(ours: Tokenizer, one: str, other: str) -> None:
    assert ours.decode(ours.encode(one) + ours.encode(other)) == one + other


def test_real_text_comes_back_in_fewer_tokens(ours: Tokenizer, sotu_texts: list[str]) -> None:
    for text, ids in zip(sotu_texts[5:8], ours.encode_batch(sotu_texts[5:8]), strict=True):
        assert ours.decode(ids) == text
        assert len(ids) < len(text.encode()) / 3


def test_white_space_has_tokens_of_its_own(bpe: Tokenizer) -> None:
    assert len(bpe.encode("\n\n\n        # ")) <= 4


def test_special_ids(ours: Tokenizer) -> None:
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (1, 2, 3)
    assert ours.eos_ids == [2, 7]
    assert ours.prefix_ids == [1]
    assert ours.vocab_size == 3000
    assert ours.special_id("<|user|>") == 5
    assert ours.special_id("the") is None
    assert ours.decode([1, 5, *ours.encode("a"), 7, 2, 3, 0]) == "a"


def test_bytes_that_are_not_utf8_become_u_fffd(ours: Tokenizer) -> None:
    first_byte = 8
    assert ours.decode([first_byte + 0xFF, *ours.encode("a")]) == "\ufffda"
    assert ours.decode(ours.encode("🙂")[:-1]) == "\ufffd"


def test_ids_beyond_the_vocabulary_give_nothing(ours: Tokenizer) -> None:
    assert ours.decode([10**6, -1, *ours.encode("a")]) == "a"


def test_lone_surrogates_count_as_u_fffd(ours: Tokenizer) -> None:
    assert ours.decode(ours.encode("a\ud800b")) == "a\ufffdb"
    assert ours.encode_batch(["ok", "\udc00"]) == [ours.encode("ok"), ours.encode("\ufffd")]


def test_token_bytes_add_up_to_the_text(ours: Tokenizer, byte_level: Tokenizer, sotu_texts: list[str]) -> None:
    text = sotu_texts[0] + "🙂漢\n"
    for tokenizer in (ours, byte_level):
        sizes = tokenizer.token_bytes()
        assert sizes.dtype == np.int64
        assert sizes.shape == (tokenizer.vocab_size,)
        assert sizes[tokenizer.encode(text)].sum() == len(text.encode())
        assert sizes[tokenizer.eos_id] == 0


def test_one_huge_text_is_one_text(bpe: Tokenizer, sotu_texts: list[str]) -> None:
    text = "".join(sotu_texts)[:2_000_000]
    assert bpe.decode(bpe.encode(text)) == text


def test_byte_level_folders_work(byte_level: Tokenizer, nasty_texts: list[str]) -> None:
    assert byte_level.eos_ids == [byte_level.eos_id] == [byte_level.special_id("<|endoftext|>")]
    assert byte_level.bos_id is None
    assert byte_level.prefix_ids == []
    for text in [*nasty_texts, "<|endoftext|>", "in two words"]:
        assert byte_level.decode(byte_level.encode(text)) == text
        assert byte_level.eos_id not in byte_level.encode(text)


def test_llama2_folders_decode_as_their_own_library_does(llama2: Tokenizer, sotu_texts: list[str]) -> None:
    import tokenizers

    reference = tokenizers.Tokenizer.from_file(str(llama2.folder / "tokenizer.json"))
    for text in ["", " ", "a", " a", "  a", "ünï 🙂\n", sotu_texts[0]]:
        ids = llama2.encode(text)
        assert llama2.decode(ids) == reference.decode(ids)
    assert llama2.bos_id == 1  # no tokenizer_config.json: by its usual name


def test_saved_truncation_and_padding_do_not_apply(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.copy_to(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    spec["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    spec["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None} | {
        "pad_id": 3,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    assert Tokenizer.load(tmp_path).encode("a b c d e f g h i") == bpe.encode("a b c d e f g h i")


def test_copy_and_fingerprint(ours: Tokenizer, tmp_path: Path) -> None:
    ours.copy_to(tmp_path / "new")
    copy = Tokenizer.load(tmp_path / "new")
    digest = hashlib.sha256((tmp_path / "new" / "tokenizer.json").read_bytes()).hexdigest()
    assert copy.fingerprint == ours.fingerprint == f"sha256:{digest}"
    assert (tmp_path / "new" / "tokenizer.model").is_file()
    assert copy.encode("the people") == ours.encode("the people")


def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer folder at .*nowhere\n.*mini-llm tokenizer train"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no tokenizer.json\n.*mini-llm tokenizer train"):
        Tokenizer.load(tmp_path)


def damaged_versions(data: bytes) -> dict[str, bytes]:
    spec = json.loads(data)
    spec["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    no_tokens = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}
    return {
        "empty": b"",
        "truncated": data[: len(data) // 2],
        "another kind of JSON": b"[1, 2]",
        "not text": b"\xff\xfe\x00",
        "no tokens": json.dumps(no_tokens).encode(),
        "unknown decoder": json.dumps(spec).encode(),
    }


def test_damaged_folders_are_named(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.copy_to(tmp_path)
    path = tmp_path / "tokenizer.json"
    for damage, data in damaged_versions(path.read_bytes()).items():
        path.write_bytes(data)
        with pytest.raises(UserError) as raised:
            Tokenizer.load(tmp_path)
        assert "tokenizer.json is not a tokenizer that can be used" in raised.value.message, damage
        assert "mini-llm tokenizer train" in (raised.value.hint or ""), damage


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "[" * 100_000])
def test_damaged_config_is_named(bpe: Tokenizer, tmp_path: Path, content: str) -> None:
    bpe.copy_to(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer_config.json (is not valid JSON|must hold)"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_what_cannot_be_read_is_named(
    bpe: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bpe.copy_to(tmp_path)

    def refuse(path: Path, _mode: str) -> Any:
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return path.open("rb")

    monkeypatch.setattr("mini_llm.user_files.open", refuse, raising=False)
    with pytest.raises(UserError, match=rf"cannot read {re.escape(str(tmp_path / name))}: [Pp]ermission denied"):
        Tokenizer.load(tmp_path)


def test_config_is_optional(bpe: Tokenizer, tmp_path: Path) -> None:
    shutil.copy(bpe.folder / "tokenizer.json", tmp_path)
    bare = Tokenizer.load(tmp_path)
    assert (bare.bos_id, bare.eos_id, bare.pad_id) == (1, 2, 3)


def test_a_file_larger_than_any_tokenizer_is_refused_before_it_is_read(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.copy_to(tmp_path)
    os.truncate(tmp_path / "tokenizer.json", 2**40)
    with pytest.raises(UserError, match=r"1,099,511,627,776 bytes, 200,000,000 at most"):
        Tokenizer.load(tmp_path)
