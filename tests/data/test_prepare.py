"""Text becomes the same store whatever the order of work, with both splits, whole or not at all."""

import errno
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mini_llm.data import fill, formats
from mini_llm.data.prepare import prepare
from mini_llm.data.store_writer import TokenStoreWriter
from mini_llm.data.token_store import TokenStore
from mini_llm.errors import UsageError, UserError
from mini_llm.tokenizer.tokenizer import Tokenizer

BOS, EOS = 256, 257  # of the byte tokenizer


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def documents(store: TokenStore, name: str) -> list[str]:
    """Return the texts of a split, checking that each stands between bos and eos."""
    if name not in store.manifest.splits:
        return []
    split = store.split(name)  # type: ignore[arg-type]
    tokenizer = Tokenizer.load(store.tokenizer_folder)
    starts = [*split.document_starts().tolist(), split.n_tokens]
    texts = []
    for start, end in itertools.pairwise(starts):
        ids = split.read(start, end - start).tolist()
        assert (ids[0], ids[-1]) == (BOS, EOS)
        assert not {BOS, EOS} & set(ids[1:-1])
        texts.append(tokenizer.decode(ids))
    return texts


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


TEXTS = [f"document {i} é 漢 </s> <s>\n\tend\n" for i in range(300)]


def test_every_document_is_in_the_store_once_and_exactly(tmp_path: Path, byte_tokenizer: Path) -> None:
    store = prepare([write_jsonl(tmp_path / "a.jsonl", TEXTS)], byte_tokenizer, tmp_path / "out", val_fraction=0.2)
    train, val = documents(store, "train"), documents(store, "val")
    assert 30 < len(val) < 90
    assert sorted(train + val) == sorted(TEXTS)
    assert train == [text for text in TEXTS if text in set(train)]  # in the order of the source
    for name, texts in (("train", train), ("val", val)):
        assert store.manifest.splits[name].text_bytes == sum(len(t.encode()) for t in texts)  # type: ignore[index]
    assert store.manifest.tokenizer_hash == Tokenizer.load(byte_tokenizer).fingerprint
    assert [source.path for source in store.manifest.sources] == [str(tmp_path / "a.jsonl")]
    store.verify()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_file_name_that_is_not_utf8_is_recorded(tmp_path: Path, byte_tokenizer: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path / "caf") + b"\xe9.txt"))
    path.write_text("some text")
    store = prepare([path], byte_tokenizer, tmp_path / "out")
    assert [source.path for source in store.manifest.sources] == [str(tmp_path / r"caf\xe9.txt")]


def test_the_split_depends_on_the_text_alone(tmp_path: Path, byte_tokenizer: Path) -> None:
    shuffled = write_jsonl(tmp_path / "b.jsonl", TEXTS[::-1] + TEXTS[:50])
    first = prepare([write_jsonl(tmp_path / "a.jsonl", TEXTS)], byte_tokenizer, tmp_path / "1", val_fraction=0.2)
    again = prepare([shuffled], byte_tokenizer, tmp_path / "2", val_fraction=0.2)
    assert set(documents(first, "val")) == set(documents(again, "val"))
    assert not set(documents(again, "train")) & set(documents(again, "val"))
    more = prepare([shuffled], byte_tokenizer, tmp_path / "3", val_fraction=0.4)
    assert set(documents(first, "val")) < set(documents(more, "val"))


def test_a_document_is_whole_and_on_one_side_however_it_is_cut_and_batched(
    tmp_path: Path, byte_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [" ".join(f"{i}-{j}" for j in range(40)) for i in range(60)]
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    monkeypatch.setattr(formats, "PIECE_CHARS", 50)
    monkeypatch.setattr(fill, "BATCH_CHARS", 120)
    store = prepare([path], byte_tokenizer, tmp_path / "out", val_fraction=0.3)
    assert sorted(documents(store, "train") + documents(store, "val")) == sorted(texts)
    assert store.manifest.splits["val"].documents > 5


def test_one_text_file_gets_both_splits(
    tmp_path: Path, byte_tokenizer: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "input.txt").write_text("0123456789" * 100)
    store = prepare([tmp_path / "input.txt"], byte_tokenizer, tmp_path / "out", val_fraction=0.1)
    train, val = store.split("train"), store.split("val")
    assert (train.n_tokens, val.n_tokens) == (902, 100)  # 1000 bytes, bos and eos
    assert val.read(0, 100).tolist()[-1] == EOS
    assert [store.manifest.splits[name].text_bytes for name in ("train", "val")] == [901, 99]  # type: ignore[index]
    said = capfd.readouterr().err
    assert "the last 10.0% of the tokens" in said
    assert "1 document, 902 train tokens, 100 val tokens" in said
    store.verify()


def test_no_split_is_held_out_where_none_is_wanted(tmp_path: Path, byte_tokenizer: Path) -> None:
    store = prepare([write_jsonl(tmp_path / "a.jsonl", TEXTS)], byte_tokenizer, tmp_path / "out", val_fraction=0)
    assert documents(store, "train") == TEXTS
    assert list(store.manifest.splits) == ["train"]
    assert not list((tmp_path / "out").glob("val*"))


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_that_is_none_is_refused(tmp_path: Path, byte_tokenizer: Path, fraction: float) -> None:
    with pytest.raises(UsageError, match="val_fraction"):
        prepare([tmp_path], byte_tokenizer, tmp_path / "out", val_fraction=fraction)


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        ({"bos_token": "<s>", "eos_token": "<s>"}, [BOS, 97, BOS, 98]),  # GPT-2 has one token for both
        ({"eos_token": "</s>"}, [97, EOS, 98, EOS]),
        ({"bos_token": "<s>"}, [BOS, 97, BOS, 98]),
    ],
)
def test_documents_are_parted_by_what_the_tokenizer_has(
    tmp_path: Path, byte_tokenizer: Path, names: dict[str, str], ids: list[int]
) -> None:
    folder = tmp_path / "tokenizer"
    Tokenizer.load(byte_tokenizer).copy_to(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    letters = {97: Tokenizer.load(folder).encode("a")[0], 98: Tokenizer.load(folder).encode("b")[0]}
    store = prepare([write_jsonl(tmp_path / "a.jsonl", ["a", "b"])], folder, tmp_path / "out", val_fraction=0)
    assert store.split("train").read(0, len(ids)).tolist() == [letters.get(i, i) for i in ids]


def test_a_tokenizer_without_any_mark_is_refused(tmp_path: Path, byte_tokenizer: Path) -> None:
    folder = tmp_path / "tokenizer"
    Tokenizer.load(byte_tokenizer).copy_to(folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(UserError, match="neither a bos_token nor an eos_token"):
        prepare([write_jsonl(tmp_path / "a.jsonl", ["a"])], folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", ['{"text": 3}\n', '{"body": "x"}\n', '{"text": "half'])
def test_a_bad_line_leaves_nothing_behind(tmp_path: Path, byte_tokenizer: Path, bad: str) -> None:
    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "in" / "a.jsonl", TEXTS)
    (tmp_path / "in" / "b.jsonl").write_text(bad)
    with pytest.raises(UserError, match=r"b\.jsonl:1"):
        prepare([tmp_path / "in"], byte_tokenizer, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_full_disk_says_what_is_needed_and_leaves_nothing(
    tmp_path: Path, byte_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def append(*_args: Any, **_options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(TokenStoreWriter, "append", append)
    with pytest.raises(UserError, match="disk is full") as caught:
        prepare([write_jsonl(tmp_path / "a.jsonl", TEXTS)], byte_tokenizer, tmp_path / "out")
    assert re.search(r"needs about .+[GM]B and .+[GM]B is free", str(caught.value))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_an_out_that_cannot_be_made_is_said(tmp_path: Path, byte_tokenizer: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(UserError, match="cannot write"):
        prepare([path], byte_tokenizer, path / "out")


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_gives_the_same_bytes_for_any_number_of_workers(
    tmp_path: Path, byte_tokenizer: Path, sotu_texts: list[str], run_cli: Any
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", sotu_texts[:40])
    stores = []
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        args = [path, "--tokenizer", byte_tokenizer, "--out", out, "--val-fraction", 0.1, "--workers", workers]
        run = run_cli("prepare", *args)
        assert run.returncode == 0, run.stderr
        assert run.stdout == ""
        assert "40 documents" in run.stderr
        assert "MB/s" in run.stderr
        assert f"data_dir={out}" in run.stderr
        stores.append(contents(out))
    assert stores[0] == stores[1]


@pytest.mark.parametrize(("documents", "short"), [(3, True), (300, False)])
def test_a_held_out_split_too_short_for_the_suggested_config_is_told(
    tmp_path: Path, byte_tokenizer: Path, run_cli: Any, documents: int, short: bool
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS[:documents])
    run = run_cli("prepare", path, "--tokenizer", byte_tokenizer, "--out", tmp_path / "out", "--val-fraction", 0.2)
    assert run.returncode == 0, run.stderr
    assert ("raise --val-fraction or prepare more text" in run.stderr) is short


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["missing.txt"], 1, ["no file, folder or glob 'missing.txt'"]),
        (["photo.png"], 1, ["unknown format '.png'", "supported"]),
        (["empty.txt"], 1, ["no text"]),
        (["good.jsonl", "--text-column", "body"], 1, ["good.jsonl:1", "no key 'body'"]),
        (["good.jsonl", "--tokenizer", "no-tokenizer"], 1, ["no-tokenizer", "mini-llm tokenizer train"]),
        (["good.jsonl", "--val-fraction", "0.9"], 2, ["--val-fraction"]),
        (["good.jsonl", "--workers", "0"], 2, ["--workers"]),
        ([], 2, ["SOURCES"]),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(
    tmp_path: Path, byte_tokenizer: Path, run_cli: Any, args: list[str], code: int, words: list[str]
) -> None:
    write_jsonl(tmp_path / "good.jsonl", TEXTS)
    for name in ("photo.png", "empty.txt"):
        (tmp_path / name).write_bytes(b"")
    rest = [] if "--tokenizer" in args else ["--tokenizer", byte_tokenizer]
    run = run_cli("prepare", *args, *rest, "--out", "out", cwd=tmp_path)
    assert run.returncode == code, run.stderr
    assert all(word in run.stderr for word in words), run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "out").exists()


SLOW = """
import time
from mini_llm.cli import main
from mini_llm.data import fill
encode_batch = fill.FastEncoder.encode_batch
fill.FastEncoder.encode_batch = lambda self, texts: time.sleep(0.1) or encode_batch(self, texts)
fill.BATCH_CHARS = 1
main()
"""


def start_slow_prepare(tmp_path: Path, tokenizer: Path) -> subprocess.Popen[str]:
    """Start a command that takes half a minute, and wait until it has begun to write."""
    path = write_jsonl(tmp_path / "slow.jsonl", TEXTS)
    args = ["prepare", path, "--tokenizer", tokenizer, "--out", tmp_path / "out"]
    process = subprocess.Popen([sys.executable, "-c", SLOW, *map(str, args)], stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(".out.tmp-*/train.idx")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_and_the_old_store_stays(
    tmp_path: Path, byte_tokenizer: Path, number: signal.Signals, code: int
) -> None:
    prepare([write_jsonl(tmp_path / "old.jsonl", TEXTS)], byte_tokenizer, tmp_path / "out")
    before = contents(tmp_path / "out")
    process = start_slow_prepare(tmp_path, byte_tokenizer)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == code, stderr
    assert "as it was before" in stderr
    assert "Traceback" not in stderr
    assert not list(tmp_path.glob(".out*"))
    assert contents(tmp_path / "out") == before


def test_what_kill_9_leaves_is_no_store_and_the_next_run_removes_it(tmp_path: Path, byte_tokenizer: Path) -> None:
    path = write_jsonl(tmp_path / "good.jsonl", TEXTS)
    process = start_slow_prepare(tmp_path, byte_tokenizer)
    live = list(tmp_path.glob(".out.tmp-*"))
    prepare([path], byte_tokenizer, tmp_path / "out")
    assert list(tmp_path.glob(".out.tmp-*")) == live  # another run's folder is left alone while it lives
    process.kill()
    process.communicate(timeout=30)
    with pytest.raises(UserError):
        TokenStore.open(live[0])
    prepare([path], byte_tokenizer, tmp_path / "out").verify()
    assert not list(tmp_path.glob(".out*"))
