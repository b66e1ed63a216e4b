"""The token store: a corpus as flat files of token ids, opened in milliseconds and read anywhere, however large.

manifest.json       what is in it: format version, dtype, vocabulary, tokenizer, sizes and SHA-256 of every file
train-00000.bin ... token ids of whole documents, one after another: little-endian uint16 (uint32 above 65,536 ids)
train.idx           where each document starts: little-endian uint64 token offsets, one for each document
val-00000.bin ...   the same for the held-out documents
tokenizer/          the tokenizer that wrote it
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import mmap
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mini_llm import log
from mini_llm.data.tokenizer_files import check_tokenizer_files
from mini_llm.errors import UserError
from mini_llm.files import sha256_of
from mini_llm.user_files import above, kind_of, read_file

FORMAT_VERSION = 1
ITEM_BYTES = {"uint16": 2, "uint32": 4}
CHANGED = "was changed after it was written: its SHA-256 is not the one in manifest.json"
PREPARE = "make the store again: mini-llm prepare SOURCES --tokenizer DIR --out {}"

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Shard(_Record):
    """One file of token ids."""

    name: Annotated[str, Field(pattern=r"^(train|val)-[0-9]{5,}\.bin$")]
    tokens: Annotated[int, Field(gt=0)]
    bytes: Annotated[int, Field(gt=0)]
    sha256: Sha256


class Split(_Record):
    """One side of the corpus. `text_bytes` counts its text as UTF-8; `index_sha256` is that of the document index."""

    documents: Annotated[int, Field(gt=0)]
    tokens: Annotated[int, Field(gt=0)]
    text_bytes: Count
    index_sha256: Sha256
    shards: list[Shard]

    @model_validator(mode="after")
    def _adds_up(self) -> Split:
        if sum(shard.tokens for shard in self.shards) != self.tokens:
            raise ValueError("the shards' tokens do not add up to the split's")
        return self


class Source(_Record):
    """A file that the text came from."""

    path: str
    bytes: Count


class ReadFrom(_Record):
    """What reading found: files and documents, and by kind how many were left out, with the first of each."""

    files: Count
    documents: Count
    left_out: dict[str, Count]
    examples: dict[str, str] = {}


class Manifest(_Record):
    """What manifest.json holds; `tokenizer_hash` is `Tokenizer.fingerprint`, `tokenizer_files` the SHA-256 of each."""

    format_version: Literal[1]
    dtype: Literal["uint16", "uint32"]
    vocab_size: Annotated[int, Field(gt=0)]
    tokenizer_hash: str
    tokenizer_files: dict[str, Sha256] | None = None  # older stores have none
    splits: dict[Literal["train", "val"], Split]
    sources: list[Source]
    reading: ReadFrom | None = None

    @model_validator(mode="after")
    def _sizes_fit(self) -> Manifest:
        for side, split in self.splits.items():
            for index, shard in enumerate(split.shards):
                if shard.name != f"{side}-{index:05d}.bin":
                    raise ValueError(f"{side} names {shard.name} as its shard {index}: each split has its own, once")
        for shard in itertools.chain.from_iterable(split.shards for split in self.splits.values()):
            if shard.bytes != shard.tokens * ITEM_BYTES[self.dtype]:
                raise ValueError(f"{shard.name}: {shard.tokens} {self.dtype} tokens do not take {shard.bytes} bytes")
        return self


class TokenStore:
    """A store opened for reading."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: Path | str) -> TokenStore:
        """Open a store. Reads only the manifest, the tokenizer and the sizes of the rest: 1 TB opens like 1 MB.

        Raises:
            UserError: no store there, a version or key that this Mini-LLM does not know, a file missing or cut short,
                or another tokenizer's.
        """
        store = cls(Path(folder), _read_manifest(Path(folder)))
        for path, size, _ in store.files():
            store._check_size(path, size)
        if (hashes := store.manifest.tokenizer_files) is not None:
            check_tokenizer_files(store.tokenizer_folder, hashes, PREPARE.format(folder))
        return store

    @property
    def tokenizer_folder(self) -> Path:
        """The store's own copy of the tokenizer that wrote it."""
        return self.folder / "tokenizer"

    @property
    def n_bytes(self) -> int:
        """The size of all its files of tokens."""
        return sum(shard.bytes for split in self.manifest.splits.values() for shard in split.shards)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hashes of the tokenizer and of the training text: what a model learns from.

        Raises:
            UserError: the store has no training text.
        """
        self.split("train")
        shards = "".join(shard.sha256 for shard in self.manifest.splits["train"].shards)
        return {"tokenizer": self.manifest.tokenizer_hash, "text": hashlib.sha256(shards.encode()).hexdigest()}

    def split(self, name: Literal["train", "val"]) -> TokenSplit:
        """Return the tokens of "train" or "val".

        Raises:
            UserError: the store has none.
        """
        if name not in self.manifest.splits:
            hint = " --val-fraction 0.01" if name == "val" else ""
            raise UserError(f"{self.folder} has no {name} split", PREPARE.format(self.folder) + hint)
        return TokenSplit(self.folder, name, self.manifest.splits[name], self.manifest.dtype, self.manifest.vocab_size)

    def verify(self) -> None:
        """`verify_file` for every file, with a progress bar: `open` would take too long for that."""
        files, done = self.files(), 0
        with log.byte_progress(f"checking {self.folder}", sum(size for _, size, _ in files)) as update:
            for path, size, expected in files:
                self.verify_file(path, expected)
                done += size
                update(done)

    def verify_file(self, path: Path, expected: str) -> None:
        """Compare a file's SHA-256; UserError: it cannot be read or is not as it was written."""
        try:
            found = sha256_of(path)
        except OSError as problem:
            raise UserError(f"cannot read {path}: {problem.strerror}", PREPARE.format(self.folder)) from None
        if found != expected:
            raise UserError(f"{path} {CHANGED}", PREPARE.format(self.folder))

    def files(self) -> list[tuple[Path, int, str]]:
        """Return every file of the store with its size in bytes and SHA-256."""
        files = []
        for name, split in self.manifest.splits.items():
            files += [(self.folder / shard.name, shard.bytes, shard.sha256) for shard in split.shards]
            files.append((self.folder / f"{name}.idx", 8 * split.documents, split.index_sha256))
        return files

    def _check_size(self, path: Path, expected: int) -> None:
        try:
            size = path.stat().st_size
        except OSError:
            raise UserError(f"{path} is missing", PREPARE.format(self.folder)) from None
        if size != expected:
            raise UserError(f"{path} has {size:,} bytes instead of {expected:,}", PREPARE.format(self.folder))


class TokenSplit:
    """The tokens of one split as one long sequence; the shards do not show."""

    def __init__(self, folder: Path, name: str, record: Split, dtype: str, vocab_size: int) -> None:
        self.n_tokens = record.tokens
        self.n_documents = record.documents
        self._folder = folder
        self._name = name
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._vocab_size = vocab_size
        self._index_sha256 = record.index_sha256
        self._shards = record.shards
        self._starts = list(itertools.accumulate((shard.tokens for shard in record.shards), initial=0))

    def read(self, start: int, count: int) -> np.ndarray:
        """Return `count` token ids from `start` on, int64 [count].

        Raises:
            UserError: a shard is gone, cut short or holds an id outside the vocabulary.
            IndexError: the range leaves the split.
        """
        if start < 0 or count < 0 or start + count > self.n_tokens:
            raise IndexError(f"tokens {start}..{start + count} of {self.n_tokens}")
        ids = np.empty(count, dtype=np.int64)
        done = 0
        while done < count:
            index = bisect.bisect_right(self._starts, start + done) - 1
            offset = start + done - self._starts[index]
            n = min(count - done, self._shards[index].tokens - offset)
            ids[done : done + n] = self._copy(self._shards[index].name, offset, n)
            done += n
        return ids

    def document_starts(self) -> np.ndarray:
        """Return the offset of each document's first token, a uint64 memory map [n_documents].

        Raises:
            UserError: the index is gone, or its SHA-256 is not that of the manifest.
        """
        path, hint = self._folder / f"{self._name}.idx", PREPARE.format(self._folder)
        try:
            starts = np.memmap(path, dtype="<u8", mode="r", shape=(self.n_documents,))
        except (OSError, ValueError) as problem:
            raise UserError(f"cannot read {path}: {problem}", hint) from None
        if hashlib.sha256(starts.data).hexdigest() != self._index_sha256:
            raise UserError(f"{path} {CHANGED}", hint)
        return starts

    def _copy(self, name: str, offset: int, count: int) -> np.ndarray:
        path, size = self._folder / name, self._dtype.itemsize
        try:
            ids = np.frombuffer(_read_mapped(path, offset * size, count * size), self._dtype)
        except (OSError, ValueError) as problem:
            raise UserError(f"cannot read {path}: {problem}", PREPARE.format(self._folder)) from None
        if (largest := int(ids.max())) >= self._vocab_size:
            message = f"{path} holds token {largest} at {offset + int(ids.argmax())}, but the vocabulary ends at"
            raise UserError(f"{message} {self._vocab_size - 1}", PREPARE.format(self._folder))
        return ids


def _read_mapped(path: Path, offset: int, count: int) -> bytes:
    """Map this window of the file alone and drop it again: the pages of a map that stays open add up to the whole file.

    The kernel is told that exactly these bytes are wanted. Left to guess, it reads far around each window: 2 to 14 ms
    for a random place of a sparse file (ext4, Linux 6.18) instead of 0.03 ms.
    """
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    with (
        path.open("rb", buffering=0) as file,
        mmap.mmap(file.fileno(), offset + count - start, offset=start, access=mmap.ACCESS_READ) as window,
    ):
        if hasattr(mmap, "MADV_RANDOM"):  # not on Windows
            window.madvise(mmap.MADV_RANDOM)
            window.madvise(mmap.MADV_WILLNEED)
        return window[offset - start :]


def _read_manifest(folder: Path) -> Manifest:
    path, hint = folder / "manifest.json", PREPARE.format(folder)
    if kind_of(path) == "nothing":
        is_there = kind_of(folder) != "nothing"
        what = "it has no manifest.json" if is_there else "there is no such folder"
        raise UserError(f"{folder} is not a token store: {what}", hint if is_there else above(folder, hint))
    text = read_file(path, hint)
    try:
        values: Any = json.loads(text)
        version = values["format_version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{path} is not the manifest of a token store", hint) from None
    if version != FORMAT_VERSION:
        message = f"{path} has format version {version!r}, but this Mini-LLM reads version {FORMAT_VERSION}"
        raise UserError(message, f"update Mini-LLM, or {hint}")
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(f"a newer Mini-LLM has written {path}: it has {where}", f"update, or {hint}") from None
        raise UserError(
            f"{path}: {where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}", hint
        ) from None
