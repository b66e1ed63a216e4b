"""Streamed text equals the text decoded at once, in whole characters, for every kind of tokenizer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_llm.tokenizer.decoding import DecodingRules, TextStream, read_rules
from mini_llm.tokenizer.tokenizer import StreamDecoder, Tokenizer


@pytest.fixture(scope="session", params=["bpe", "unigram", "byte_level", "llama2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.push(i) for i in ids), decoder.flush()]


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_ids_stream_to_what_they_decode_to(tokenizer: Tokenizer, data: st.DataObject) -> None:
    any_id = st.integers(0, tokenizer.vocab_size - 1)
    text = data.draw(st.text("▁\ue000\ue001\ue002 a\n🙂é") | st.text(st.characters(exclude_categories=["Cs"])))
    ids = data.draw(st.lists(any_id)) + tokenizer.encode(text) + data.draw(st.lists(any_id, max_size=3))
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_nasty_texts_stream_without_broken_characters(tokenizer: Tokenizer, nasty_texts: list[str]) -> None:
    for text in nasty_texts:
        ids = tokenizer.encode(text)
        parts = stream(tokenizer, ids)
        assert "".join(parts) == tokenizer.decode(ids)
        assert "\ufffd" in text or "\ufffd" not in "".join(parts)


def test_characters_come_as_soon_as_they_are_whole(ours: Tokenizer) -> None:
    decoder = StreamDecoder(ours)
    ids = ours.encode("🙂")
    assert len(ids) == 4
    assert [decoder.push(i) for i in ids] == ["", "", "", "🙂"]
    assert decoder.flush() == ""
    assert [decoder.push(i) for i in ids[:2]] == ["", ""]
    assert decoder.flush() == "\ufffd"


def test_escapes_are_never_shown(ours: Tokenizer) -> None:
    parts = stream(ours, ours.encode("a▁b\ue000c"))
    assert [part for part in parts if part] == ["a", "▁", "b", "\ue000", "c"]


def test_a_long_stream_is_whole(bpe: Tokenizer) -> None:
    ids = bpe.encode("The people of the United States. ") * 10_000  # hours, if each token decoded everything again
    assert "".join(stream(bpe, ids)) == bpe.decode(ids)


@given(st.lists(st.sampled_from([b" ", b"  ", b"a", b" b", b"", b"x", b"y", b"xy"])))
@settings(max_examples=300, deadline=None)
def test_rules_do_not_depend_on_how_bytes_arrive(parts: list[bytes]) -> None:
    rules = DecodingRules([], strip_spaces=2, replacements={"xya": "1", "xx": "2"})
    whole = TextStream(rules).feed(b"".join(parts), final=True)
    one_by_one = TextStream(rules)
    assert "".join(map(one_by_one.feed, parts)) + one_by_one.feed(b"", final=True) == whole


def test_unknown_decoders_are_refused() -> None:
    for decoder in (None, {"type": "WordPiece"}, {"type": "Sequence", "decoders": [{"type": "CTC"}]}):
        with pytest.raises(ValueError, match="that Mini-LLM does not know"):
            read_rules(decoder, ["a"], set())
