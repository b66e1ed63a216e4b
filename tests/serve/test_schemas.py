"""Structured output where it is hard: schemas that cannot be followed, tokens that are ruled out, other routes."""

import json

import openai
import pytest
from pydantic import BaseModel
from running_server import RunningServer

pytest.importorskip("llguidance", reason="the extra `structured` makes the masks: pip install 'mini-llm[structured]'")

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "seed": 1, "max_tokens": 40}


def held_to(schema: object) -> dict:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def pairs(depth: int) -> dict:
    """Return a schema of pairs of pairs: each level doubles what must come."""
    two = {f"a{n}": {"type": "object", "properties": {key: {"$ref": f"#/$defs/a{n + 1}"} for key in "xy"},
                     "required": ["x", "y"], "additionalProperties": False} for n in range(depth)}  # fmt: skip
    return {"$defs": {**two, f"a{depth}": {"type": "null"}}, "$ref": "#/$defs/a0"}


def test_a_schema_that_leads_nowhere_is_refused_at_once(server: RunningServer) -> None:
    circle = {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}
    problem = server.post("/v1/chat/completions", **CHAT, **held_to(circle)).json()["error"]
    assert (problem["param"], problem["type"]) == ("response_format", "invalid_request_error")


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_that_its_schema_lets_down_is_an_error_and_no_half_json(server: RunningServer, stream: bool) -> None:
    response = server.post("/v1/chat/completions", **CHAT, **held_to(pairs(40)), stream=stream)
    assert "schema_too_complex" in response.text
    assert '"finish_reason":"stop"' not in response.text
    assert response.status_code == (200 if stream else 400)
    assert server.metric("requests_running") == 0


def test_ruled_out_tokens_do_not_leave_a_schema_without_words(server: RunningServer) -> None:
    banned = dict.fromkeys(map(str, range(399)), -100)  # the end, digits, all brackets
    choice = server.ask("/v1/chat/completions", **CHAT, **held_to({"const": [1, None]}), logit_bias=banned)["choices"][
        0
    ]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("[1,null]", "stop")


def test_each_choice_has_a_schema_of_its_own(server: RunningServer) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}
    choices = server.ask("/v1/chat/completions", **CHAT, **held_to(schema), n=4)["choices"]
    assert all(2 <= len(json.loads(choice["message"]["content"])) <= 4 for choice in choices)
    assert len({choice["message"]["content"] for choice in choices}) > 1


def test_responses_are_held_to_a_schema_too(server: RunningServer) -> None:
    class Answer(BaseModel):
        right: bool

    client = openai.OpenAI(base_url=server.url, api_key="none", _strict_response_validation=True)
    parsed = client.responses.parse(model="tiny", input="Hi", text_format=Answer, max_output_tokens=60)
    assert isinstance(parsed.output_parsed, Answer)
    wish = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "nonsense"}}}
    assert server.post("/v1/responses", input="Hi", text=wish).json()["error"]["param"] == "text.format"
