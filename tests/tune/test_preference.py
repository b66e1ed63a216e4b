"""Every format of preferences becomes the same pair; every fault is named with file and line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mini_llm.errors import UserError
from mini_llm.tokenizer.chat import Message
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.conversations import ConversationSet
from mini_llm.tune.pair_set import encode_pair, read_pair_set
from mini_llm.tune.preference import Pair, read_pairs

Write = Callable[..., Path]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


GOOD, BAD = [assistant("Hello.")], [assistant("No.")]
HH = "\n\nHuman: Hi?\n\nAssistant: "
SAME: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "Hi?", "chosen": "Hello.", "rejected": "No."},
    "messages": {"prompt": [user("Hi?")], "chosen": GOOD, "rejected": BAD},
    "a prompt of text and messages": {"prompt": "Hi?", "chosen": GOOD, "rejected": BAD},
    "ultrafeedback": {
        "prompt": "Hi?", "chosen": [user("Hi?"), *GOOD], "rejected": [user("Hi?"), *BAD], "score_chosen": 8.5,
    },
    "implicit": {"chosen": [user("Hi?"), *GOOD], "rejected": [user("Hi?"), *BAD]},
    "hh-rlhf": {"chosen": f"{HH}Hello.", "rejected": f"{HH}No."},
    "hh prompt": {"prompt": HH, "chosen": "Hello.", "rejected": "No."},
    "orca": {"system": "", "question": "Hi?", "chosen": "Hello.", "rejected": "No."},
    "llama-factory sharegpt": {
        "conversations": [{"from": "human", "value": "Hi?"}],
        "chosen": {"from": "gpt", "value": "Hello."},
        "rejected": {"from": "gpt", "value": "No."},
    },
    "llama-factory alpaca": {"instruction": "Hi?", "input": "", "chosen": "Hello.", "rejected": "No."},
    "openai and one message each": {"messages": [user("Hi?")], "chosen": GOOD[0], "rejected": BAD[0]},
    "lists in strings": {"prompt": "Hi?", "chosen": GOOD, "rejected": BAD, "tools": None},
}  # fmt: skip


def said(pair: Pair) -> list[list[tuple[str, str, bool]]]:
    return [
        [(m.role, m.content, learned) for m, learned in zip(side.messages, side.learned, strict=True)]
        for side in (pair.chosen, pair.rejected)
    ]


@pytest.mark.parametrize("name", SAME)
def test_all_formats_say_the_same(name: str, write_rows: Write) -> None:
    (pair,) = read_pairs(write_rows(SAME[name]))
    question = ("user", "Hi?", False)
    assert said(pair) == [[question, ("assistant", "Hello.", True)], [question, ("assistant", "No.", True)]]
    assert pair.stopped == (True, True)
    assert pair.place.endswith("chat.jsonl:1")


def test_earlier_turns_are_the_question_and_are_not_learned(write_rows: Write) -> None:
    before = [user("a"), assistant("b"), user("c")]
    row = {"chosen": [*before, assistant("d")], "rejected": [*before, assistant("e")]}
    with_system = {"system": "Be brief.", "question": "a", "chosen": "b", "rejected": "c"}
    (pair,), (other,) = (list(read_pairs(write_rows(r, name=f"{n}.jsonl"))) for n, r in enumerate((row, with_system)))
    assert [flag for *_, flag in said(pair)[0]] == [False, False, False, True]
    assert said(other)[1] == [("system", "Be brief.", False), ("user", "a", False), ("assistant", "c", True)]


def test_packed_files_and_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    import gzip
    import json

    import pyarrow

    parquet.write_table(
        pyarrow.Table.from_pylist([SAME["ultrafeedback"], SAME["ultrafeedback"]]), tmp_path / "a.parquet"
    )
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps(SAME["hh-rlhf"]) + "\n")
    first, second = (list(read_pairs(tmp_path / name)) for name in ("a.parquet", "b.jsonl.gz"))
    assert len(first) == 2
    assert said(first[0]) == said(second[0])


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "equal": ({"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same"),
    "equal conversations": ({"chosen": [user("a"), *GOOD], "rejected": [user("a"), *GOOD]}, "are the same"),
    "nothing in common": ({"chosen": [user("a"), *GOOD], "rejected": [user("b"), *BAD]}, "same question"),
    "answers alone": ({"chosen": "a", "rejected": "b"}, "same question"),
    "no rejected": ({"prompt": "a", "chosen": "b"}, "no rejected in the keys chosen, prompt"),
    "conversations": ({"messages": [user("a"), *GOOD]}, "no chosen and no rejected"),
    "no answer": ({"prompt": "a", "chosen": [user("b")], "rejected": BAD}, "chosen is no answer of the assistant"),
    "ends with a question": (
        {"prompt": "a", "chosen": [*GOOD, user("x")], "rejected": BAD}, "chosen is no answer of the assistant"
    ),
    "prompt ends with an answer": ({"prompt": [user("a"), *GOOD], "chosen": "b", "rejected": "c"}, "does not end with"),
    "empty": ({"prompt": "a", "chosen": "b", "rejected": " "}, "rejected: an empty answer"),
    "number": ({"prompt": "a", "chosen": 3, "rejected": "c"}, "chosen: the conversation is not a list"),
    "role": ({"prompt": "a", "chosen": [{"role": "robot", "content": "b"}], "rejected": "c"}, "unknown role 'robot'"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named_with_their_place(name: str, write_rows: Write) -> None:
    row, words = FAULTS[name]
    with pytest.raises(UserError) as problem:
        list(read_pairs(write_rows(row)))
    assert words in str(problem.value)
    assert "chat.jsonl:1" in str(problem.value)


def test_one_format_a_file(write_rows: Write) -> None:
    with pytest.raises(UserError, match=r"chat.jsonl:2: other keys than .*chat.jsonl:1"):
        list(read_pairs(write_rows(SAME["texts"], SAME["implicit"])))


def test_an_answer_that_was_cut_off_has_no_end_to_learn(chat_tokenizer: Tokenizer, write_rows: Write) -> None:
    """Learning that its end is worse would teach never to stop."""
    row = {"prompt": "Spell ant.", "chosen": [assistant("a n t")], "rejected": [assistant("a a a", stopped=False)]}
    (pair,) = read_pairs(write_rows(row))
    (good, good_learned), (bad, bad_learned) = encode_pair(chat_tokenizer, pair)
    end = chat_tokenizer.special_id("<|end|>")
    assert (good[-1], good_learned[-1]) == (end, True)
    assert bad[-1] != end
    assert bad_learned[-1]
    assert chat_tokenizer.decode([i for i, flag in zip(bad, bad_learned, strict=True) if flag]) == "a a a"


def test_pairs_are_held_out_by_question_and_long_ones_are_counted(chat_tokenizer: Tokenizer, write_rows: Write) -> None:
    rows = [{"prompt": f"Say {i % 40}.", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(120)]
    path = write_rows(*rows, {"prompt": "Say 1.", "chosen": "yes", "rejected": "no " * 200})
    train, val, counts = read_pair_set([str(path)], chat_tokenizer, block_size=63, val_fraction=0.3)
    assert (counts.read, counts.left_out) == (121, 1)
    assert train.n + val.n == 2 * 120
    assert counts.held_out == val.n // 2 > 0

    def questions(pairs: ConversationSet) -> set[str]:
        ends = zip(pairs.starts[:-1:2], pairs.starts[1::2], strict=True)
        return {chat_tokenizer.decode(pairs.ids[a:b].tolist()).split("yes")[0] for a, b in ends}

    assert not questions(train) & questions(val)


def test_messages_are_those_of_the_chat(chat_tokenizer: Tokenizer, write_rows: Write) -> None:
    from mini_llm.tokenizer.chat import encode_chat

    (pair,) = read_pairs(write_rows(SAME["texts"]))
    (ids, _), _ = encode_pair(chat_tokenizer, pair)
    wanted = [Message("user", "Hi?"), Message("assistant", "Hello.")]
    assert ids == encode_chat(chat_tokenizer, wanted, add_generation_prompt=False)
