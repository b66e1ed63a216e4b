"""A large corpus is done in parts: any number of processes gives the same bytes, and what is done is not done again."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mini_llm.data import parallel, parts
from mini_llm.data import prepare as prepare_module
from mini_llm.data.fill import fill
from mini_llm.data.prepare import prepare
from mini_llm.data.sources import Corpus
from mini_llm.data.store_writer import TokenStoreWriter
from mini_llm.data.token_store import TokenStore
from mini_llm.errors import UserError
from mini_llm.tokenizer.fast import DifferentIds, FastEncoder
from mini_llm.tokenizer.tokenizer import Tokenizer

TEXTS = [f"document {i} é 漢 </s> <s>\n\tend\n" * (1 + i % 7) for i in range(600)]


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Return a folder with files of every kind of part: small ones, lines of a large one, a packed one, none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl(TEXTS[:200]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(TEXTS[200:400])))
    for i, text in enumerate(TEXTS[400:420]):
        (folder / f"c{i:02d}.txt").write_text(text, encoding="utf-8")
    pq.write_table(pa.table({"text": TEXTS[420:]}), folder / "d.parquet")
    (folder / "e.jsonl").write_bytes(b'{"text": null}\n\n{"text": "  "}\n')
    return folder


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 2,000 bytes be a part, and every corpus of more a large one."""
    for module in (parts, prepare_module):
        monkeypatch.setattr(module, "SMALLEST", 2000)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def ids(store: TokenStore, side: str) -> np.ndarray:
    return store.split(side).read(0, store.split(side).n_tokens)


def test_parts_give_the_tokens_of_one_pass_for_any_number_of_processes(
    tmp_path: Path, corpus: Path, byte_tokenizer: Path
) -> None:
    stores = [prepare([corpus], byte_tokenizer, tmp_path / f"{n}", val_fraction=0.2, workers=n) for n in (1, 3)]
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    assert len(stores[0].manifest.splits["train"].shards) > 8
    stores[0].verify()
    tokenizer = Tokenizer.load(byte_tokenizer)
    with TokenStoreWriter.create(tmp_path / "whole", tokenizer) as writer:
        one_pass = Corpus([corpus])
        fill(writer, tokenizer, FastEncoder(tokenizer), one_pass.pieces(), 0.2)
    whole = TokenStore.open(tmp_path / "whole")
    for side in ("train", "val"):
        assert np.array_equal(ids(stores[0], side), ids(whole, side))
        assert np.array_equal(stores[0].split(side).document_starts(), whole.split(side).document_starts())
        assert stores[0].manifest.splits[side].text_bytes == whole.manifest.splits[side].text_bytes
    reading = stores[0].manifest.reading
    assert reading is not None
    assert (reading.files, reading.documents, reading.left_out) == (
        one_pass.reading.files,
        one_pass.reading.documents,
        one_pass.reading.left_out,
    )
    assert not list(tmp_path.glob(".*"))


def test_the_largest_parts_are_given_first_and_the_bytes_are_those_of_the_files_order(
    tmp_path: Path, corpus: Path, byte_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (corpus / "b.jsonl.gz").unlink()  # unpacked part by part, in order
    given: list[parts.Part] = []
    do_all = parallel._Crew.do_all

    def noting(crew: Any, todo: Any, *rest: Any) -> Any:
        given[:] = todo
        return do_all(crew, iter(given), *rest)

    monkeypatch.setattr(parallel._Crew, "do_all", noting)
    prepare([corpus], byte_tokenizer, tmp_path / "largest-first", workers=2)
    weights = [part.weight for part in given]
    assert weights == sorted(weights, reverse=True)
    assert [part.number for part in given] != sorted(part.number for part in given)
    monkeypatch.setattr(parallel, "only_named", lambda _: False)
    prepare([corpus], byte_tokenizer, tmp_path / "in-order", workers=1)
    assert [part.number for part in given] == sorted(part.number for part in given)
    assert contents(tmp_path / "largest-first") == contents(tmp_path / "in-order")


def test_why_it_is_slow_is_told_once(
    tmp_path: Path, corpus: Path, byte_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "kitoken.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(packages))
    prepare([corpus], byte_tokenizer, tmp_path / "out", workers=2)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("several times slower than kitoken would: it is not installed") == 1


def test_a_corpus_of_one_document_still_gets_both_splits(tmp_path: Path, byte_tokenizer: Path) -> None:
    (tmp_path / "book.txt").write_text("0123456789" * 1000)
    store = prepare([tmp_path / "book.txt"], byte_tokenizer, tmp_path / "out", val_fraction=0.1)
    assert (store.split("train").n_tokens, store.split("val").n_tokens) == (9002, 1000)
    store.verify()


@pytest.mark.parametrize("packing", ["", ".gz"])
def test_a_bad_line_far_inside_is_named_and_only_its_part_is_done_again(
    tmp_path: Path, byte_tokenizer: Path, packing: str
) -> None:
    lines = jsonl(TEXTS).splitlines(keepends=True)
    lines[450] = b'{"body": 1}\n'
    path = tmp_path / f"a.jsonl{packing}"
    path.write_bytes(gzip.compress(b"".join(lines)) if packing else b"".join(lines))
    (tmp_path / "0.txt").write_text("a first file " * 300)
    with pytest.raises(UserError, match=r"a\.jsonl(\.gz)?:451: no key 'text'") as caught:
        prepare([tmp_path / "0.txt", path], byte_tokenizer, tmp_path / "out", workers=1)
    assert "the same command goes on from there" in str(caught.value)
    assert not (tmp_path / "out").exists()
    done = tmp_path / ".out.parts" / "part-00000" / "part.json"
    before = done.stat().st_mtime_ns
    lines[450] = b'{"text": 1}\n'
    path.write_bytes(gzip.compress(b"".join(lines)) if packing else b"".join(lines))
    with pytest.raises(UserError, match=r"451: 'text' holds a number"):
        prepare([tmp_path / "0.txt", path], byte_tokenizer, tmp_path / "out", workers=1)
    assert done.stat().st_mtime_ns == before
    lines[450] = jsonl(["mended"])
    path.write_bytes(gzip.compress(b"".join(lines)) if packing else b"".join(lines))
    mended = prepare([tmp_path / "0.txt", path], byte_tokenizer, tmp_path / "out")
    prepare([tmp_path / "0.txt", path], byte_tokenizer, tmp_path / "fresh")
    mended.verify()
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    assert not list(tmp_path.glob(".*"))


def test_another_setting_or_a_damaged_part_is_not_taken(tmp_path: Path, corpus: Path, byte_tokenizer: Path) -> None:
    (corpus / "z.jsonl").write_bytes(b"no json\n")
    for fraction in (0.1, 0.3):
        with pytest.raises(UserError, match=r"z\.jsonl:1"):
            prepare([corpus], byte_tokenizer, tmp_path / "out", val_fraction=fraction, workers=1)
    shard = sorted((tmp_path / ".out.parts").glob("part-*/train-00000.bin"))[0]
    os.truncate(shard, shard.stat().st_size - 2)
    (corpus / "z.jsonl").unlink()
    prepare([corpus], byte_tokenizer, tmp_path / "out", val_fraction=0.3).verify()
    prepare([corpus], byte_tokenizer, tmp_path / "fresh", val_fraction=0.3)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_what_is_not_ours_is_not_deleted(tmp_path: Path, corpus: Path, byte_tokenizer: Path) -> None:
    (tmp_path / ".out.parts").mkdir()
    (tmp_path / ".out.parts" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        prepare([corpus], byte_tokenizer, tmp_path / "out")
    assert (tmp_path / ".out.parts" / "thesis.tex").read_text() == "mine"


def test_where_the_faster_library_differs_all_is_done_again_by_the_other(
    tmp_path: Path, corpus: Path, byte_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fill_in_parts(writer: Any, files: Any, work: Any, *rest: Any) -> None:
        asked.append(work.proved)
        if work.proved:
            raise DifferentIds
        real(writer, files, work, *rest)

    real = prepare_module.fill_in_parts
    monkeypatch.setattr(prepare_module, "fill_in_parts", fill_in_parts)
    prepare([corpus], byte_tokenizer, tmp_path / "out").verify()
    assert asked == [True, False]
    monkeypatch.undo()
    monkeypatch.setattr(parts, "SMALLEST", 2000)
    monkeypatch.setattr(prepare_module, "SMALLEST", 2000)
    prepare([corpus], byte_tokenizer, tmp_path / "fast")
    assert contents(tmp_path / "out") == contents(tmp_path / "fast")


SMALL_PARTS = """
from mini_llm.cli import main
from mini_llm.data import parts, prepare
parts.SMALLEST = prepare.SMALLEST = 20_000
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, byte_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(TEXTS * 20))
    command = [
        sys.executable,
        "-c",
        SMALL_PARTS,
        "prepare",
        path,
        "--tokenizer",
        byte_tokenizer,
        "--workers",
        2,
        "--out",
    ]
    process = subprocess.Popen([*map(str, command), str(tmp_path / "out")], stderr=subprocess.PIPE, text=True)
    while len(list(tmp_path.glob(".out.parts/part-*/part.json"))) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == (143 if number == signal.SIGTERM else -9), said
    assert number != signal.SIGTERM or "the same command goes on from there" in said
    assert not (tmp_path / "out").exists()
    first = min(tmp_path.glob(".out.parts/part-*/part.json"))
    before = first.stat().st_mtime_ns
    held = first.open()  # the file stays readable when its folder has gone
    for name in ("out", "fresh"):
        run = subprocess.run([*map(str, command), str(tmp_path / name)], capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr
    assert os.fstat(held.fileno()).st_mtime_ns == before
    assert os.fstat(held.fileno()).st_nlink == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    assert not list(tmp_path.glob(".*"))


def test_a_worker_that_dies_is_told(
    tmp_path: Path, corpus: Path, byte_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel.sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="ended with code 1"):
        prepare([corpus], byte_tokenizer, tmp_path / "out")
    assert not list(tmp_path.glob(".*"))
