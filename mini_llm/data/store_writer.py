"""Writing a token store: shard after shard, hashed on the way to the disk, whole or not at all."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np

from mini_llm.data.token_store import Manifest, ReadFrom, Shard, Source, Split, TokenSplit
from mini_llm.data.tokenizer_files import hashes_of
from mini_llm.files import Kind, new_folder, sha256_of
from mini_llm.hub import TOKENIZER_FILES
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.user_files import json_object

SHARD_BYTES = 2**30
READ_TOKENS = 2**22  # copy this many at a time


def _is_store(folder: Path) -> bool:
    return {"format_version", "tokenizer_hash", "splits"} <= json_object(folder / "manifest.json").keys()


STORE_FOLDER = Kind(
    "a token store",
    re.compile(
        r"manifest\.json|(train|val)-[0-9]{5,}\.bin|(train|val)\.idx|tokenizer/("
        + "|".join(map(re.escape, TOKENIZER_FILES))
        + ")?"
    ),
    _is_store,
)


class TokenStoreWriter:
    """Writes a store, whole or not at all: `with TokenStoreWriter.create(out, tokenizer) as writer`."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, sources: Sequence[Source], shard_bytes: int) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._sources = list(sources)
        self.reading: ReadFrom | None = None  # set before the block ends
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
            UserError: something else than a token store is at `out`, or more than one.
        """
        with new_folder(out, STORE_FOLDER) as folder:
            writer = cls(folder, tokenizer, sources, shard_bytes)
            try:
                yield writer
                writer._finish()
            finally:
                writer.close()

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens written so far, by split."""
        return {name: split.tokens for name, split in self._splits.items()}

    def append(
        self, split: str, ids: Sequence[int] | np.ndarray, *, text_bytes: int, new_document: bool = True
    ) -> None:
        """Append the ids of a document, or of its next piece, which stand for `text_bytes` bytes of text."""
        self._splits[split].append(ids, text_bytes, new_document)

    def adopt(self, folder: Path, splits: dict[str, Split]) -> None:
        """Append the documents of a store that is part of this one, without copying its tokens where links can be made.

        Raises:
            OSError: a file of `folder` is not there, or the disk is full.
        """
        for name, split in splits.items():
            self._splits[name].adopt(folder, split)

    def finished_splits(self) -> dict[str, Split]:
        """End the files of all splits that have tokens, and return what is in them."""
        return {name: split.finish() for name, split in self._splits.items() if split.tokens}

    def close(self) -> None:
        """Close the files; what an unfinished split holds is lost."""
        for split in self._splits.values():
            split.close()

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
            tokenizer_files=hashes_of(self._folder / "tokenizer"),
            splits=self.finished_splits(),  # type: ignore[arg-type]
            sources=self._sources,
            reading=self.reading,
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
        rest = np.asarray(ids, dtype=self._dtype)
        while len(rest):
            self._shard = self._shard or _HashedFile(self._folder / f"{self._name}-{len(self._shards):05d}.bin")
            room = self._shard_tokens - self._shard.bytes // self._dtype.itemsize
            self._shard.write(rest[:room].tobytes())
            if len(rest) >= room:
                self._end_shard()
            self.tokens += len(rest[:room])
            rest = rest[room:]
        self.text_bytes += text_bytes

    def adopt(self, folder: Path, split: Split) -> None:
        self._end_shard()
        for shard in split.shards:
            name = f"{self._name}-{len(self._shards):05d}.bin"
            _link_or_copy(folder / shard.name, self._folder / name)
            self._shards.append(shard.model_copy(update={"name": name}))
        starts = np.fromfile(folder / f"{self._name}.idx", dtype="<u8") + np.uint64(self.tokens)
        self._index = self._index or _HashedFile(self._folder / f"{self._name}.idx")
        self._index.write(starts.astype("<u8").tobytes())
        self.documents += split.documents
        self.tokens += split.tokens
        self.text_bytes += split.text_bytes

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
        self._index_sha256 = sha256_of(index)

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
        return Shard(name=path.name, tokens=tokens, bytes=tokens * self._dtype.itemsize, sha256=sha256_of(path))


def _link_or_copy(old: Path, new: Path) -> None:
    try:
        os.link(old, new)
    except OSError:  # a disk without links, or without more of them for this file
        shutil.copyfile(old, new)


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
