"""lm-eval's requests to our server give our own scores; with its remote tokenizer, those of texts without BOS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lm_eval_client import LmEvalClient, local_tokenizer, remote_tokenizer

from mini_llm.eval.evaluate import TaskResult, ask, prepare_questions
from mini_llm.eval.language_model import LocalModel
from mini_llm.eval.task import find_tasks

TASKS = {"piqa": "piqa.jsonl", "hellaswag": "hellaswag.jsonl", "lambada_openai": "lambada.jsonl"}


def answers(model: LocalModel, name: str, sets: Path) -> TaskResult:
    (task,) = find_tasks([name], [])
    return ask(model, prepare_questions(task, [], {task.task: sets / TASKS[name]}))


def check(result: TaskResult, client: LmEvalClient) -> None:
    requests = [request for item in result.items for request in item.requests]
    ours = [response for responses in result.responses for response in responses]
    compare(client.loglikelihood(requests), ours)
    assert len(requests) >= 20


def compare(theirs: Sequence[Any], ours: Sequence[Any]) -> None:
    for (value, greedy), (own, own_greedy) in zip(theirs, ours, strict=True):
        assert value == pytest.approx(own, rel=1e-5)
        assert greedy == own_greedy


@pytest.fixture(scope="module")
def wide_model(wide_folder: Path) -> LocalModel:
    return LocalModel.load(wide_folder, device="cpu", dtype="float32")


@pytest.mark.parametrize("name", TASKS)
def test_their_scores_through_our_server_are_ours(
    name: str, server_address: str, wide_folder: Path, wide_model: LocalModel, sets: Path
):
    client = LmEvalClient(server_address, wide_folder.name, local_tokenizer(wide_folder, add_bos_token=True))
    check(answers(wide_model, name, sets), client)


def test_what_they_have_it_write_is_ours(server_address: str, wide_folder: Path, wide_model: LocalModel, sets: Path):
    contexts = [context for item in answers(wide_model, "piqa", sets).items for context, _ in item.requests][:20]
    client = LmEvalClient(server_address, wide_folder.name, local_tokenizer(wide_folder, add_bos_token=True))
    tokenizer = wide_model.tokenizer
    ids = [tokenizer.prefix_ids + tokenizer.encode(context) for context in contexts]
    ours = LocalModel.load(wide_folder, device="cpu", dtype="float32").write(ids, [["\n", "th"]] * 20, 12)
    assert client.generate_until(contexts, ["\n", "th"], 12) == ours
    assert len(set(ours)) > 3


@pytest.mark.parametrize("name", ["piqa", "lambada_openai"])
def test_the_remote_tokenizer_differs_by_bos_alone(
    name: str, server_address: str, wide_folder: Path, wide_model: LocalModel, sets: Path
):
    client = LmEvalClient(server_address, wide_folder.name, remote_tokenizer(server_address))
    bare = LocalModel(wide_model.model, wide_model.tokenizer)
    bare.prefix_ids = []
    check(answers(bare, name, sets), client)
    bos = wide_model.tokenizer.bos_id
    assert not any(request["prompt"][0][0] == bos for request in client.sent)
    with_bos = answers(wide_model, name, sets).responses
    assert with_bos != answers(bare, name, sets).responses


@pytest.mark.parametrize("text", ["a  b \n", "\tÄrger ☃ 漢字", " the", "x</s>y", "\u0000\r\n", "<0x0A>"])
def test_both_tokenizers_of_theirs_cut_alike(text: str, server_address: str, wide_folder: Path):
    remote, local = remote_tokenizer(server_address), local_tokenizer(wide_folder, add_bos_token=False)
    assert remote(text) == local(text)
