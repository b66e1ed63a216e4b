"""`eval --chat` counts what a reader would: right answers, ends, repetitions, and what was forgotten."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from mini_llm import log
from mini_llm.checkpoint import save_model
from mini_llm.data.built_in import built_in_corpus, is_built_in
from mini_llm.data.prepare import prepare
from mini_llm.errors import UserError
from mini_llm.eval.chat import Answered, ChatWishes, _addresses, ask_all, evaluate_chat
from mini_llm.eval.chat_items import PROMPTS, Item, distinct_2, is_repetitive, items
from mini_llm.eval.chat_report import markdown, table
from mini_llm.inference.generate import Generator
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.chat import Message, encode_chat
from mini_llm.tokenizer.train import train_tokenizer
from mini_llm.tune.skills import SKILLS, Exercise, Material
from mini_llm.tune.skills.addresses import FINISH, FIRST, YEAR
from mini_llm.tune.skills.forms import FORMS

SHAPE = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=340, max_seq_len=512)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, a base, and a model whose weights are a little off the base's."""
    folder = tmp_path_factory.mktemp("chat")
    for number in range(30):
        (folder / f"{number}.txt").write_text("The treaty was signed, and the union is at peace. " * 20)
    texts = [(folder / "0.txt").read_text()] * 3
    tokenizer = train_tokenizer(
        texts, folder / "tok", vocab_size=SHAPE.vocab_size, model_type="bpe", sample_bytes=10**6, seed=0
    )
    prepare([folder], folder / "tok", folder / "tokens", val_fraction=0.2)
    for name, noise in (("base", 0.0), ("run/checkpoints/step-00000001", 0.01)):
        model = Transformer(SHAPE)
        model.init_weights(seed=0)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += noise * torch.randn_like(parameter)
        save_model(folder / name, model, tokenizer)
    record = f"base: {folder / 'base'}\ndata_dir: {folder / 'tokens'}\n"
    (folder / "run/config.yaml").write_text(record, encoding="utf-8")
    (folder / "run/latest").symlink_to("checkpoints/step-00000001")
    return folder


def test_the_command_measures_shows_and_keeps(folders: Path, run_cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    chat = tmp_path / "chat.jsonl"
    rows = [{"question": f"Spell {w}.", "answer": " ".join(w)} for w in ("ant", "bee", "cat")]
    chat.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["eval", folders / "run", "--chat", "--limit", "2", "--data", chat, "--samples", "--dtype", "float32"]
    result = run_cli(*words, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    measured = found["mini_llm"]["chat"]
    assert measured["answers"]["n"] == 3
    assert measured["answers"]["bits_per_byte"] == pytest.approx(_bits_by_hand(folders, rows), rel=1e-4)
    assert measured["forgetting"]["change"] == pytest.approx(
        measured["forgetting"]["now"] / measured["forgetting"]["base"] - 1
    )
    assert measured["forgetting"]["now"] != measured["forgetting"]["base"]
    assert measured["form"]["prompts"]["n"] == len(PROMPTS) == len(found["mini_llm"]["prompts"]) == 20
    assert measured["words"] == "of the corpus"
    assert set(measured["groups"]["forms of IFEval-lite"]["forms"]) == set(FORMS)
    assert len(FORMS) == 12
    assert f"chat_{'spelling'}_new_arguments" in found["results"]
    assert measured["groups"]["after other turns"]["n"] == measured["groups"]["the same, each alone"]["n"]
    kept = sorted((folders / "run/eval").glob("chat_*"))
    assert json.loads(kept[0].read_text(encoding="utf-8"))["mini_llm"]["chat"] == measured
    lines = [json.loads(line) for line in kept[1].read_text(encoding="utf-8").splitlines()]
    assert len(lines) == measured["form"]["all"]["n"]
    assert not [group for group in measured["groups"] if "addresses" in group]  # whose text this is not
    answers = [Answered(Item("prompts", [Message("user", question)]), "Yes.\n", True) for question in PROMPTS]
    shown = markdown(measured, answers)
    assert "| spelling" in shown
    assert "facts of the addresses" not in shown
    assert measured["form"]["all"]["n"] == 20 + sum(group["n"] for group in measured["groups"].values())
    assert f"{measured['form']['all']['n']:,} answers |" in shown
    for question in PROMPTS:
        assert f"> {question}\nYes." in shown


def _bits_by_hand(folders: Path, rows: list[dict[str, str]]) -> float:
    """Each answer's loss, alone in a row."""
    generator = Generator(folders / "run", device="cpu", dtype="float32")
    nats, n_bytes = 0.0, 0
    for row in rows:
        asked = encode_chat(generator.tokenizer, [Message("user", row["question"])])
        whole = [*asked, *generator.tokenizer.encode(row["answer"]), generator.tokenizer.special_tokens["<|end|>"]]
        log_p = torch.log_softmax(generator.model(torch.tensor([whole]))[0].float(), -1)
        nats -= sum(log_p[i - 1, whole[i]].item() for i in range(len(asked), len(whole)))
        n_bytes += len(row["answer"].encode())
    return nats / math.log(2) / n_bytes


def test_addresses_are_asked_where_the_text_is_theirs(folders: Path, run_cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    store = Path(shutil.copytree(folders / "tokens", tmp_path / "tokens"))
    manifest = json.loads((store / "manifest.json").read_text(encoding="utf-8"))
    speeches = sorted(built_in_corpus().glob("*.txt"))
    # As on another machine, where the package lay elsewhere.
    manifest["sources"] = [{"path": f"/elsewhere/{path.name}", "bytes": path.stat().st_size} for path in speeches]
    (store / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    words = ["eval", folders / "run", "--chat", "--limit", "3", "--store", store, "--out", tmp_path / "out"]
    result = run_cli(*words, "--samples")
    assert result.returncode == 0, result.stderr
    kept = json.loads(next((tmp_path / "out").glob("chat_2*.json")).read_text(encoding="utf-8"))
    groups = kept["mini_llm"]["chat"]["groups"]
    n = kept["mini_llm"]["chat"]["form"]["all"]["n"]
    assert n == 20 + sum(group["n"] for group in groups.values())
    assert f"{n:,} answers |" in result.stdout
    lines = [json.loads(line) for line in next((tmp_path / "out").glob("*.jsonl")).read_text("utf-8").splitlines()]
    for side, row in (("taught", "facts of the addresses, as taught"), ("new", "... in new words")):
        right = groups[f"addresses, {side} phrasings"]
        assert right["n"] == kept["results"][f"chat_addresses_{side}_phrasings"]["n"] == 3
        assert [line.split("|")[3].strip() for line in result.stdout.splitlines() if f"| {row} " in line] == ["3"]
        begins = [
            words.split("{}")[0] for one in (YEAR, FIRST, FINISH) for words in (one.new if side == "new" else one.train)
        ]
        asked = [line["messages"][-1]["content"] for line in lines if line["group"] == f"addresses, {side} phrasings"]
        assert all(question.startswith(tuple(begins)) for question in asked)
    other = run_cli(*words, "--text", folders / "0.txt", "--json")
    assert "addresses, taught phrasings" not in json.loads(other.stdout)["mini_llm"]["chat"]["groups"]


def test_the_built_in_corpus_is_known_by_its_files(folders: Path) -> None:
    corpus = built_in_corpus()
    files = [(str(path), path.stat().st_size) for path in corpus.glob("*.txt")]
    assert is_built_in(reversed(files))
    assert not is_built_in(files[1:])
    assert not is_built_in([(files[0][0], 1), *files[1:]])
    assert not is_built_in([])
    run = str(folders / "run")
    assert len(_addresses(ChatWishes(run, corpus=[str(corpus)]), None)) == len(files)
    assert _addresses(ChatWishes(run, corpus=["https://example.org/a.txt"]), None) == []
    assert _addresses(ChatWishes(run), None) == []


def test_an_answer_counts_only_if_it_ended() -> None:
    exercise = Exercise([Message("user", "Spell cat.")], "c a t", "letters", "spelling")
    item = Item("spelling", exercise.messages, exercise)
    given = (("c a t", True), ("c a t", False), ("c a", True))
    assert [Answered(item, answer, stopped).score for answer, stopped in given] == [1.0, 0.0, 0.0]
    assert Answered(Item("prompts", exercise.messages), "c a t", True).score == 0.0


def test_the_same_questions_each_time_and_of_each_skill_two_kinds() -> None:
    material = Material("Bo")
    asked = items(material, 5)
    assert asked == items(material, 5)
    groups = [item.group for item in asked]
    for skill in set(SKILLS) - {"identity"}:
        assert groups.count(f"{skill}, new arguments") == groups.count(f"{skill}, new phrasings") == 5
    late, alone = ([i for i in asked if i.group == group] for group in ("after other turns", "the same, each alone"))
    assert len(late) == len(alone) >= 8
    for item, single in zip(late, alone, strict=True):
        assert item.messages[-1] == single.messages[-1]
        assert 3 <= len(item.messages) <= 7
        assert item.exercise.answer == single.exercise.answer
    assert groups.count("identity, new phrasings") == 20
    assert groups.count("forms of IFEval-lite") == 60
    names = [item.exercise.answer for item in asked if item.group == "identity, new phrasings" and item.exercise]
    assert all("Bo" in name for name in names)


def test_answers_are_those_that_each_question_gets_alone(folders: Path) -> None:
    generator = Generator(folders / "run", device="cpu", dtype="float32")
    generator.ready_to_chat()
    asked = [Item("x", [Message("user", word)]) for word in ("treaty", "peace", "union")]
    together = ask_all(generator, asked)
    assert [a.answer for a in together] == [ask_all(generator, [item])[0].answer for item in asked]


def test_a_question_beyond_the_context_has_no_answer_and_the_others_have_theirs(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = Generator(folders / "run", device="cpu", dtype="float32")
    generator.ready_to_chat()
    short, long = (Item("x", [Message("user", text)]) for text in ("treaty", "treaty " * 900))
    answers = ask_all(generator, [short, long])
    assert answers[0] == ask_all(generator, [short])[0]
    assert answers[1] == Answered(long, "", False)
    assert "1 of 2 questions do not fit into the model's context of 512 tokens" in capsys.readouterr().err


def test_repetition_and_variety() -> None:
    assert is_repetitive("so be it now " * 3)
    assert not is_repetitive("so be it now " * 2)
    assert not is_repetitive("a b c " * 2)
    assert distinct_2(["a b a b"]) == pytest.approx(2 / 3)
    assert distinct_2([]) == 0.0


def test_tables_are_markdown() -> None:
    assert table(("A", "B"), [("x|y", "1")]) == "| A    |   B |\n| ---- | --: |\n| x\\|y |   1 |"


def test_the_runs_own_text_is_left_out_where_it_was_changed(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Path(shutil.copytree(folders / "tokens", tmp_path / "tokens"))
    run = Path(shutil.copytree(folders / "run", tmp_path / "run", symlinks=True))
    (run / "config.yaml").write_text(f"base: {folders / 'base'}\ndata_dir: {store}\n", encoding="utf-8")
    with (store / "train-00000.bin").open("r+b") as file:
        file.write(b"\x07")
    said: list[str] = []
    monkeypatch.setattr(log, "warn", said.append)
    found, _ = evaluate_chat(ChatWishes(str(run), n=1))
    assert found["forgetting"] is None
    assert "train-00000.bin" in next(line for line in said if "left out" in line)


def test_what_is_wrong_is_said(folders: Path, run_cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "robot", "content": "x"}]}\n', encoding="utf-8")
    run = str(folders / "run")
    for model, changes, message in (
        ("http://127.0.0.1:1", {}, "needs the model's folder"),
        (str(tmp_path / "none"), {}, "none"),
        (run, {"conversations": [str(bad)]}, "bad.jsonl:1: unknown role 'robot'"),
        (run, {"store": tmp_path / "gone"}, "gone"),
        (run, {"base": str(tmp_path / "gone")}, "gone"),
        (run, {"corpus": [str(tmp_path / "gone.txt")]}, "gone.txt"),
    ):
        with pytest.raises(UserError) as caught:
            evaluate_chat(ChatWishes(model, n=1, **changes))  # type: ignore[arg-type]
        assert message in caught.value.message
    store = Path(shutil.copytree(folders / "tokens", tmp_path / "tokens"))
    with (store / "val-00000.bin").open("r+b") as file:
        file.write(b"\x07")
    with pytest.raises(UserError, match=r"val-00000\.bin .* changed"):
        evaluate_chat(ChatWishes(run, n=1, store=store))
    result = run_cli("eval", run, "--chat", "--tasks", "piqa")
    assert result.returncode == 2
    assert "its own questions" in result.stderr
