"""Streamed text: whole characters only, nothing of a stop string, and all pieces together are the text."""

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_llm.errors import UsageError
from mini_llm.inference.continuation import Continuation, StopStrings
from mini_llm.tokenizer.tokenizer import StreamDecoder, Tokenizer

texts = st.text("abc", max_size=20)
END = 2


def cut_by_hand(text: str, stops: list[str]) -> str:
    """Read character by character; at the first stop string that is complete, drop it."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


@given(st.lists(texts, max_size=12), st.lists(st.text("abc", min_size=1, max_size=6), max_size=3))
def test_stop_strings_cut_the_same_wherever_the_pieces_are_cut(pieces: list[str], stops: list[str]) -> None:
    gate = StopStrings(stops)
    shown = ""
    for piece in pieces:
        shown += gate.push(piece)
        if gate.found:
            break
        assert not any(stop in shown for stop in stops)
    shown += gate.flush()
    assert shown == cut_by_hand("".join(pieces), stops)


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    gate = StopStrings(["\n\nUser:"])
    assert [gate.push(piece) for piece in ("Hi.\n", "\n", "Us", "ual", "\n", "\nUser", ": x")] == [
        "Hi.", "", "", "\n\nUsual", "", "", "",
    ]  # fmt: skip
    assert gate.found
    assert gate.flush() == ""


def test_a_single_stop_string_may_stand_alone() -> None:
    assert StopStrings("end").stops == ["end"]


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="must not be empty"):
        StopStrings(["a", ""])


def continuation(tokenizer: Tokenizer, ids: list[int], stops: list[str] | None = None) -> Continuation:
    return Continuation(iter(ids), StreamDecoder(tokenizer), StopStrings(stops or []), {END})


def is_whole(piece: str) -> bool:
    return bool(piece) and piece.encode("utf-8", "strict") is not None


@given(ids=st.lists(st.integers(3, 399), max_size=30))
def test_streamed_equals_whole_for_any_ids(small_tokenizer: Tokenizer, ids: list[int]) -> None:
    stream = continuation(small_tokenizer, ids)
    pieces = list(stream)
    assert "".join(pieces) == small_tokenizer.decode(ids)
    assert all(is_whole(piece) for piece in pieces)
    assert (stream.finish_reason, stream.n_tokens) == ("length", len(ids))


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_characters_of_many_bytes_come_whole(small_tokenizer: Tokenizer, text: str) -> None:
    pieces = list(continuation(small_tokenizer, small_tokenizer.encode(text)))
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_not_lost(small_tokenizer: Tokenizer) -> None:
    ids = small_tokenizer.encode("a😀")
    assert "".join(continuation(small_tokenizer, ids[:-1])) == "a\ufffd"
    assert "".join(continuation(small_tokenizer, [*ids[:-1], END])) == "a\ufffd"


def test_the_text_ends_at_eos(small_tokenizer: Tokenizer) -> None:
    ids = small_tokenizer.encode("one")
    stream = continuation(small_tokenizer, [*ids, END, *ids])
    assert stream.finish_reason is None
    assert "".join(stream) == "one"
    assert (stream.finish_reason, stream.n_tokens) == ("stop", len(ids) + 1)


@pytest.mark.parametrize(
    ("stops", "expected", "reason"),
    [
        (["people of"], "We the ", "stop"),  # across tokens
        (["e", "the"], "W", "stop"),
        (["States of"], "We the people of the United States", "length"),  # began, never came
        (["States"], "We the people of the United ", "stop"),  # the very end
        ([], "We the people of the United States", "length"),
    ],
)
def test_stop_strings_across_tokens(small_tokenizer: Tokenizer, stops: list[str], expected: str, reason: str) -> None:
    stream = continuation(small_tokenizer, small_tokenizer.encode("We the people of the United States"), stops)
    assert "".join(stream) == expected
    assert stream.finish_reason == reason


def test_no_token_is_asked_for_after_a_stop_string(small_tokenizer: Tokenizer) -> None:
    ids = iter(small_tokenizer.encode("stop here, not there"))
    list(Continuation(ids, StreamDecoder(small_tokenizer), StopStrings(["here"]), {END}))
    assert "there" in small_tokenizer.decode(list(ids))


def test_a_token_that_may_not_end_the_text_does_not(small_tokenizer: Tokenizer) -> None:
    ids = small_tokenizer.encode("one")
    stream = Continuation(iter([*ids, END, *ids]), StreamDecoder(small_tokenizer), StopStrings([]), ())
    assert "".join(stream).endswith("one")
    assert (stream.finish_reason, stream.n_tokens) == ("length", 2 * len(ids) + 1)


def test_it_goes_when_nobody_holds_it(small_tokenizer: Tokenizer) -> None:
    stream = continuation(small_tokenizer, small_tokenizer.encode("one two"))
    next(stream)
    gone = weakref.ref(stream)
    gc.disable()
    try:
        del stream
        assert gone() is None
    finally:
        gc.enable()
