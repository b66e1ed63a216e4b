"""A foreign tokenizer.json can hang, grow without end or bring Rust down: it is refused in words, and soon."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mini_llm.errors import UserError
from mini_llm.tokenizer import trial
from mini_llm.tokenizer.tokenizer import Tokenizer

FAR = 4_000_000_000
Change = Callable[[dict[str, Any]], None]


def split_at(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


HOSTILE: dict[str, Change] = {
    "an id of four billion": lambda spec: spec["model"]["vocab"].update({"far": FAR}),
    "an id below zero": lambda spec: spec["model"]["vocab"].update({"far": -1}),
    "an id in words": lambda spec: spec["model"]["vocab"].update({"far": "seven"}),
    "an added id of four billion": lambda spec: spec["added_tokens"].append({**spec["added_tokens"][0], "id": FAR}),
    "an added token of nothing": lambda spec: spec["added_tokens"].append({**spec["added_tokens"][0], "content": ""}),
    "a template with an id of its own": lambda spec: spec["post_processor"]["special_tokens"]["<s>"].update(ids=[FAR]),
    "a pattern that backtracks for ever": lambda spec: spec.update(pre_tokenizer=split_at("(a+)+$")),
    "one more": lambda spec: spec.update(pre_tokenizer=split_at(r"(.*?,){30}P|(\s*)*(\w|\d)*x\b(a|a)*$")),
    "a pattern that runs away on its own letters": lambda spec: spec.update(
        pre_tokenizer=split_at(r"[Жy]*[Жz]*[Жw]*(?=\d|\s)")
    ),
    "a word that doubles": lambda spec: spec.update(
        normalizer={"type": "Sequence", "normalizers": [replace("zebra", "zebrazebra")] * 12}
    ),
    "a text that doubles": lambda spec: spec.update(
        normalizer={"type": "Sequence", "normalizers": [replace("q", "qq")] * 60}
    ),
    "a rule that is no rule": lambda spec: spec.update(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "/////w=="}
    ),
    "merges of nothing": lambda spec: spec["model"].update(merges=[["no", "thing"]]),
    "no model": lambda spec: spec.pop("model"),
    "a vocabulary of numbers": lambda spec: spec["model"].update(vocab=7),
    "a unigram whose unknown is beyond": lambda spec: spec.update(
        model={"type": "Unigram", "unk_id": 9, "vocab": [["a", -1.0]], "byte_fallback": False}
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tokenizers_are_refused(
    bpe: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(trial, "COMPUTE_SECONDS", 1)
    spec = json.loads(bpe.as_json())
    HOSTILE[name](spec)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(spec))
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer that can be used: "):
        Tokenizer.load(tmp_path)


def test_ours_need_no_trial(ours: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(trial, "_try", lambda _: pytest.fail("a process was started"))
    assert Tokenizer.load(ours.folder).fingerprint == ours.fingerprint


def test_a_foreign_one_is_tried_once(llama2: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    tried: list[bytes] = []
    monkeypatch.setattr(trial, "_try", tried.append)
    for _ in range(3):
        Tokenizer.load(llama2.folder)
    assert tried == [(llama2.folder / "tokenizer.json").read_bytes()]


def test_a_home_that_cannot_be_written_is_no_obstacle(
    llama2: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert Tokenizer.load(llama2.folder).encode("a word") == llama2.encode("a word")
