"""Overlap: thirteen words in a row that a text and an item share, found by sums of hashes as by plain comparison."""

import json
import random
from pathlib import Path

import pytest

from mini_llm.data.prepare import prepare
from mini_llm.data.token_store import TokenStore
from mini_llm.eval.evaluate import ask, prepare_questions
from mini_llm.eval.language_model import LocalModel
from mini_llm.eval.overlap import WORD, Grams, mark_overlaps
from mini_llm.eval.task import find_tasks


def plainly(text: str, document: str) -> bool:
    words, rest = WORD.findall(text.lower()), WORD.findall(document.lower())
    n = min(13, len(words))
    rows = {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
    return any(tuple(rest[i : i + n]) in rows for i in range(len(rest) - n + 1))


def test_sums_find_what_plain_comparison_finds() -> None:
    draw = random.Random(0)
    vocabulary = ["a", "b", "c"]
    texts = [" ".join(draw.choices(vocabulary, k=draw.randrange(8, 20))) for _ in range(60)]
    documents = [" ".join(draw.choices(vocabulary, k=3000)) for _ in range(5)]
    documents += [f"x {texts[3]} y", texts[7], "", "a"]
    grams = Grams(texts)
    hits = 0
    for document in documents:
        expected = {i for i, text in enumerate(texts) if plainly(text, document)}
        assert grams.found_in(document) == expected
        hits += len(expected)
    assert 2 <= hits < len(texts) * len(documents) / 2


def test_case_and_signs_do_not_hide_a_text_and_order_counts() -> None:
    text = "The quick brown fox jumps over the lazy dog while nine birds watch it"
    grams = Grams([text])
    assert grams.found_in("Yes: THE QUICK, brown fox -- jumps over the lazy dog; while nine birds watch it!") == {0}
    assert grams.found_in(" ".join(reversed(text.split()))) == set()
    assert grams.found_in(text.replace("fox", "cat").replace("birds", "cats")) == set()


def test_short_items_are_not_told() -> None:
    grams = Grams(["one two three four five six seven", "one two three four five six seven eight"])
    assert grams.too_short == {0}
    assert grams.found_in("zero one two three four five six seven eight nine") == {1}


@pytest.fixture
def corpus(sets: Path, tiny_corpus, tmp_path: Path) -> Path:
    """Return real paragraphs, and among them two questions of LAMBADA's kind in capitals."""
    path = tiny_corpus(tmp_path / "text.jsonl", 20)
    lines = path.read_text().splitlines()
    for row in (sets / "lambada.jsonl").read_text().splitlines()[:2]:
        lines.insert(5, json.dumps({"text": "He read: " + json.loads(row)["text"].upper() + " and slept."}))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_items_in_the_training_text_are_marked(
    corpus: Path, local_model: LocalModel, sets: Path, tmp_path: Path
) -> None:
    prepare([corpus], local_model.tokenizer.folder, tmp_path / "tokens", val_fraction=0.0, workers=1)
    result = ask(local_model, prepare_questions(find_tasks(["lambada"], [])[0], [sets], {}))
    mark_overlaps([result], TokenStore.open(tmp_path / "tokens"))
    assert result.overlaps is not None
    assert [number for number, found in result.overlaps.items() if found] == [0, 1]
    assert len(result.overlaps) == 20


def test_decontaminated_text_has_no_overlap_and_keeps_the_rest(
    corpus: Path, run_cli, model_folder: Path, sets: Path, tmp_path: Path
) -> None:
    words = ("prepare", corpus, "--tokenizer", model_folder, "--val-fraction", 0, "--out", tmp_path / "clean")
    result = run_cli(*words, "--decontaminate", "lambada,piqa", "--data", sets)
    assert result.returncode == 0, result.stderr
    assert "left out: 2 documents" in result.stderr
    manifest = TokenStore.open(tmp_path / "clean").manifest
    splits, read = manifest.splits, manifest.reading
    assert read is not None
    assert (read.documents, read.left_out) == (20, {"documents that share text with the sets": 2})
    assert sum(split.documents for split in splits.values()) == 20
    shown = run_cli("eval", model_folder, "--tasks", "lambada", "--data", sets, "--store", tmp_path / "clean")
    assert "0/20" in shown.stdout
    again = run_cli(*words[:-1], tmp_path / "plain")
    assert again.returncode == 0
    shown = run_cli("eval", model_folder, "--tasks", "lambada", "--data", sets, "--store", tmp_path / "plain")
    assert "/20" in shown.stdout
    assert "0/20" not in shown.stdout
    wrong = run_cli(*words, "--decontaminate", "lambadda", "--data", sets)
    assert (wrong.returncode, "did you mean 'lambada'" in wrong.stderr) == (2, True)


def test_pieces_of_a_long_document(local_model: LocalModel, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(
        ("river stone bread quiet morning lamp\n" * 40_000) + "bad words\n" + "walks on\n" * 200_000
    )
    store = prepare(
        [tmp_path / "long.txt"],
        local_model.tokenizer.folder,
        tmp_path / "tokens",
        val_fraction=0.0,
        workers=1,
        leaves_out=lambda text: "bad words" in text,
    )
    split = store.split("train")
    ids = split.read(0, split.n_tokens)
    bos, eos = local_model.tokenizer.bos_id, local_model.tokenizer.eos_id
    assert split.n_documents == 1
    assert (ids[0], ids[-1], int((ids == bos).sum()), int((ids == eos).sum())) == (bos, eos, 1, 1)
    assert store.manifest.reading is not None
    assert store.manifest.reading.left_out == {"parts of documents that share text with the sets": 1}
    assert 0 < store.manifest.splits["train"].text_bytes < (tmp_path / "long.txt").stat().st_size
