"""OpenAI's own client, in strict mode: every field that its types require is there, and every error has its class."""

import openai
import pytest
from running_server import RunningServer

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key="none", _strict_response_validation=True)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("logprobs", [{}, {"logprobs": True, "top_logprobs": 2}])
@pytest.mark.parametrize("stop", [None, "e"])
def test_chat(client: openai.OpenAI, n: int, logprobs: dict, stop: str | None) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "max_completion_tokens": 12, "n": n, "stop": stop, "seed": 1}
    whole = client.chat.completions.create(**body, **logprobs)
    assert [choice.index for choice in whole.choices] == list(range(n))
    assert whole.usage is not None
    said = ["", ""]
    for chunk in client.chat.completions.create(
        **body, **logprobs, stream=True, stream_options={"include_usage": True}
    ):
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
        last = chunk
    assert [choice.message.content for choice in whole.choices] == said[:n]
    assert last.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens


@pytest.mark.parametrize("logprobs", [None, 2])
def test_completions(client: openai.OpenAI, logprobs: int | None) -> None:
    body = {"model": "tiny", "prompt": ["Hello", "Well"], "max_tokens": 6, "seed": 1, "logprobs": logprobs}
    whole = client.completions.create(**body)
    said = ["", ""]
    lenient = openai.OpenAI(base_url=str(client.base_url), api_key="none")  # its type forbids the null of a part
    for chunk in lenient.completions.create(**body, stream=True):
        for choice in chunk.choices:
            said[choice.index] += choice.text
    assert [choice.text for choice in whole.choices] == said


def test_responses(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="tiny", input="Hi", max_output_tokens=5)
    assert whole.output_text
    with client.responses.stream(
        model="tiny", input=[{"role": "user", "content": "Hi"}], max_output_tokens=5
    ) as stream:
        kinds = [event.type for event in stream]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.incomplete"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "mini-llm"


def test_errors_have_their_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="none", messages=MESSAGES)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="tiny", messages=MESSAGES, tools=[{"type": "function"}])  # type: ignore
    assert wrong.value.param == "tools"


def test_a_schema_gives_its_type(client: openai.OpenAI) -> None:
    from pydantic import BaseModel

    class Answer(BaseModel):
        right: bool

    parsed = client.chat.completions.parse(model="tiny", messages=MESSAGES, response_format=Answer, max_tokens=60)
    assert isinstance(parsed.choices[0].message.parsed, Answer)
