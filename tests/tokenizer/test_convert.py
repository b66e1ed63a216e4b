"""SentencePiece, tokenizer.json and AutoTokenizer give the same ids, on real and on adversarial text."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from mini_llm.errors import UserError
from mini_llm.tokenizer.tokenizer import Tokenizer

LLAMA_CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 3000, "hidden_size": 64}


def sentencepiece(tokenizer: Tokenizer) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(tokenizer.folder / "tokenizer.model"))


def auto_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def adversarial(pieces: list[str], nasty: list[str], seed: int, count: int) -> list[str]:
    """Return random strings: pieces in any order, repeated characters, runs of spaces, digits, any code points."""
    draw = random.Random(seed)
    makers = [
        lambda: "".join(draw.choices(pieces, k=draw.randint(1, 20))),
        lambda: draw.choice(pieces) * draw.randint(2, 30),
        lambda: "".join(draw.choices(nasty, k=draw.randint(1, 6))),
        lambda: "".join(draw.choices(draw.sample("aeinost r\n", 3), k=draw.randint(1, 60))),
        lambda: "".join(draw.choices(" \t\n0123456789", k=draw.randint(1, 60))),
        lambda: "".join(chr(draw.choice([*range(128), draw.randrange(0xE000, 0x110000)])) for _ in range(20)),
    ]
    return [draw.choice(makers)() for _ in range(count)]


def check_parity(tokenizer: Tokenizer, texts: list[str]) -> None:
    reference = sentencepiece(tokenizer)
    expected = reference.encode(texts)
    for text, ids, their_ids in zip(texts, tokenizer.encode_batch(texts), expected, strict=True):
        assert ids == their_ids, ascii(text[:200])
    assert reference.decode(expected) == [tokenizer.decode(ids) for ids in expected] == texts


def check_everything(tokenizer: Tokenizer, nasty_texts: list[str], sotu_texts: list[str]) -> None:
    pieces = [piece.replace("▁", " ") for piece in sentencepiece(tokenizer).id_to_piece([*range(tokenizer.vocab_size)])]
    check_parity(tokenizer, nasty_texts)
    check_parity(tokenizer, sotu_texts[3::40])
    check_parity(tokenizer, adversarial(pieces, nasty_texts, seed=1, count=4000))


def test_bpe_ids_at_32k(train, nasty_texts: list[str], sotu_texts: list[str]) -> None:
    tokenizer = train(sotu_texts, 32000)
    assert tokenizer.vocab_size == 32000
    check_everything(tokenizer, nasty_texts, sotu_texts)


def test_unigram_ids_at_16k(train, nasty_texts: list[str], sotu_texts: list[str]) -> None:
    """These addresses support some 25,000 Unigram tokens, not 32,000."""
    check_everything(train(sotu_texts, 16000, "unigram", sample_bytes=4 * 10**6), nasty_texts, sotu_texts)


def test_small_vocabularies(ours: Tokenizer, nasty_texts: list[str], sotu_texts: list[str]) -> None:
    check_parity(ours, ["".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))])
    check_everything(ours, nasty_texts, sotu_texts)


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text("ab ▁\ue000\ue001\ue002<|s>\n"))
@settings(max_examples=300, deadline=None)
def test_any_text(ours: Tokenizer, text: str) -> None:
    check_parity(ours, [text])


def largest_size(train, sample: list[str], model_type: str) -> int:
    with pytest.raises(UserError) as raised:
        train(sample, 10**6, model_type)
    return int(raised.value.hint.split()[-1])


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("alphabet", ["a", "ab", "ab ", " \n\t", "▁\ue000a"])
def test_repetitive_languages(train, model_type: str, alphabet: str) -> None:
    """Few letters make many pieces overlap and tie: where the order of merges shows."""
    draw = random.Random(alphabet)
    words = ["".join(draw.choices(alphabet, k=draw.randint(2, 9))) for _ in range(10)]
    sample = ["a" + "".join(draw.choices(words, k=60)) for _ in range(5)]
    tokenizer = train(sample, largest_size(train, sample, model_type), model_type)
    check_parity(tokenizer, ["".join(draw.choices(alphabet, k=draw.randint(1, 60))) for _ in range(500)])


def test_exact_sums_keep_long_unigram_texts_equal(unigram: Tokenizer, sotu_texts: list[str]) -> None:
    """Multiples of 1/64 add up exactly in 32-bit floats, as long as the sum stays below 2**18."""
    scores = sentencepiece(unigram).get_score([*range(unigram.vocab_size)])
    assert all((score * 64).is_integer() for score in scores)
    check_parity(unigram, ["".join(sotu_texts[:60])])


def test_the_model_holds_no_paths(ours: Tokenizer) -> None:
    assert b".tsv" not in (ours.folder / "tokenizer.model").read_bytes()


@pytest.mark.parametrize("beside_a_model", [False, True])
def test_auto_tokenizer(ours: Tokenizer, nasty_texts: list[str], tmp_path: Path, beside_a_model: bool) -> None:
    ours.copy_to(tmp_path)
    if beside_a_model:
        (tmp_path / "config.json").write_text(json.dumps(LLAMA_CONFIG))
    theirs = auto_tokenizer(tmp_path)
    assert len(theirs) == ours.vocab_size
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token_id) == (1, 2, 3, 0)
    assert sorted(theirs.all_special_ids) == list(range(8))
    for text in nasty_texts:
        ids = ours.encode(text)
        assert theirs(text, split_special_tokens=True)["input_ids"] == [1, *ids]
        assert theirs(text, split_special_tokens=True, add_special_tokens=False)["input_ids"] == ids
        assert theirs.decode(ids) == text
        assert theirs.decode([1, *ids, 7], skip_special_tokens=True) == text
    assert theirs("The people")["input_ids"] == [1, *ours.encode("The people")]


def test_auto_tokenizer_saves_what_it_loaded(ours: Tokenizer, tmp_path: Path) -> None:
    auto_tokenizer(ours.folder).save_pretrained(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.encode("  Hi ▁\n</s>") == ours.encode("  Hi ▁\n</s>")
    assert (again.bos_id, again.eos_ids, again.pad_id, again.prefix_ids) == (1, [2, 7], 3, [1])
