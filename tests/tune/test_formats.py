"""Every format of conversations becomes the same messages; every fault is named with file and line."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mini_llm.errors import UserError
from mini_llm.tune.formats import conversation_of, read_conversations

Write = Callable[..., Path]
U, A, S = ("user", "Hi?"), ("assistant", "Hello."), ("system", "Be brief.")

SAME: dict[str, dict[str, Any]] = {
    "openai": {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]},
    "nulls of Arrow": {
        "messages": [
            {"role": "user", "content": "Hi?", "tool_calls": None},
            {"role": "assistant", "content": "Hello.", "name": None},
        ],
        "tools": None,
    },
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "?"}]},
            {"role": "assistant", "content": "Hello."},
        ]
    },
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]},
    "names of bots": {"conversations": [{"from": "Human", "value": "Hi?"}, {"from": "bot", "value": "Hello."}]},
    "minimind": {"conversations": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]},
    "alpaca": {"instruction": "Hi?", "input": "", "output": "Hello."},
    "dolly": {"instruction": "Hi?", "context": "", "response": "Hello.", "category": "chat"},
    "completion": {"prompt": "Hi?", "completion": "Hello."},
    "completion of messages": {
        "prompt": [{"role": "user", "content": "Hi?"}],
        "completion": [{"role": "assistant", "content": "Hello."}],
    },
    "question": {"question": "Hi?", "answer": "Hello."},
    "prompt and answer": {"prompt": "Hi?", "answer": "Hello."},
    "verifiable": {"messages": [{"role": "user", "content": "Hi?"}], "answer": "Hello.", "check": "exact"},
}


@pytest.mark.parametrize("name", SAME)
def test_all_formats_say_the_same(name: str, write_rows: Write) -> None:
    (conversation,) = read_conversations(write_rows(SAME[name]))
    assert [(m.role, m.content) for m in conversation.messages] == [U, A]
    assert conversation.learned == [False, True]
    assert conversation.place.endswith("chat.jsonl:1")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": r, "content": c} for r, c in (("developer", S[1]), U, A)]},
        {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}], "system": S[1]},
        {"instruction": "Hi?", "output": "Hello.", "system": S[1]},
        {"system": S[1], **SAME["openai"]},
        {"system": S[1], "messages": [{"role": r, "content": c} for r, c in (S, U, A)]},
        {"system_prompt": S[1], **SAME["question"]},
        {"system": S[1], **SAME["completion"]},
        {"system": S[1], **SAME["completion of messages"]},
        {"system": S[1], **SAME["dolly"]},
    ],
)
def test_system_messages(row: dict[str, Any], write_rows: Write) -> None:
    (conversation,) = read_conversations(write_rows(row))
    assert [(m.role, m.content) for m in conversation.messages] == [S, U, A]


def test_a_text_that_is_asked_about_stands_behind_the_question(write_rows: Write) -> None:
    (conversation,) = read_conversations(write_rows({"context": "Ann said hello.", **SAME["question"]}))
    assert conversation.messages[0].content == "Hi?\n\nAnn said hello."


def test_results_of_several_calls_are_one_turn_and_a_list_of_tools_is_told(write_rows: Write, capsys) -> None:  # type: ignore[no-untyped-def]
    calls = [{"function": {"name": "sum", "arguments": {"n": n}}} for n in (1, 2)]
    turns = [
        {"role": "user", "content": "Hi?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "one"},
        {"role": "tool", "content": "two"},
        {"role": "assistant", "content": "Hello."},
    ]
    found = list(read_conversations(write_rows(*[{"messages": turns, "tools": [{"type": "function"}]}] * 3)))
    assert [m.content for m in found[0].messages if m.role == "user"] == ["Hi?", "one\ntwo"]
    assert capsys.readouterr().err.count("the list of tools is not read") == 1


def test_earlier_answers_of_a_verifiable_row_are_learned_where_a_weight_says_so(write_rows: Write) -> None:
    asked = {"role": "user", "content": "b?"}
    path = write_rows(
        {"messages": [Q, ANSWER, asked], "answer": "b"},
        {"messages": [Q, {**ANSWER, "weight": 1}, asked], "answer": "b"},
        {"messages": [Q, {**ANSWER, "weight": 0}, asked], "answer": "b"},
    )
    assert [c.learned for c in read_conversations(path)] == [
        [False, False, False, True],
        [False, True, False, True],
        [False, False, False, True],
    ]


def test_history_input_weight_and_tools(write_rows: Write) -> None:
    (alpaca,) = read_conversations(
        write_rows({"instruction": "Add.", "input": "1 2", "output": "3", "history": [["a", "b"]]})
    )
    assert [m.content for m in alpaca.messages] == ["a", "b", "Add.\n\n1 2", "3"]
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    turns = [
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "2", "weight": 0},
    ]
    (tools,) = read_conversations(write_rows({"messages": turns}))
    assert tools.messages[1].content == '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    assert [m.role for m in tools.messages] == ["user", "assistant", "user", "assistant"]
    assert tools.learned == [False, True, False, False]


Q = {"role": "user", "content": "a"}
ANSWER = {"role": "assistant", "content": "b", "from": "gpt", "value": "b"}
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "preference": ({"prompt": "a", "chosen": "b", "rejected": "c"}, "pairs of preferences"),
    "kto": ({"prompt": "a", "completion": "b", "label": True}, "KTO"),
    "text": ({"text": "a"}, "mini-llm prepare"),
    "nothing": ({"x": 1}, "no conversation in the keys x"),
    "role": ({"messages": [{"role": "usr", "content": "a"}]}, "did you mean 'user'"),
    "no answer": ({"messages": [{"role": "user", "content": "a"}]}, "nothing to learn"),
    "first": ({"messages": [{"role": "assistant", "content": "a"}]}, "answers nobody"),
    "twice": ({"messages": [{"role": "user", "content": "a"}] * 2}, "two turns of the user"),
    "empty": ({"question": "a", "answer": " "}, "an empty answer"),
    "number": ({"question": "a", "answer": 3}, "not a string"),
    "picture": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
    "null": ({"messages": [{"role": "user", "content": None}, ANSWER]}, "a message of the user has no content"),
    "null part": ({"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}, ANSWER]}, "NoneType"),
    "null value": ({"conversations": [{"from": "human", "value": None}, ANSWER]}, "a message of the user has no value"),
    "deep": ({"messages": "[" * 50_000}, "not a list of messages"),
    "history": ({"instruction": "a", "output": "b", "history": 5}, "history must be pairs"),
    "calls": ({"messages": [Q, {**ANSWER, "tool_calls": 7}]}, "a tool call without the name"),
    "call": ({"messages": [Q, {**ANSWER, "tool_calls": [{"function": "f"}]}]}, "a tool call without the name"),
    "nameless": ({"messages": [Q, {**ANSWER, "tool_calls": [{"function": {"name": ""}}]}]}, "a tool call without"),
    "heavy": ({"messages": [Q, {**ANSWER, "weight": 2}]}, "must be 0 or 1, not 2"),
    "weightless": ({"messages": [Q, {**ANSWER, "weight": math.nan}]}, "must be 0 or 1, not nan"),
    "no list": ({"messages": "hello"}, "not a list of messages"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named_with_their_place(name: str, write_rows: Write) -> None:
    row, words = FAULTS[name]
    with pytest.raises(UserError) as problem:
        list(read_conversations(write_rows(SAME["openai"], row) if "messages" in row else write_rows(row)))
    text = str(problem.value) + (problem.value.hint or "")
    assert words in text
    assert f"chat.jsonl:{2 if 'messages' in row else 1}" in text


CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
WHOLE = [
    *SAME.values(),
    {"messages": [Q, {"role": "assistant", "content": "b", "weight": 1, "tool_calls": [CALL]}]},
    {"instruction": "a", "output": "b", "system": "c", "history": [["d", "e"]]},
]
ODD = [5, 0, 1.5, math.nan, 10**400, True, [], {}, "", "x", "[1]", [1], [[1, 2]], [None], [{}], {"a": 1}]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*at, key)
        yield from places(one, (*at, key))


def test_any_value_may_be_of_any_type() -> None:
    for row in WHOLE:
        for *above, last in places(row):
            for odd in ODD:
                changed = inside = copy.deepcopy(row)
                for key in above:
                    inside = inside[key]
                inside[last] = odd
                with suppress(UserError):
                    found = conversation_of(changed, "chat.jsonl:1")
                    assert all(isinstance(message.content, str) for message in found.messages)


def test_one_format_a_file(write_rows: Write) -> None:
    with pytest.raises(UserError, match=r"chat.jsonl:2: other keys than .*chat.jsonl:1"):
        list(read_conversations(write_rows(SAME["openai"], SAME["alpaca"])))


@pytest.mark.parametrize(
    ("line", "words"), [(b"{", "not JSON"), (b"[1]", "not an object"), (b'{"a": "\xff"}', "UTF-8")]
)
def test_broken_lines(line: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_bytes(json.dumps(SAME["openai"]).encode() + b"\n\n" + line + b"\n")
    with pytest.raises(UserError, match=f"chat.jsonl:3: .*{words}"):
        list(read_conversations(path))


def test_turns_are_joined_when_asked(write_rows: Write) -> None:
    turns = [{"role": "user", "content": c} for c in "ab"] + [{"role": "assistant", "content": "c"}]
    (conversation,) = read_conversations(write_rows({"messages": turns}), merge_turns=True)
    assert [m.content for m in conversation.messages] == ["a\nb", "c"]


def test_parquet_and_packed_files(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    import gzip

    import pyarrow

    parquet.write_table(pyarrow.Table.from_pylist([SAME["openai"], SAME["parts"]][:1]), tmp_path / "a.parquet")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps(SAME["sharegpt"]) + "\n")
    for name in ("a.parquet", "b.jsonl.gz"):
        (conversation,) = read_conversations(tmp_path / name)
        assert [(m.role, m.content) for m in conversation.messages] == [U, A]
