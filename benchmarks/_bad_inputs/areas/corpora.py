"""Corpora: texts of every format, spoiled as files, as rows and by their names; the manifest says what was read."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _bad_inputs.case import Case, Check, Outcome
from _bad_inputs.hostile import ESC, short, spoiled_bytes, strange_files
from _bad_inputs.world import World

PREPARE = ["prepare", "in", "--tokenizer", "tok", "--out", "out", "--val-fraction", "0"]
LEARN = ["tokenizer", "train", "in", "--out", "out", "--vocab-size", "300"]
TEXT = (
    "\n".join(
        f"The river walks under seven bright doors, and number {n} counts boats while rain falls." for n in range(60)
    )
    + "\n"
)
TOLD = r"left out|skipp|warning|no text|not read|empty|unknown|null"


def cases(world: World, dice: random.Random) -> list[Case]:
    """Return the area's cases."""
    found: list[Case] = []

    def add(
        name: str,
        fill: Callable[[Path], Any],
        *,
        check: Check | None = None,
        accept: bool = True,
        told: str | None = TOLD,
        verbs: tuple[list[str], ...] = (PREPARE, LEARN),
        **more: Any,
    ) -> None:
        for words in verbs:

            def make(folder: Path) -> None:
                world.bring(folder, "tok")
                (folder / "in").mkdir()
                fill(folder / "in")

            is_prepare = words[0] == "prepare"
            found.append(
                Case(
                    "corpora",
                    f"{words[0]}: {name}",
                    words,
                    make,
                    accept=accept,
                    told=told,
                    check=check if is_prepare else None,
                    **more,
                )
            )

    rows = [{"text": line} for line in TEXT.splitlines()]
    jsonl = "".join(json.dumps(row) + "\n" for row in rows).encode()
    packed = {
        "a.txt": TEXT.encode(),
        "a.md": TEXT.encode(),
        "a.jsonl": jsonl,
        "a.txt.gz": gzip.compress(TEXT.encode(), mtime=0),
        "a.jsonl.xz": lzma.compress(jsonl),
        "a.parquet": _parquet(rows),
        "a.txt.zst": _zst(TEXT.encode()),
    }
    for name, data in packed.items():
        for what, spoiled in spoiled_bytes(data, dice):
            if what == "twice" and name.endswith((".txt", ".md", ".gz", ".zst", ".jsonl", ".xz")):
                continue  # is sound
            add(
                f"{name} {what}",
                lambda folder, n=name, s=spoiled: (folder / n).write_bytes(s),
                check=_all_of(name, spoiled),
                verbs=(PREPARE,) if dice.random() < 0.6 else (PREPARE, LEARN),
            )
    texts: list[tuple[str, bytes]] = [
        ("UTF-16 with a mark", TEXT.encode("utf-16")),
        ("UTF-16 without a mark", TEXT.encode("utf-16-le")),
        ("UTF-32", TEXT.encode("utf-32")),
        ("Latin-1", ("é" + TEXT).encode("latin-1")),
        ("a mark and UTF-8", b"\xef\xbb\xbf" + TEXT.encode()),
        ("only NULs", b"\0" * 1000),
        ("only spaces", b" \n\t" * 100),
        ("half a character", TEXT.encode() + b"\xc3"),
        ("a surrogate", b"\xed\xa0\x80" + TEXT.encode()),
        ("one line of a megabyte", b"a" * 10**6),
        ("escapes", (ESC + TEXT).encode()),
        ("an overlong NUL", b"\xc0\x80" + TEXT.encode()),
        ("carriage returns", TEXT.replace("\n", "\r").encode()),
        ("markers", ("<s></s><|user|>" + TEXT).encode()),
        ("private characters", ("\U0010ffff\ue000" * 99 + TEXT).encode()),
    ]
    for what, data in texts:
        refused = what.startswith(("UTF-16 without", "Latin", "half", "a surrogate", "an overlong", "only", "UTF-32"))
        add(
            f"a text: {what}",
            lambda folder, d=data: (folder / "a.txt").write_bytes(d),
            told=TOLD + "|NUL|UTF-16",
            check=(lambda _: "taken without a word") if refused else None,
        )
    lines = [
        "",
        "{}",
        "null",
        "[]",
        '"text"',
        "{",
        '{"text": null}',
        '{"text": 5}',
        '{"text": ["a"]}',
        '{"text": ""}',
        '{"txt": "a"}',
        '{"text": "a", "text": "b"}',
        '{"text": "\\ud800"}',
        '{"text": "a"} {"text": "b"}',
        "[" * 100_000,
        '{"text": "\\u0000"}',
        '{"text": NaN}',
        '{"text": {"a": "b"}}',
        '{"text": "a"',
        "9" * 5000,
        '{"text": 1e999}',
        '{"n": ' + "9" * 5000 + "}",
        "\x1b]0;PWN\x07",
        '{"text": true}',
    ]
    for line in lines:
        data = jsonl + line.encode() + b"\n" + jsonl
        add(f"a line {short(line)}", lambda folder, d=data: (folder / "a.jsonl").write_bytes(d))
    for name, columns in _tables().items():
        add(f"a table: {name}", lambda folder, c=columns: (folder / "a.parquet").write_bytes(_parquet(c)))
    for what, make in strange_files().items():
        for name in ("a.txt", "a.jsonl.gz", "a.parquet", "more"):

            def strange(folder: Path, n: str = name, m: Callable[[Path], Any] = make) -> None:
                m(folder / n)
                (folder / "sound.txt").write_text(TEXT, "utf-8")

            add(f"{name} is {what}", strange, verbs=(PREPARE,), deadline=40, limits={"FSIZE": 10**8})
    for name in (
        ESC + ".txt",
        "a\nb.txt",
        "\udcff.txt",
        "x" * 250 + ".txt",
        " .txt",
        "-.txt",
        "\u202etxt.txt",
        "a.TXT",
        "a.txt.GZ",
        ".txt",
        "a",
    ):

        def named(folder: Path, n: str = name) -> None:
            (folder / os.fsencode(n).decode("utf-8", "surrogateescape")).write_bytes(
                b"\xff broken" if "b" in n else TEXT.encode()
            )
            (folder / "sound.txt").write_text(TEXT, "utf-8")

        add(f"a file called {short(name)}", named)

    def loop(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "up").symlink_to("..")
        (folder / "a.txt").write_text(TEXT, "utf-8")

    def deep(folder: Path) -> None:
        for _ in range(200):
            folder /= "d"
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(TEXT, "utf-8")

    def mixed(folder: Path) -> None:
        for n in ("a.txt", "b.pdf", "c.docx", "d.html", ".hidden.txt", "e.csv"):
            (folder / n).write_text(TEXT, "utf-8")

    def bomb(folder: Path) -> None:
        (folder / "a.txt.gz").write_bytes(gzip.compress(b"a b " * 5 * 10**6))

    add("a loop of links", loop, check=_documents(1))
    add("two hundred folders deep", deep, check=_documents(1))
    add("other types beside", mixed, check=lambda outcome: "left out without a word")
    add("a bomb of 20 MB", bomb, verbs=(PREPARE,))
    add("nothing", lambda folder: None, accept=False)
    return found


def _documents(wanted: int) -> Check:
    def check(outcome: Outcome) -> str | None:
        manifest = json.loads((outcome.folder / "out" / "manifest.json").read_text("utf-8"))
        found = sum(split["documents"] for split in manifest["splits"].values())
        return None if found == wanted else f"{found} documents instead of {wanted}"

    return check


def _all_of(name: str, spoiled: bytes) -> Check | None:
    """A spoiled text that is still text is all there; a spoiled packed file must not lose its end in silence."""
    if name.endswith((".txt", ".md")):

        def whole(outcome: Outcome) -> str | None:
            manifest = json.loads((outcome.folder / "out" / "manifest.json").read_text("utf-8"))
            found = sum(split["text_bytes"] for split in manifest["splits"].values())
            nul = "taken with its NULs" if spoiled.count(b"\0") > len(spoiled) // 4 else None
            return nul or (None if found == len(spoiled) else f"{found} bytes instead of {len(spoiled)}")

        return whole
    if name.endswith(".jsonl"):
        return None

    def unpacked(outcome: Outcome) -> str | None:
        return (
            None
            if _documents(60 if name.endswith((".parquet", ".jsonl.xz")) else 1)(outcome) is None
            else "documents are missing"
        )

    return unpacked


def _parquet(rows: Any) -> bytes:
    import io

    import pyarrow
    import pyarrow.parquet

    sink = io.BytesIO()
    table = pyarrow.Table.from_pylist(rows) if isinstance(rows, list) else pyarrow.table(rows)
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue()


def _zst(data: bytes) -> bytes:
    import zstandard

    return zstandard.compress(data)


def _tables() -> dict[str, Any]:
    import pyarrow

    return {
        "no column text": {"body": ["a"] * 9},
        "numbers": {"text": [1, 2]},
        "nulls among texts": {"text": ["a river", None] * 30},
        "only nulls": {"text": pyarrow.array([None, None], pyarrow.string())},
        "lists": {"text": [["a"]]},
        "bytes": {"text": [b"\xff\xfe"]},
        "no rows": {"text": pyarrow.array([], pyarrow.string())},
        "large strings": {"text": pyarrow.array(["a river"] * 9, pyarrow.large_string())},
        "dictionary": {"text": pyarrow.array(["a river"] * 9).dictionary_encode()},
        "empty texts": {"text": [""] * 9 + ["a river"]},
        "structs": {"text": [{"a": "b"}]},
        "an escape as a column": {ESC: ["a"]},
    }
