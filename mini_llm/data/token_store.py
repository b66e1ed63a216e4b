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
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mini_llm.errors import UserError
from mini_llm.files import new_folder

if TYPE_CHECKING:
    from mini_llm.tokenizer.tokenizer import Tokenizer

FORMAT_VERSION = 1
SHARD_BYTES = 2**30
READ_TOKENS = 2**22  # copy this many at a time
ITEM_BYTES = {"uint16": 2, "uint32": 4}
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


class Manifest(_Record):
    """What manifest.json holds; `tokenizer_hash` is `Tokenizer.fingerprint`."""

    format_version: Literal[1]
    dtype: Literal["uint16", "uint32"]
    vocab_size: Annotated[int, Field(gt=0)]
    tokenizer_hash: str
    splits: dict[Literal["train", "val"], Split]
    sources: list[Source]

    @model_validator(mode="after")
    def _sizes_fit(self) -> Manifest:
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
        """Open a store. Reads only the manifest and the sizes of the files, so that 1 TB opens like 1 MB.

        Raises:
            UserError: no store there, a version or key that this Mini-LLM does not know, a file missing or cut short.
        """
        store = cls(Path(folder), _read_manifest(Path(folder)))
        for path, size, _ in store._files():
            store._check_size(path, size)
        return store

    @property
    def tokenizer_folder(self) -> Path:
        """The store's own copy of the tokenizer that wrote it."""
        return self.folder / "tokenizer"

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
        """Read every file and compare its SHA-256.

        Raises:
            UserError: a file is not as it was written; the message names it.
        """
        for path, _, expected in self._files():
            if _sha256(path) != expected:
                raise UserError(f"{path} was changed after it was written", PREPARE.format(self.folder))

    def _files(self) -> list[tuple[Path, int, str]]:
        """Every file of the store with its size in bytes and SHA-256."""
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
        """Return the offset of each document's first token, a uint64 memory map [n_documents]."""
        return np.memmap(self._folder / f"{self._name}.idx", dtype="<u8", mode="r", shape=(self.n_documents,))

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

    The kernel is told that exactly these bytes are wanted. Left to guess, it read megabytes around each window of a
    sparse file: 4 ms instead of 25 us.
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


class TokenStoreWriter:
    """Writes a store, whole or not at all: `with TokenStoreWriter.create(out, tokenizer) as writer`."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, sources: Sequence[Source], shard_bytes: int) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._sources = list(sources)
        self._dtype: Literal["uint16", "uint32"] = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
        self._shard_bytes = shard_bytes
        self._splits = {name: self._new_split(name) for name in ("train", "val")}

    @classmethod
    @contextmanager
    def create(
        cls, out: Path, tokenizer: Tokenizer, *, sources: Sequence[Source] = (), shard_bytes: int = SHARD_BYTES
    ) -> Iterator[TokenStoreWriter]:
        """Yield a writer; the store stands at `out` when the block has ended well, and nothing does otherwise.

        Raises:
            UserError: something that is not a token store is already at `out`.
        """
        _refuse_foreign(out)
        with new_folder(out) as folder:
            writer = cls(folder, tokenizer, sources, shard_bytes)
            try:
                yield writer
                writer._finish()
            finally:
                for split in writer._splits.values():
                    split.close()

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens written so far, by split."""
        return {name: split.tokens for name, split in self._splits.items()}

    def append(
        self, split: str, ids: Sequence[int] | np.ndarray, *, text_bytes: int, new_document: bool = True
    ) -> None:
        """Append the ids of a document, or of its next piece, which stand for `text_bytes` bytes of text."""
        self._splits[split].append(ids, text_bytes, new_document)

    def hold_out_tail(self, fraction: float) -> None:
        """Make the last `fraction` of the tokens the val split, where every document fell on one side."""
        (train,) = (split for split in self._splits.values() if split.tokens)
        train.rename("train")
        record, val = train.finish(), self._new_split("val")
        self._splits = {"train": train, "val": val}
        split = TokenSplit(self._folder, "train", record, self._dtype, self._tokenizer.vocab_size)
        keep = split.n_tokens - max(1, round(split.n_tokens * fraction))
        # Cut as it is, the tail begins inside a document: its first token counts as the start of one.
        starts = np.union1d(split.document_starts(), np.array([keep], dtype=np.uint64))
        starts = np.append(starts[starts >= keep], split.n_tokens).astype(np.int64)
        token_bytes = self._tokenizer.token_bytes()
        for start, end in itertools.pairwise(starts.tolist()):
            for position in range(start, end, READ_TOKENS):
                ids = split.read(position, min(READ_TOKENS, end - position))
                val.append(ids, int(token_bytes[ids].sum()), new_document=position == start)
        train.truncate(keep, text_bytes=record.text_bytes - val.text_bytes)

    def _new_split(self, name: str) -> _SplitWriter:
        return _SplitWriter(self._folder, name, self._dtype, self._shard_bytes)

    def _finish(self) -> None:
        self._tokenizer.copy_to(self._folder / "tokenizer")
        manifest = Manifest(
            format_version=1,
            dtype=self._dtype,
            vocab_size=self._tokenizer.vocab_size,
            tokenizer_hash=self._tokenizer.fingerprint,
            splits={name: split.finish() for name, split in self._splits.items() if split.tokens},  # type: ignore[misc]
            sources=self._sources,
        )
        (self._folder / "manifest.json").write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


class _SplitWriter:
    """The shards and the document index of one split, hashed on their way to the disk."""

    def __init__(self, folder: Path, name: str, dtype: str, shard_bytes: int) -> None:
        self.tokens = self.documents = self.text_bytes = 0
        self._folder = folder
        self._name = name
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._shard_tokens = max(1, shard_bytes // self._dtype.itemsize)
        self._shards: list[Shard] = []
        self._shard: _HashedFile | None = None
        self._index: _HashedFile | None = None
        self._index_sha256 = ""

    def append(self, ids: Sequence[int] | np.ndarray, text_bytes: int, new_document: bool) -> None:
        if new_document:
            self._index = self._index or _HashedFile(self._folder / f"{self._name}.idx")
            self._index.write(self.tokens.to_bytes(8, "little"))
            self.documents += 1
        rest = np.asarray(ids).astype(self._dtype)
        while len(rest):
            self._shard = self._shard or _HashedFile(self._folder / f"{self._name}-{len(self._shards):05d}.bin")
            room = self._shard_tokens - self._shard.bytes // self._dtype.itemsize
            self._shard.write(rest[:room].tobytes())
            if len(rest) >= room:
                self._end_shard()
            self.tokens += len(rest[:room])
            rest = rest[room:]
        self.text_bytes += text_bytes

    def finish(self) -> Split:
        self._end_shard()
        if self._index is not None:
            self._index_sha256, self._index = self._index.close(), None
        return Split(
            documents=self.documents,
            tokens=self.tokens,
            text_bytes=self.text_bytes,
            index_sha256=self._index_sha256,
            shards=self._shards,
        )

    def rename(self, name: str) -> None:
        self.finish()
        for path in self._folder.glob(f"{self._name}[-.]*"):
            path.rename(path.with_name(name + path.name.removeprefix(self._name)))
        self._shards = [s.model_copy(update={"name": name + s.name.removeprefix(self._name)}) for s in self._shards]
        self._name = name

    def truncate(self, tokens: int, *, text_bytes: int) -> None:
        """Keep the first `tokens` tokens of a finished split."""
        while (start := self.tokens - self._shards[-1].tokens) >= tokens:
            (self._folder / self._shards.pop().name).unlink()
            self.tokens = start
        self._shards[-1] = self._cut(self._folder / self._shards[-1].name, tokens - start)
        index = self._folder / f"{self._name}.idx"
        starts = np.fromfile(index, dtype="<u8")
        self.tokens, self.text_bytes, self.documents = tokens, text_bytes, int((starts < tokens).sum())
        os.truncate(index, 8 * self.documents)
        self._index_sha256 = _sha256(index)

    def close(self) -> None:
        """Close the files; what they hold is lost if the split is not finished."""
        for file in (self._shard, self._index):
            if file is not None:
                file.close()
        self._shard = self._index = None

    def _end_shard(self) -> None:
        if self._shard is not None:
            path, size, digest = self._shard.path, self._shard.bytes, self._shard.close()
            self._shards.append(Shard(name=path.name, tokens=size // self._dtype.itemsize, bytes=size, sha256=digest))
            self._shard = None

    def _cut(self, path: Path, tokens: int) -> Shard:
        os.truncate(path, tokens * self._dtype.itemsize)
        return Shard(name=path.name, tokens=tokens, bytes=tokens * self._dtype.itemsize, sha256=_sha256(path))


class _HashedFile:
    """A file being written, with the SHA-256 of what went into it: no second pass over the data."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self._file = path.open("wb", buffering=2**20)
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.bytes += len(data)

    def close(self) -> str:
        self._file.close()
        return self._hash.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_foreign(out: Path) -> None:
    """Refuse to replace anything but a token store or an empty folder."""
    if not out.exists() or (out.is_dir() and (not any(out.iterdir()) or _is_store(out))):
        return
    raise UserError(f"{out} is there and is not a token store, so it is not replaced", "choose another --out")


def _is_store(folder: Path) -> bool:
    try:
        values = json.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and {"format_version", "tokenizer_hash", "splits"} <= values.keys()


def _read_manifest(folder: Path) -> Manifest:
    path, hint = folder / "manifest.json", PREPARE.format(folder)
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        what = "there is no such folder" if not folder.exists() else "it has no manifest.json"
        raise UserError(f"{folder} is not a token store: {what}", hint) from None
    except OSError as problem:
        raise UserError(f"cannot read {path}: {problem.strerror}") from None
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
        raise UserError(
            f"{path}: {where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}", hint
        ) from None
