"""Requests as people make them at first: what is wrong is said so that it can be put right."""

import pytest
from running_server import RunningServer


def test_offsets_count_characters_however_they_are_cut(server: RunningServer) -> None:
    text = "Union \u2615 of \U0001d11e the people, na\u00efve"
    choice = server.ask("/v1/completions", prompt=text, echo=True, logprobs=0, max_tokens=0)["choices"][0]
    names, places = choice["logprobs"]["tokens"][1:], choice["logprobs"]["text_offset"][1:]
    assert choice["text"] == text
    assert any(name.startswith("bytes:") for name in names)
    for name, place in zip(names, places, strict=True):
        assert name.startswith("bytes:") or text[place : place + len(name)] == name


def test_both_names_of_the_token_limit(server: RunningServer) -> None:
    for path, more in (
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}),
    ):
        for limits in ({"max_tokens": 3}, {"max_completion_tokens": 3}, {"max_tokens": 9, "max_completion_tokens": 3}):
            assert server.ask(path, **more, **limits, temperature=0)["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("prompt", "param", "word"),
    [
        (["x"] * 129, "prompt", "at most 128"), ([], "prompt", "at least 1"), ([-1], "prompt[0]", "greater than"),
        ([["a"]], "prompt[0][0]", "integer"), (["a", [1]], "prompt[1]", "string"), ({"text": "x"}, "prompt", "string"),
        ([3.5], "prompt[0]", ""),
    ],
)  # fmt: skip
def test_a_field_of_several_forms_is_measured_by_the_one_that_was_meant(
    server: RunningServer, prompt: object, param: str, word: str
) -> None:
    problem = server.post("/v1/completions", prompt=prompt, max_tokens=1).json()["error"]
    assert problem["param"] == param
    assert word in problem["message"]


def test_an_item_of_another_kind_is_named(server: RunningServer) -> None:
    item = {"type": "function_call_output", "call_id": "1", "output": "x"}
    assert server.post("/v1/responses", input=[item]).json()["error"]["param"] == "input[0].role"
    assert "at least 1" in server.post("/v1/responses", input=[]).json()["error"]["message"]


def test_json_must_be_called_so(server: RunningServer) -> None:
    for headers in ({}, {"content-type": "application/x-www-form-urlencoded"}):  # the second is curl's default
        response = server.client.post("/v1/completions", content=b'{"prompt": "Hi"}', headers=headers)
        assert response.status_code == 400
        assert "content-type: application/json" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/completions", "prompt_logprobs", 2), ("/v1/completions", "min_tokens", 5),
        ("/v1/completions", "stop_token_ids", [2]), ("/v1/completions", "structured_outputs", {"choice": ["a"]}),
        ("/v1/responses", "top_logprobs", 2), ("/v1/responses", "include", ["message.output_text.logprobs"]),
        ("/v1/responses", "stop", "x"), ("/v1/responses", "max_tokens", 4), ("/v1/responses", "prompt", {"id": "x"}),
        ("/v1/responses", "response_format", {"type": "json_object"}),
    ],
)  # fmt: skip
def test_nothing_is_lost_in_silence(server: RunningServer, path: str, field: str, value: object) -> None:
    body = {"input": "Hi"} if path == "/v1/responses" else {"prompt": "Hi"}
    response = server.post(path, **{**body, field: value})
    assert (response.status_code, response.json()["error"]["param"]) == (400, field)
    assert server.ask(path, **{**body, field: None, "max_output_tokens": 2, "max_tokens": None})


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/models/tiny", "/metrics", "/run", "/"])
def test_head_tells_what_get_would(server: RunningServer, path: str) -> None:
    head, get = server.client.head(path), server.client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def test_another_method_is_told_which_there_are(server: RunningServer) -> None:
    for method, path, allowed in (
        ("GET", "/v1/completions", "POST"), ("PUT", "/v1/models", "GET"), ("OPTIONS", "/tokenize", "POST")
    ):  # fmt: skip
        response = server.client.request(method, path)
        assert (response.status_code, response.headers["allow"]) == (405, allowed)
    assert server.client.post("/nothing").status_code == server.client.get("/nothing").status_code == 404
