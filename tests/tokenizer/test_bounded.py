"""A pattern that no trial could find out: the command that meets the text for it ends soon, and names the tokenizer."""

import json
import time
from pathlib import Path

import pytest
from tokenizers import Regex, pre_tokenizers
from typer.testing import CliRunner

from mini_llm.cli import app
from mini_llm.errors import UserError
from mini_llm.tokenizer import bounded
from mini_llm.tokenizer.bounded import KNOWN
from mini_llm.tokenizer.fast import FastEncoder
from mini_llm.tokenizer.tokenizer import Tokenizer

SLOW = r"(?:xy)*(?:xy|zz)*(?=\d|\s)|.|\n"  # at each of n characters n * n ways to be wrong
SLOW_TEXT = "a word " + "xy" * 2000 + "!"
PANIC = r"(?:xyxy|xy)+(?=\d)|.|\n"  # backtracks until the library gives up, which it does by a panic
RUNS_AWAY = r"the tokenizer in .* runs away at this text: no end after \d+ seconds"


def with_pattern(tokenizer: Tokenizer, pattern: str, folder: Path) -> Tokenizer:
    spec = json.loads(tokenizer.as_json())
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    spec["pre_tokenizer"] = split
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return Tokenizer.load(folder)


@pytest.fixture
def runaway(bpe: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    monkeypatch.setattr(bounded, "SECONDS", 0.5)
    return with_pattern(bpe, SLOW, tmp_path / "tokenizer")


def test_what_runs_away_ends_in_words(runaway: Tokenizer) -> None:
    begin = time.monotonic()
    for encode in (runaway.encode, runaway.encode_spans, runaway.encode_with_markers):
        with pytest.raises(UserError, match=RUNS_AWAY):
            encode(SLOW_TEXT)
    assert time.monotonic() - begin < 10
    assert runaway.decode(runaway.encode("a word")) == "a word"


def test_prepare_ends_in_words_and_leaves_nothing(runaway: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a word\n" + SLOW_TEXT)
    words = ["prepare", str(tmp_path / "text.txt"), "--tokenizer", str(runaway.folder), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, UserError)
    assert str(runaway.folder) in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_a_panic_at_work_is_a_message_alone(bpe: Tokenizer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = with_pattern(bpe, PANIC, tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"the tokenizer in .* fails at this text: .*retry-limit"):
        tokenizer.encode("xy" * 60)
    assert capfd.readouterr().err == ""


def test_ours_and_published_ones_are_not_watched(bpe: Tokenizer, llama2: Tokenizer, byte_level: Tokenizer) -> None:
    assert [tokenizer.own_patterns for tokenizer in (bpe, llama2, byte_level)] == [[], [], []]


def test_the_patterns_of_others_are_taken_whole(bpe: Tokenizer, tmp_path: Path) -> None:
    llama3 = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    assert with_pattern(bpe, llama3, tmp_path / "tokenizer").own_patterns == []
    for pattern in KNOWN:  # each is one that the library takes
        pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str("a word, 12\n\n  more")


def test_an_own_pattern_is_not_for_kitoken_which_would_abort(runaway: Tokenizer) -> None:
    encoder = FastEncoder(runaway)
    assert encoder.engine == "tokenizers"
    assert "nobody knows" in encoder.reason


def test_a_million_blanks_do_not_abort(byte_level: Tokenizer) -> None:
    encoder = FastEncoder(byte_level)
    assert encoder.engine == "kitoken"
    [ids] = encoder.encode_batch([" " * 1_100_000 + "x"])
    assert byte_level.decode(ids) == " " * 1_100_000 + "x"
