"""Every format and packing gives the same documents, exactly; what cannot be read is named, with its place."""

import gzip
import json
import lzma
import os
import random
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_llm.data import formats, sources
from mini_llm.data.formats import PIECE_CHARS
from mini_llm.data.reading import Reading
from mini_llm.data.sources import Corpus, Piece, find_files, read_documents
from mini_llm.errors import UserError

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}
DOCUMENTS = ["one\r\ntwo\n", "tab\tnul\0 é 漢字 🔥 \u2028 end", "  spaces  kept  \n\n"]


def parquet_bytes(path: Path, **columns: object) -> bytes:
    pq.write_table(pa.table(columns), path)
    return path.read_bytes()


def arrow_bytes(columns: dict[str, object], writer: Callable[..., object] = pa.ipc.new_stream) -> bytes:
    table, sink = pa.table(columns), pa.BufferOutputStream()
    with writer(sink, table.schema) as out:  # type: ignore[attr-defined]
        out.write_table(table, max_chunksize=100)
    return sink.getvalue().to_pybytes()


def write(path: Path, documents: list[str], text_column: str = "text") -> Path:
    packing = path.suffix if path.suffix in PACK else ""
    kind = path.name.removesuffix(packing).rpartition(".")[2]
    if kind in ("txt", "md"):
        data = "<|endoftext|>\n".join(d if d.endswith("\n") else d + "\n" for d in documents).encode()
    elif kind == "arrow":
        data = arrow_bytes({"id": list(range(len(documents))), text_column: documents})
    elif kind == "parquet":
        data = parquet_bytes(path, **{"id": list(range(len(documents))), text_column: documents})
    else:
        data = "".join(json.dumps({"id": 1, text_column: d}) + "\n" for d in documents).encode()
    path.write_bytes(PACK[packing](data))
    return path


def failure(source: object, **options: str) -> str:
    with pytest.raises(UserError) as caught:
        list(read_documents([str(source)], **options))
    assert str(source).rpartition("/")[2] in caught.value.message
    return str(caught.value)


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("kind", [".txt", ".md", ".jsonl", ".ndjson", ".parquet", ".arrow"])
def test_every_format_and_packing_gives_the_documents_exactly(tmp_path: Path, kind: str, packing: str) -> None:
    path = write(tmp_path / f"a{kind}{packing}", DOCUMENTS)
    expected = [d if d.endswith("\n") or kind not in (".txt", ".md") else d + "\n" for d in DOCUMENTS]
    assert list(read_documents([path])) == expected


def test_upper_case_suffixes_work(tmp_path: Path) -> None:
    (tmp_path / "A.TXT").write_text("text")
    assert list(read_documents([tmp_path])) == ["text"]


def test_a_text_file_is_one_document_whole(tmp_path: Path) -> None:
    text = "a\r\n\r\nb <|endoftext|>\n<|endoftext|> c\n <|endoftext|>\n\n\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert list(read_documents([tmp_path / "a.txt"])) == [text]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_separator_lines_part_documents_and_empty_ones_vanish(tmp_path: Path, newline: str) -> None:
    text = newline.join(["<|endoftext|>", "a", "b", "<|endoftext|>", "", "<|endoftext|>", "c", "<|endoftext|>"])
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert list(read_documents([tmp_path / "a.txt"])) == [f"a{newline}b{newline}", f"c{newline}"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "hello"}\n')
    assert list(read_documents([tmp_path / "a.txt", tmp_path / "b.jsonl"])) == ["hello", "hello"]


def test_jsonl_takes_bare_strings_blank_lines_and_another_key(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('"bare"\n\n  \n{"body": "named"}')
    assert list(read_documents([tmp_path / "a.jsonl"], text_column="body")) == ["bare", "named"]


def test_parquet_skips_nulls_and_reads_large_and_dictionary_strings(tmp_path: Path) -> None:
    for index, kind in enumerate((pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()))):
        column = pa.array(["a", None, "b", ""]).cast(kind)
        pq.write_table(pa.table({"body": column}), tmp_path / f"{index}.parquet", row_group_size=2)
    assert list(read_documents([tmp_path], text_column="body")) == ["a", "b"] * 3


# --- which files -----------------------------------------------------------------------------------------------------


def test_folders_are_walked_in_order_without_hidden_and_foreign_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/b/c.jsonl", ".hidden.txt", ".git/x.txt", "image.png", "a/.b/y.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('"x"')
    assert [str(p.relative_to(tmp_path)) for p in find_files([tmp_path])] == ["a/b/c.jsonl", "a/z.md", "b.txt"]


def test_globs_files_and_folders_mix_and_nothing_is_read_twice(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt", "odd[1].txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = find_files([f"{tmp_path}/*.txt", tmp_path / "b.txt", f"{tmp_path}/**/*.txt", tmp_path / "odd[1].txt"])
    assert [p.name for p in found] == ["a.txt", "b.txt", "odd[1].txt", "c.txt"]


@pytest.mark.parametrize("name", ["missing.txt", "missing", "*.txt", "nowhere/deep.txt"])
def test_what_is_not_there_is_named_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"no (file|text files)"):
        read_documents([tmp_path / name])


def test_a_misspelt_name_gets_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl.gz").write_bytes(b"")
    assert "did you mean 'corpus.jsonl.gz'?" in failure(tmp_path / "corpus.jsonl")


@pytest.mark.parametrize("name", ["table.csv", "text.txt.bz2", "noformat", "old.json"])
def test_an_unknown_format_lists_the_known_ones(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    assert ".txt .md .jsonl .parquet" in failure(tmp_path / name)
    assert ".txt .md .jsonl .parquet" in failure(tmp_path)


def test_what_makes_text_of_files_of_other_kinds_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    for name in ("book.EPUB", "page.html", "what.xyz"):
        (tmp_path / name).write_text("x")
    assert "pandoc BOOK.epub -t plain" in failure(tmp_path / "book.EPUB")
    assert "pandoc PAGE.html -t plain" in failure(tmp_path)
    (tmp_path / "full.txt").write_text("text")
    assert list(read_documents([tmp_path])) == ["text"]
    said = capfd.readouterr().err
    assert said.count("pandoc BOOK.epub") == said.count("pandoc PAGE.html") == 1
    assert "1 .html files" in said


def test_a_table_becomes_text_by_the_command_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "TABLE.csv").write_text("text,n\nthe first,1\nthe second,2\n")
    command = failure(tmp_path / "TABLE.csv").splitlines()[-1]
    words = shlex.split(command)
    assert words[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, check=True)
    assert list(read_documents([tmp_path])) == ["the first", "the second"]


def test_empty_files_are_skipped_with_a_note(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("empty.txt", "empty.jsonl.gz", "empty.txt.xz", "empty.md.zst", "empty.parquet"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "full.txt").write_text("text")
    assert list(read_documents([tmp_path])) == ["text"]
    assert capfd.readouterr().err.count("holds no text") == 5


def test_no_text_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" \n\n")
    assert "no text in" in failure(tmp_path / "blank.txt")
    with pytest.raises(UserError, match="no files"):
        read_documents([])


# --- bad files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "a"', ["not JSON"]),
        ("plain words", ["not JSON"]),
        ('{"Text": "a", "id": 3}', ["no key 'text'", "did you mean 'Text'?", "Text, id", "--text-column"]),
        ("{}", ["no key 'text'", "none"]),
        ('{"text": 3}', ["'text' holds a number", "each row must be a text"]),
        ('{"text": 3, "id": 4, "body": "a"}', ["'text' holds a number", "these hold text: body", "--text-column"]),
        ('{"text": true}', ["'text' holds a truth value"]),
        ('{"text": ["a"]}', ["'text' holds a list"]),
        ("[1]", ["holds a list"]),
        ("[" * 100_000, ["not JSON"]),
        ("1" * 5000, ["not JSON"]),
        ('{"text": "\\ud83d"}', ["half a character", "\\ud83d"]),
    ],
)
def test_a_bad_json_line_is_named(tmp_path: Path, line: str, words: list[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n\n' + line + "\n")
    message = failure(tmp_path / "a.jsonl:3".removesuffix(":3"))
    assert "a.jsonl:3" in message
    assert all(word in message for word in words), message


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_LINE_BYTES", 2**20)
    (tmp_path / "a.jsonl").write_text('"fine"\n"' + "x" * 2**20)
    assert "a.jsonl:2: the line is longer than 1 MiB" in failure(tmp_path / "a.jsonl")


def test_bytes_that_are_not_utf8_are_located(tmp_path: Path) -> None:
    good = "é漢🔥 ".encode() * 300_000
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + good + b"caf\xe9 au lait")
    assert f"byte {3 + len(good) + 3:,}: not UTF-8" in failure(tmp_path / "a.txt")
    (tmp_path / "b.jsonl").write_bytes(b'"fine"\n"caf\xe9"\n')
    assert "b.jsonl:2: not UTF-8" in failure(tmp_path / "b.jsonl")
    (tmp_path / "c.txt").write_bytes(b"cut short \xe6\xbc")
    assert "byte 10: not UTF-8" in failure(tmp_path / "c.txt")
    (tmp_path / "d.txt").write_bytes("Windows".encode("utf-16"))
    assert "iconv -f UTF-16 -t UTF-8" in failure(tmp_path / "d.txt")


@pytest.mark.parametrize("packing", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet", ".arrow"])
def test_damaged_archives_are_named(tmp_path: Path, kind: str, packing: str) -> None:
    noise = random.Random(0).randbytes(40_000).hex()
    path = write(tmp_path / f"a{kind}{packing}", [noise, noise])
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-3], b"this is not packed at all", whole[:1]):
        path.write_bytes(damaged)
        assert "corrupt or cut short" in failure(path)


def test_archives_of_several_parts_are_read_to_the_end(tmp_path: Path) -> None:
    for packing in (".gz", ".xz", ".zst"):
        (tmp_path / f"a.txt{packing}").write_bytes(PACK[packing](b"first ") + PACK[packing](b"second"))
    assert list(read_documents([tmp_path])) == ["first second"] * 3


def test_damaged_arrow_is_named_also_where_it_is_cut_between_two_batches(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", ["word " * 100] * 300)
    whole = path.read_bytes()
    for end in (len(whole) // 2, len(whole) - 8, 3):
        path.write_bytes(whole[:end])
        assert "corrupt or cut short" in failure(path)


def test_a_folder_that_datasets_has_saved_gives_its_training_texts(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    texts = {"train": [f"text {n}" for n in range(2500)], "test": ["asked"]}
    parts = {split: datasets.Dataset.from_dict({"n": list(range(len(t))), "body": t}) for split, t in texts.items()}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "set"), num_shards={"train": 3, "test": 1})
    (tmp_path / "set" / "train" / "cache-0123.arrow").write_bytes(b"of a map")
    assert list(read_documents([tmp_path / "set"], text_column="body")) == texts["train"]
    assert list(read_documents([tmp_path / "set" / "test"], text_column="body")) == texts["test"]
    (tmp_path / "feather.arrow").write_bytes(arrow_bytes({"text": ["a", None, "b"]}, pa.ipc.new_file))
    assert list(read_documents([tmp_path / "feather.arrow"])) == ["a", "b"]


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", ["word " * 1000] * 100)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"PAR1" + b"x" * 100 + b"PAR1", b"text"):
        path.write_bytes(damaged)
        assert "corrupt or cut short" in failure(path)


def test_a_wrong_parquet_column_lists_those_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", ["x"], text_column="content")
    message = failure(path, text_column="contents")
    assert "did you mean 'content'?" in message
    assert "id, content" in message
    assert "'id' holds int64, not strings" in failure(path, text_column="id")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.txt").chmod(0)
    assert "cannot read" in failure(tmp_path / "a.txt")


def test_a_missing_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("a.txt.zst", "a.parquet"):
        path = tmp_path / name
        path.write_bytes(b"x")
        with pytest.raises(UserError, match=r"pip install 'mini-llm\[data\]'"):
            list(read_documents([path]))


# --- long documents --------------------------------------------------------------------------------------------------


def whole(pieces: list[Piece]) -> list[str]:
    documents: list[str] = []
    for piece in pieces:
        if piece.first:
            documents.append("")
        documents[-1] += piece.text
    assert [piece.last for piece in pieces] == [piece.first for piece in pieces[1:]] + [True] * bool(pieces)
    return documents


@pytest.mark.parametrize("unit", ["line of words\n", "word ", "長", "x"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_a_long_document_comes_in_pieces_that_make_it_whole(tmp_path: Path, name: str, unit: str) -> None:
    text = unit * (5 * PIECE_CHARS // 2 // len(unit)) + "\n"
    write(tmp_path / name, [text, "short\n"])
    pieces = list(Corpus([tmp_path]).pieces())
    assert whole(pieces) == [text, "short\n"]
    assert max(len(piece.text) for piece in pieces) <= PIECE_CHARS
    assert len(pieces) <= 6
    if unit != "長" and unit != "x":
        assert all(unit[0] == piece.text.lstrip(" ")[0] for piece in pieces[:-1])  # words stay whole


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", " ", "\n", "é", "<|endoftext|>", "\r\n", "\n<|endoftext|>\n"]), max_size=60))
def test_pieces_never_depend_on_where_blocks_end(parts: list[str]) -> None:
    text = "".join(parts)

    def documents(piece_chars: int, block: int) -> list[str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(formats, "PIECE_CHARS", piece_chars)
            blocks = [text[i : i + block] for i in range(0, len(text), block)]
            found = whole(list(sources.file_pieces(formats._plain_texts(blocks), Reading(), Path("a.txt"))))
            return [document for document in found if document.strip()]

    expected = documents(10**6, 10**6)
    assert documents(40, 7) == expected
    assert documents(40, 100) == expected


MEASURE = """
import sys, psutil
from mini_llm.data.sources import Corpus
total = sum(len(piece.text) for piece in Corpus([sys.argv[1]]).pieces())
print(total, psutil.Process().memory_info().rss >> 20)
"""


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_memory_is_bounded_whatever_the_size(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.txt":
        with path.open("wb") as file:
            file.truncate(2**28)  # sparse: 256 MiB of NUL characters
    else:
        path.write_bytes(PACK[path.suffix](bytes(2**24)) * 16)
    run = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    total, peak_mb = map(int, run.stdout.split())
    assert total == 2**28
    assert peak_mb < 150


def test_progress_counts_the_bytes_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 1000)
    for kind in (".txt", ".jsonl.gz", ".parquet", ".md.zst"):
        write(tmp_path / f"a{kind}", [random.Random(i).randbytes(500).hex() for i in range(200)])
    corpus = Corpus([tmp_path])
    seen = [corpus.done_bytes for _ in corpus.pieces()]
    assert seen == sorted(seen)
    assert len(set(seen)) > 20
    assert corpus.done_bytes == corpus.total_bytes == sum(p.stat().st_size for p in tmp_path.iterdir())


def test_what_is_left_out_is_counted_by_kind(tmp_path: Path) -> None:
    src, other = tmp_path / "src", tmp_path / "other"
    for folder in (src, src / ".git", other):
        folder.mkdir()
    (src / "a.jsonl").write_text('{"text": "one"}\n{"text": null}\n{"text": " "}\n{"text": ""}\nnull\n')
    parquet_bytes(src / "b.parquet", text=["two", None, "", "three"])
    (src / "c.txt").write_text("four\n<|endoftext|>\n\n<|endoftext|>\nfive\n<|endoftext|>\n")
    (src / "empty.txt").write_bytes(b"")
    (src / "photo.png").write_bytes(b"")
    (other / "d.txt").write_text("six")
    os.mkfifo(src / "pipe.txt")
    (src / "more").symlink_to(other)
    (src / "again").symlink_to("../other")
    (src / "loop").symlink_to("..")
    (src / "gone.txt").symlink_to("nowhere")
    corpus = Corpus([src])
    for _ in range(2):  # each pass counts anew
        assert [p.text.strip() for p in corpus.pieces()] == ["one", "six", "two", "three", "four", "five"]
        assert (corpus.reading.files, corpus.reading.documents) == (4, 6)
        assert corpus.reading.left_out == {
            "hidden": 1,
            "links in a circle": 1,
            "links to folders that are read already": 1,
            "broken links": 1,
            "pipes and devices": 1,
            ".png files": 1,
            "nulls": 3,
            "blank documents": 4,
            "files without text": 1,
        }
    assert corpus.reading.line().startswith("read 4 files, 6 documents; left out: ")


@pytest.mark.parametrize(
    "text",
    ["plain words of English", "\u0438 \u0432 \u0442\u0435\u043a\u0441\u0442"],
)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_utf16_without_a_mark_is_refused(tmp_path: Path, text: str, encoding: str) -> None:
    name = encoding.upper().replace("-", "").replace("UTF", "UTF-")
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert f"without its mark, not UTF-8\nconvert it: iconv -f {name} -t UTF-8" in failure(tmp_path / "a.txt")
    (tmp_path / "a.jsonl").write_bytes(json.dumps({"text": text}, ensure_ascii=False).encode(encoding))
    assert f"iconv -f {name} -t UTF-8" in failure(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.txt").write_bytes(text.encode() + b"\0 and a NUL")
    assert list(read_documents([tmp_path]))
