"""The tokenizer report: right numbers, honest cuts, a page that no tokenizer's pieces can break."""

import html
import json
import re

import numpy as np
import pytest

from mini_llm.tokenizer.report import BOUNDARY, load_subjects, measure, pieces
from mini_llm.tokenizer.report_page import page
from mini_llm.tokenizer.samples import SAMPLES
from mini_llm.tokenizer.tokenizer import Tokenizer


def test_numbers_are_those_of_the_tokenizer(bpe: Tokenizer, sotu_texts: list[str]) -> None:
    (subject,) = load_subjects([bpe.folder])
    texts = [sotu_texts[0], "naïve 🔥\n", ""]
    found = measure(subject, texts)
    ids = [i for text in texts for i in bpe.encode(text)]
    assert (found.algorithm, found.vocab_size, found.tokens) == ("BPE", 3000, len(ids))
    assert found.bytes_per_token == sum(len(text.encode()) for text in texts) / len(ids)
    assert found.tokens_per_word == len(ids) / sum(len(text.split()) for text in texts)
    assert found.byte_share == sum(8 <= i < 264 for i in ids) / len(ids)  # ids 8 to 263 are the bytes
    assert found.unused_share == pytest.approx(1 - len({i for i in ids if i >= 264}) / (3000 - 264))
    assert (found.round_trips, found.texts) == (2, 2)
    assert found.encode_mb_per_second > 0
    assert set(found.bytes_per_token_by_kind) == set(SAMPLES)


def test_what_is_lost_is_counted(bpe: Tokenizer, tmp_path) -> None:  # type: ignore[no-untyped-def]
    spec = json.loads((bpe.folder / "tokenizer.json").read_text())
    spec["normalizer"]["normalizers"].append({"type": "Lowercase"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    found = measure(load_subjects([tmp_path])[0], ["small", "Capital"])
    assert (found.round_trips, found.texts) == (1, 2)


@pytest.mark.parametrize("text", list(SAMPLES.values()), ids=list(SAMPLES))
def test_cuts_joined_are_the_text(text: str, bpe: Tokenizer, unigram: Tokenizer, byte_level: Tokenizer) -> None:
    for tokenizer in (bpe, unigram, byte_level):
        (subject,) = load_subjects([tokenizer.folder])
        cut = pieces(subject, text)
        assert len(cut) == len(tokenizer.encode(text))
        data = b"".join(
            bytes.fromhex(part[1:-1]) if re.fullmatch("⟨[0-9A-F]{2}⟩", part) else part.encode()
            for part in re.findall("⟨[0-9A-F]{2}⟩|.", "".join(cut))
        )
        # A space that shares a token with half a character is in hexadecimal.
        assert data.decode().replace(" ", "·") == text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")


def test_the_page_shows_every_cut_in_colour_and_in_plain_text(bpe: Tokenizer, unigram: Tokenizer) -> None:
    subjects = load_subjects([bpe.folder, unigram.folder])
    text = page(subjects, [measure(s, ["some text"]) for s in subjects], "a|b<c")
    assert "Measured on a\\|b&lt;c;" in text
    for subject in subjects:
        for sample in SAMPLES.values():
            cut = pieces(subject, sample)
            assert BOUNDARY.join(cut) in text
            coloured = [html.unescape(found) for found in re.findall("<code[^>]*>([^<]*)</code>", text)]
            assert any(coloured[n : n + len(cut)] == cut for n in range(len(coloured)))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") - line.count("\\|") for line in table} == {4}


def test_pieces_cannot_break_out_of_the_page(byte_level: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLES, "prose", "<script>alert(1)</script> *bold* `code` | [a](b)")
    subjects = load_subjects([byte_level.folder])
    text = page(subjects, [measure(s, ["text"]) for s in subjects], "x")
    coloured = next(line for line in text.splitlines() if line.startswith("<p>"))
    shown = re.sub(r"</?(p|b|br|code|wbr)\b[^>]*>", "", coloured)
    assert not re.search(r"[<>*`|\[\]]", shown)
    assert "&#60;" in shown


def test_the_command_line(bpe: Tokenizer, unigram: Tokenizer, byte_level: Tokenizer, run_cli, tmp_path) -> None:  # type: ignore[no-untyped-def]
    folders = [bpe.folder, unigram.folder, byte_level.folder]
    (tmp_path / "text.txt").write_text("The people of these States.\n" * 50)
    written = run_cli(
        "tokenizer", "report", *folders, "--text", tmp_path / "text.txt", "--out", tmp_path / "r.md", "--json"
    )
    assert written.returncode == 0, written.stderr
    found = json.loads(written.stdout)
    assert [t["algorithm"] for t in found["tokenizers"]] == ["BPE", "Unigram", "BPE"]
    assert np.isclose(found["tokenizers"][0]["round_trips"], 1)
    assert (tmp_path / "r.md").read_text().startswith("# Tokenizers side by side\n")
    shown = run_cli("tokenizer", "report", bpe.folder)
    assert shown.returncode == 0, shown.stderr
    assert "bytes per token" in shown.stdout
    assert BOUNDARY in shown.stdout
    assert "\x1b" not in shown.stdout
    coloured = run_cli(
        "tokenizer", "report", bpe.folder, env={"FORCE_COLOR": "1", "NO_COLOR": "", "TERM": "xterm-256color"}
    )
    assert "\x1b[" in coloured.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["none"], 1, "no tokenizer folder at none"),
        (["DIR", "--text", "none.txt"], 1, "none.txt"),
        (["DIR", "--text", "empty.txt"], 1, "empty"),
        (["DIR", "--out", "DIR/tokenizer.json/x.md"], 1, "cannot write"),
        (["DIR", "--out", "DIR/tokenizer.json"], 1, "Mini-LLM did not make it: not replaced"),
        ([], 2, "Missing argument"),
    ],
)
def test_bad_input_is_named(words, code, message, bpe: Tokenizer, run_cli, tmp_path, repository) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "empty.txt").write_text("")
    words = [word.replace("DIR", str(bpe.folder)) for word in words]
    result = run_cli("tokenizer", "report", *words, cwd=tmp_path, env={"PYTHONPATH": str(repository)})
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
