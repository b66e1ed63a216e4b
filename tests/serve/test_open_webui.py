"""Open WebUI's requests, as its routers openai.py and tasks.py send them; the package, 106 MB, is not run."""

from __future__ import annotations

import json

import pytest
from running_server import RunningServer

HEADERS = {"Authorization": "Bearer none", "Content-Type": "application/json"}
ASKED = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Who are you?"},
]


def data_of(body: str) -> list[str]:
    """Return what follows `data: ` in each line, as the chat page's reader does: other lines are passed over."""
    return [line.removeprefix("data: ") for line in body.split("\n") if line.startswith("data: ")]


def test_a_connection_is_verified_and_lists_models(server: RunningServer):
    answer = server.client.get("/v1/models", headers=HEADERS)
    assert answer.status_code == 200
    assert [model["id"] for model in answer.json()["data"]] == ["tiny"]


@pytest.mark.parametrize("with_usage", [True, False])
def test_a_message_is_streamed(server: RunningServer, with_usage: bool):
    body = {"stream": True, "model": "tiny", "messages": ASKED, "temperature": 0.8, "max_tokens": 12, "user": "a1",
            "stop": ["\u0000"], "seed": 1, "frequency_penalty": 0, "logit_bias": {}, "tools": None}  # fmt: skip
    if with_usage:
        body["stream_options"] = {"include_usage": True}
    answer = server.client.post("/v1/chat/completions", json=body, headers=HEADERS)
    assert answer.status_code == 200
    assert "text/event-stream" in answer.headers["content-type"]
    *events, last = data_of(answer.text)
    assert last == "[DONE]"
    found = [json.loads(event) for event in events]
    text = "".join(one["choices"][0]["delta"].get("content") or "" for one in found if one["choices"])
    whole = server.ask("/v1/chat/completions", **{**body, "stream": False, "stream_options": None})
    assert text == whole["choices"][0]["message"]["content"]
    assert ("usage" in found[-1] and found[-1]["usage"]["completion_tokens"] == 12) == with_usage


@pytest.mark.parametrize("limit", [{"max_completion_tokens": 1000}, {}], ids=["title", "tags and follow-ups"])
def test_a_task_in_the_background_is_answered_whole(server: RunningServer, limit: dict[str, int]):
    """The limit may be above the model's context: an answer ends there at the latest."""
    messages = [{"role": "user", "content": "### Task:\nGenerate a concise title.\n### Chat History:\nHello"}]
    body = {"model": "tiny", "messages": messages, "stream": False, **limit}
    answer = server.client.post("/v1/chat/completions", json=body, headers=HEADERS)
    assert answer.status_code == 200
    (choice,) = answer.json()["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("stop", "length")
    assert answer.json()["usage"]["total_tokens"] <= 512


def test_responses_instead_of_chat(server: RunningServer):
    body = {"model": "tiny", "input": "Hello", "stream": True, "max_output_tokens": 8, "instructions": "Be brief."}
    answer = server.client.post("/v1/responses", json=body, headers=HEADERS)
    kinds = [json.loads(event)["type"] for event in data_of(answer.text)]
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")


def test_what_it_may_also_ask_is_refused_in_words(server: RunningServer):
    answer = server.client.post("/v1/embeddings", json={"model": "tiny", "input": ["a"]}, headers=HEADERS)
    assert answer.status_code == 404
    assert "embeddings" in answer.json()["error"]["message"]
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": image}]}
    refused = server.client.post("/v1/chat/completions", json=body, headers=HEADERS)
    assert refused.status_code == 400
    assert "text alone" in refused.json()["error"]["message"]
