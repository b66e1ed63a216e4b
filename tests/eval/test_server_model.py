"""A server as the model: its log-probabilities give the scores of the folder behind it, or it is told why not."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from mini_llm.errors import UserError
from mini_llm.eval.evaluate import ask, prepare_questions
from mini_llm.eval.language_model import LocalModel
from mini_llm.eval.server import ServerModel
from mini_llm.eval.task import find_tasks


class StandIn(BaseHTTPRequestHandler):
    """The four answers that an evaluation asks for, computed by a model of this process."""

    model: LocalModel
    echoes = True

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "tiny", "max_model_len": self.model.max_length}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            ids = self.model.tokenizer.encode(body["prompt"])
            prefix = self.model.prefix_ids if body["add_special_tokens"] else []
            self._answer({"tokens": [*prefix, *ids], "count": len(ids), "max_model_len": self.model.max_length})
            return
        assert body["prompt"]
        assert all(isinstance(i, int) for i in body["prompt"])
        if not body.get("echo"):
            (text,) = self.model.write([body["prompt"]], [body.get("stop") or []], body["max_tokens"])
            self._answer({"choices": [{"index": 0, "text": text}]})
            return
        ids = body["prompt"]
        logprobs = self.model.model(torch.tensor([ids]))[0].log_softmax(-1)
        own: list[Any] = [None, *(float(logprobs[i, token]) for i, token in enumerate(ids[1:]))]
        best: list[Any] = [None, *({"x": float(row.max())} for row in logprobs[:-1])]
        entry = {"token_logprobs": [*own, -1.0], "top_logprobs": [*best, {"x": -1.0}]}
        self._answer({"choices": [{"index": 0, "text": "", "logprobs": entry if self.echoes else None}]})

    def _answer(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def address(local_model: LocalModel) -> Iterator[str]:
    StandIn.model, StandIn.echoes = local_model, True
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_scores_are_those_of_the_folder(
    with_tokenizer: bool, address: str, local_model: LocalModel, model_folder: Path, sets: Path
) -> None:
    server = ServerModel(address + "/v1", model_folder if with_tokenizer else None)
    for name in ("piqa", "lambada"):
        questions = prepare_questions(find_tasks([name], [])[0], [sets], {})
        here, there = ask(local_model, questions), ask(server, questions)
        for ours, theirs in zip(here.responses, there.responses, strict=True):
            for (value, greedy), (other, as_greedy) in zip(ours, theirs, strict=True):
                assert other == pytest.approx(value, rel=1e-4)
                assert greedy == as_greedy
        assert here.scores()["acc,none"] == there.scores()["acc,none"]


def test_the_command_line_takes_an_address(address: str, sets: Path, run_cli) -> None:
    result = run_cli("eval", address, "--tasks", "copa", "--data", sets, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["n-samples"]["copa"]["effective"] == 20


def test_a_server_without_log_probabilities_is_told(address: str, sets: Path) -> None:
    StandIn.echoes = False
    questions = prepare_questions(find_tasks(["copa"], [])[0], [sets], {})
    with pytest.raises(UserError, match="echo with logprobs"):
        ask(ServerModel(address), questions)


@pytest.mark.parametrize("address", ["http://a b/", "http://127.0.0.1:1/\x01", "http://[::1"])
def test_an_address_that_is_none_is_said(address: str, run_cli: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some words")
    run = run_cli("eval", address, "--text", tmp_path / "text.txt")
    assert run.returncode == 1, run.stderr
    assert "cannot ask" in run.stderr
    assert "Traceback" not in run.stderr


class Odd(BaseHTTPRequestHandler):
    """Answers everything as the first part of the path says."""

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        if kind == "away":
            self.send_response(302)
            self.send_header("Location", "/good/")
        else:
            self.send_response(200)
        answers = {"deep": b"[" * 50_000, "other": b"{}", "ids": b'{"data": [3]}', "chunks": b"zz\r\nx"}
        if kind == "chunks":
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(
            answers.get(kind, b'{"data": [{"id": "a", "max_model_len": 64}], "tokens": [1], "choices": 3}')
        )
        asked.append((kind, self.headers["Authorization"]))

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None: ...


asked: list[tuple[str, str | None]] = []


@pytest.mark.parametrize("verb", ["eval", "chat"])
def test_what_a_server_gone_wrong_says_is_no_traceback(verb: str, run_cli: Any, tmp_path: Path) -> None:
    """And the key is sent to nobody but the address that was given."""
    asked.clear()
    (tmp_path / "text.txt").write_text("some words")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for kind in ("deep", "other", "ids", "chunks", "away", "good"):
        where = f"http://127.0.0.1:{server.server_port}/{kind}"
        words = ("eval", where, "--text", tmp_path / "text.txt") if verb == "eval" else ("chat", "--url", where)
        run = run_cli(*words, stdin="hello\n", env={"MINI_LLM_API_KEY": "secret"})
        assert "error:" in run.stderr, (kind, run.stderr)
        assert "Traceback" not in run.stderr
        assert verb == "chat" or run.returncode == 1
        assert kind == "good" or not any(name == "good" for name, _ in asked)
    server.shutdown()
    server.server_close()


def test_of_a_prompt_too_long_the_server_is_sent_what_the_folder_reads(
    address: str, local_model: LocalModel, model_folder: Path
) -> None:
    server, folder = ServerModel(address), LocalModel.load(model_folder, device="cpu")
    prompt = [local_model.first_id, *local_model.tokenizer.encode("The people of the world " * 40)]
    assert len(prompt) > local_model.max_length
    assert server.write([prompt], [[]], 8) == folder.write([prompt], [[]], 8)
    for model in (server, folder):
        with pytest.raises(UserError, match="no room for a prompt"):
            model.write([prompt], [[]], local_model.max_length)
