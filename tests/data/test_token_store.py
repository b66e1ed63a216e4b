"""What is written is read back from anywhere, in bounded memory; a store that is not whole is refused by name."""

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_llm import log
from mini_llm.data.store_writer import TokenStoreWriter
from mini_llm.data.token_store import Source, TokenStore
from mini_llm.errors import UserError


class AnyTokenizer:
    """What a writer needs of a tokenizer; each token stands for one byte."""

    fingerprint = "sha256:" + "0" * 64

    def __init__(self, vocab_size: int = 300) -> None:
        self.vocab_size = vocab_size

    def copy_to(self, folder: Path) -> None:
        folder.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_text("{}")

    def token_bytes(self) -> np.ndarray:
        return np.ones(self.vocab_size, dtype=np.int64)


def write(out: Path, documents: list[list[int]], vocab_size: int = 300, shard_bytes: int = 64) -> TokenStore:
    """Write a store whose every third document is held out."""
    tokenizer: Any = AnyTokenizer(vocab_size)
    sources = [Source(path="a.txt", bytes=1)]
    with TokenStoreWriter.create(out, tokenizer, sources=sources, shard_bytes=shard_bytes) as writer:
        for index, ids in enumerate(documents):
            writer.append("val" if index % 3 == 2 else "train", ids, text_bytes=len(ids))
    return TokenStore.open(out)


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return write(tmp_path / "store", [[i % 300 for i in range(n)] for n in range(20, 60)])


@settings(deadline=None, max_examples=40)  # each waits for the disk
@given(
    documents=st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=30), min_size=3, max_size=12),
    shard_bytes=st.sampled_from([10, 50, 10**6]),
    start=st.integers(0, 360),
    count=st.integers(0, 360),
)
def test_shards_read_equal_shards_written(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], shard_bytes: int, start: int, count: int
) -> None:
    store = write(tmp_path_factory.mktemp("s") / "store", documents, shard_bytes=shard_bytes)
    sides = {"val": documents[2::3], "train": [d for i, d in enumerate(documents) if i % 3 != 2]}
    store.verify()
    for name, side in sides.items():
        flat = [token for document in side for token in document]
        split = store.split(name)  # type: ignore[arg-type]
        assert (split.n_tokens, split.n_documents) == (len(flat), len(side))
        assert split.document_starts().tolist() == [sum(map(len, side[:i])) for i in range(len(side))]
        first, n = start % len(flat), min(count, len(flat) - start % len(flat))
        window = split.read(first, n)
        assert window.dtype == np.int64
        assert window.tolist() == flat[first : first + n]
        assert store.manifest.splits[name].text_bytes == len(flat)  # type: ignore[index]
        assert all(s.bytes <= shard_bytes for s in store.manifest.splits[name].shards)  # type: ignore[index]


def test_the_files_are_what_the_format_says(tmp_path: Path) -> None:
    store = write(tmp_path / "store", [[1, 258], [3], [4, 5]])
    names = ["manifest.json", "tokenizer", "train-00000.bin", "train.idx", "val-00000.bin", "val.idx"]
    assert sorted(path.name for path in store.folder.iterdir()) == names
    assert (store.folder / "train-00000.bin").read_bytes() == bytes([1, 0, 2, 1, 3, 0])
    assert (store.folder / "train.idx").read_bytes() == (0).to_bytes(8, "little") + (2).to_bytes(8, "little")
    assert store.manifest.dtype == "uint16"
    assert store.tokenizer_folder == store.folder / "tokenizer"
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32"), (128_256, "uint32")])
def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    documents = [[vocab_size - 1, 0, 7], [1], [vocab_size - 1]]
    store = write(tmp_path / "store", documents, vocab_size=vocab_size)
    assert store.manifest.dtype == dtype
    assert store.split("train").read(0, 4).tolist() == [vocab_size - 1, 0, 7, 1]
    assert store.split("val").read(0, 1).tolist() == [vocab_size - 1]


def test_pieces_make_one_document(tmp_path: Path) -> None:
    tokenizer: Any = AnyTokenizer()
    with TokenStoreWriter.create(tmp_path / "store", tokenizer) as writer:
        writer.append("train", [1, 2], text_bytes=2)
        writer.append("train", [3], text_bytes=1, new_document=False)
        writer.append("train", [4], text_bytes=1)
    split = TokenStore.open(tmp_path / "store").split("train")
    assert split.document_starts().tolist() == [0, 3]


@pytest.mark.parametrize("side", ["train", "val"])
@pytest.mark.parametrize("shard_bytes", [8, 50, 10**6])
@pytest.mark.parametrize("fraction", [0.0001, 0.1, 0.5])
def test_the_tail_is_held_out_where_all_documents_fell_on_one_side(
    tmp_path: Path, side: str, shard_bytes: int, fraction: float
) -> None:
    documents = [list(range(10 * n, 10 * n + 10)) for n in range(10)]
    tokenizer: Any = AnyTokenizer()
    with TokenStoreWriter.create(tmp_path / "store", tokenizer, shard_bytes=shard_bytes) as writer:
        for ids in documents:
            writer.append(side, ids, text_bytes=10)
        writer.hold_out_tail(fraction)
    store = TokenStore.open(tmp_path / "store")
    store.verify()
    train, val = store.split("train"), store.split("val")
    held = max(1, round(100 * fraction))
    assert train.read(0, train.n_tokens).tolist() == list(range(100 - held))
    assert val.read(0, val.n_tokens).tolist() == list(range(100 - held, 100))
    assert train.document_starts().tolist() == [s for s in range(0, 100, 10) if s < 100 - held]
    assert val.document_starts().tolist() == sorted({0} | {s - 100 + held for s in range(0, 100, 10) if s > 100 - held})
    assert [store.manifest.splits[name].text_bytes for name in ("train", "val")] == [100 - held, held]  # type: ignore[index]


# --- size ------------------------------------------------------------------------------------------------------------


def sparse_terabyte(folder: Path) -> Path:
    """Make 1 TB of token 0 in two shards that take no room on the disk, with a 7 in the last place."""
    folder.mkdir()
    shards = [{"name": f"train-{i:05d}.bin", "tokens": 2**38, "bytes": 2**39, "sha256": "0" * 64} for i in range(2)]
    for shard in shards:
        with (folder / str(shard["name"])).open("wb") as file:
            file.truncate(2**39)
    with (folder / "train-00001.bin").open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(bytes([7, 0]))
    (folder / "train.idx").write_bytes(bytes(8))
    split = {"documents": 1, "tokens": 2**39, "text_bytes": 0, "index_sha256": "0" * 64, "shards": shards}
    manifest = {"format_version": 1, "dtype": "uint16", "vocab_size": 32000, "tokenizer_hash": "sha256:0"}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"splits": {"train": split}, "sources": []}))
    return folder


def test_a_terabyte_opens_at_once_and_is_read_anywhere_in_the_same_memory(tmp_path: Path) -> None:
    try:
        folder = sparse_terabyte(tmp_path / "store")
    except OSError:
        pytest.skip("this file system has no sparse files of 512 GB")
    split = TokenStore.open(folder).split("train")
    assert split.read(2**39 - 3, 3).tolist() == [0, 0, 7]
    assert split.read(2**38 - 100, 200).tolist() == [0] * 200  # across the shards
    random_places = random.Random(0)
    memory = psutil.Process().memory_info
    before = memory().rss
    for _ in range(10_000):
        assert not split.read(random_places.randrange(2**39 - 8192), 8192).any()  # 160 MB in all
    assert memory().rss - before < 30e6


# --- whole or not at all ---------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_store_and_nothing_else(store: TokenStore) -> None:
    before = {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()}
    tokenizer: Any = AnyTokenizer()
    for problem in (RuntimeError, KeyboardInterrupt, OSError):
        with suppress(problem), TokenStoreWriter.create(store.folder, tokenizer) as writer:
            writer.append("train", [1] * 1000, text_bytes=1)
            raise problem
    assert {path: path.read_bytes() for path in store.folder.parent.rglob("*") if path.is_file()} == before


def test_a_new_store_replaces_the_old_one_whole(store: TokenStore) -> None:
    write(store.folder, [[1], [2], [3]]).verify()
    assert not (store.folder / "train-00001.bin").exists()


@pytest.mark.parametrize(
    ("name", "text"), [("photo.jpg", "{}"), ("manifest.json", "{}"), ("manifest.json", "[" * 100_000)]
)
def test_only_a_token_store_is_replaced(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(text)
    for out in (tmp_path / "out", tmp_path / "out" / name):
        with pytest.raises(UserError, match="not replaced"):
            write(out, [[1]])
    assert (tmp_path / "out" / name).read_text() == text


def test_an_empty_folder_and_a_link_to_another_disk_are_filled(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk", target_is_directory=True)
    write(tmp_path / "link", [[1]])
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "manifest.json").is_file()


# --- bad stores ------------------------------------------------------------------------------------------------------


def failure(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        TokenStore.open(folder)
    assert "mini-llm prepare" in str(caught.value)
    return caught.value.message


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00001.bin", "val-00000.bin", "train.idx", "val.idx"])
def test_missing_cut_and_grown_files_are_named(store: TokenStore, name: str) -> None:
    path = store.folder / name
    whole = path.read_bytes()
    for data in (whole[:-1], b"", whole + b"x"):
        path.write_bytes(data)
        assert f"{path} has {len(data):,} bytes instead of {len(whole):,}" in failure(store.folder)
    path.unlink()
    assert f"{path} is missing" in failure(store.folder)


def test_what_is_no_store_is_said(tmp_path: Path) -> None:
    assert "no such folder" in failure(tmp_path / "nowhere")
    assert "no manifest.json" in failure(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    assert "not a token store" in failure(tmp_path / "a.txt")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "{}", "\xff", "[" * 100_000])
def test_a_manifest_that_is_not_one_is_named(store: TokenStore, text: str) -> None:
    (store.folder / "manifest.json").write_bytes(text.encode("latin-1"))
    assert "manifest.json is not the manifest of a token store" in failure(store.folder)


def shard(values: dict[str, Any], **changes: Any) -> None:
    values["splits"]["train"]["shards"][0] |= changes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(format_version=2), ["format version 2", "reads version 1"]),
        (lambda m: m.update(format_version="1"), ["format version '1'"]),
        (lambda m: m.update(dtype="float32"), ["dtype", "uint16"]),
        (lambda m: m.update(dtype="uint32"), ["train-00000.bin", "uint32"]),
        (lambda m: m.update(extra=1), ["extra"]),
        (lambda m: m.pop("vocab_size"), ["vocab_size"]),
        (lambda m: m.update(vocab_size=-1), ["vocab_size"]),
        (lambda m: m.update(vocab_size=True), ["vocab_size"]),
        (lambda m: m.update(splits=[]), ["splits"]),
        (lambda m: m["splits"].update(test=m["splits"]["val"]), ["splits.test"]),
        (lambda m: m["splits"]["train"].update(tokens=10**6), ["splits.train", "add up"]),
        (lambda m: m["splits"]["train"].update(documents=-1), ["splits.train.documents"]),
        (lambda m: shard(m, tokens=-32), ["splits.train.shards.0.tokens"]),
        (lambda m: shard(m, bytes=1), ["train-00000.bin"]),
        (lambda m: shard(m, name="../../etc/passwd"), ["splits.train.shards.0.name"]),
        (lambda m: shard(m, sha256="none"), ["splits.train.shards.0.sha256"]),
    ],
)
def test_a_tampered_manifest_is_refused(
    store: TokenStore, change: Callable[[dict[str, Any]], None], words: list[str]
) -> None:
    path = store.folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    message = failure(store.folder)
    assert "manifest.json" in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", ["train-00001.bin", "val.idx"])
def test_verify_finds_one_changed_bit(store: TokenStore, name: str) -> None:
    path = store.folder / name
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{name} was changed"):
        TokenStore.open(store.folder).verify()


def test_an_index_is_verified_whenever_it_is_opened(store: TokenStore) -> None:
    path = store.folder / "train.idx"
    whole = path.read_bytes()
    split = store.split("train")
    for data, words in ((whole[:8] + bytes(8) + whole[16:], "was changed"), (whole[:-8], "cannot read")):
        path.write_bytes(data)
        with pytest.raises(UserError, match=rf"{words}.*train\.idx|train\.idx {words}") as caught:
            split.document_starts()
        assert "mini-llm prepare" in str(caught.value)


def test_a_file_that_cannot_be_read_is_named_by_verify(store: TokenStore) -> None:
    (store.folder / "val-00000.bin").unlink()
    (store.folder / "val-00000.bin").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*val-00000\.bin: Is a directory"):
        store.verify()


def test_verify_shows_how_far_it_is(store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, int]] = []

    @contextmanager
    def progress(description: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
        yield lambda done: shown.append((description, total_bytes - done))

    monkeypatch.setattr(log, "byte_progress", progress)
    store.verify()
    left = [bytes_left for _, bytes_left in shown]
    assert left == sorted(left, reverse=True)
    assert (len(left), left[-1]) == (len(list(store.folder.glob("*.bin"))) + 2, 0)
    assert shown[0][0] == f"checking {store.folder}"


def test_ids_outside_the_vocabulary_name_the_shard(store: TokenStore) -> None:
    path = store.folder / "train-00002.bin"
    data = np.fromfile(path, dtype="<u2")
    data[3] = 300
    path.write_bytes(data.tobytes())
    split = TokenStore.open(store.folder).split("train")
    with pytest.raises(UserError, match=r"train-00002\.bin holds token 300 at 3, .* ends at 299"):
        split.read(0, split.n_tokens)


def test_a_shard_cut_after_opening_is_an_error_and_no_crash(store: TokenStore) -> None:
    split = store.split("train")
    os.truncate(store.folder / "train-00000.bin", 10)
    with pytest.raises(UserError, match=r"train-00000\.bin"):
        split.read(0, 20)


def test_a_split_that_is_not_there_is_said(tmp_path: Path) -> None:
    store = write(tmp_path / "store", [[1], [2]])
    with pytest.raises(UserError, match="has no val split") as caught:
        store.split("val")
    assert "--val-fraction" in str(caught.value)
    manifest = json.loads((store.folder / "manifest.json").read_text(encoding="utf-8"))
    del manifest["splits"]["train"]
    (store.folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match="has no train split"):
        _ = TokenStore.open(store.folder).fingerprints


def test_a_manifest_larger_than_memory_is_named(store: TokenStore) -> None:
    os.truncate(store.folder / "manifest.json", 2**40)
    with pytest.raises(UserError, match=r"manifest\.json is damaged: it has 1,099,511,627,776 bytes"):
        TokenStore.open(store.folder)


def test_reading_outside_the_split_is_an_index_error(store: TokenStore) -> None:
    split = store.split("train")
    for start, count in ((-1, 2), (0, split.n_tokens + 1), (split.n_tokens, 1), (0, -1)):
        with pytest.raises(IndexError):
            split.read(start, count)
    assert split.read(split.n_tokens, 0).tolist() == []


@pytest.mark.parametrize("fault", ["changed", "gone", "a pipe", "huge"])
def test_another_tokenizer_in_the_store_is_named(store: TokenStore, fault: str) -> None:
    path = store.tokenizer_folder / "tokenizer_config.json"
    path.unlink()
    if fault == "a pipe":
        os.mkfifo(path)
    elif fault != "gone":
        path.write_text('{"bos_token": "<another>"}')
    if fault == "huge":
        os.truncate(path, 2**40)
    with pytest.raises(UserError, match=r"tokenizer/tokenizer_config\.json .*(missing|pipe|bytes|the one that wrote)"):
        TokenStore.open(store.folder)


def test_a_tokenizer_file_that_was_not_there_is_named(store: TokenStore) -> None:
    (store.tokenizer_folder / "tokenizer.model").write_bytes(b"another")
    with pytest.raises(UserError, match=r"tokenizer/tokenizer\.model was not there when this store was written"):
        TokenStore.open(store.folder)


def test_a_store_without_hashes_of_its_tokenizer_opens(store: TokenStore) -> None:
    path = store.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest.pop("tokenizer_files").keys() == {"tokenizer.json", "tokenizer_config.json"}
    path.write_text(json.dumps(manifest))
    (store.tokenizer_folder / "tokenizer_config.json").unlink()
    assert TokenStore.open(store.folder).manifest.tokenizer_files is None
