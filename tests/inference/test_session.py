"""The chat's commands, through a pipe and a real terminal; a server of OpenAI's API; a look at how tokens came."""

import json
import os
import pty
import select
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mini_llm.errors import UserError
from mini_llm.inference.chat import Conversation
from mini_llm.inference.generate import Generator
from mini_llm.inference.look_back import alternatives
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.inference.session import Session, talk
from mini_llm.tokenizer.chat import Message

RunCli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def session(generator: Generator) -> Session:
    options = {"max_new_tokens": 8, "sampling": SamplingParams(temperature=1, top_p=0.9), "seed": 3, "stop": []}
    return Session(Conversation(generator, None), options)


def test_retry_undo_and_edit(session: Session) -> None:
    talk(session, ["hi"])
    first = session.conversation.turns[-1].content
    talk(session, ["/retry"])
    assert [turn.role for turn in session.conversation.turns] == ["user", "assistant"]
    assert session.conversation.turns[-1].content != first, "the next seed"
    talk(session, ["/edit ho"])
    assert session.conversation.turns[0] == Message("user", "ho")
    talk(session, ["/undo"])
    assert session.conversation.turns == []


def test_settings_change_all_or_none(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    talk(session, ["/set temperature=0 top_k=5 max_new_tokens=3", "/set top_k=7 top_p=9", "/set warmth=1", "/set"])
    assert session.options["sampling"] == SamplingParams(temperature=0, top_k=5, top_p=0.9)
    assert session.options["max_new_tokens"] == 3
    err = capsys.readouterr().err
    assert "top_p=9.0 must be" in err
    assert "no setting 'warmth'" in err
    talk(session, ["/seed -1", "/seed x", "/seed 7"])
    assert session.options["seed"] == 7


def test_stop_strings_are_set_with_their_signs(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    talk(session, [r"/set top_k=4 stop=\n\nUser: \\n"])
    assert session.options["stop"] == ["\n\nUser: \\n"]
    assert session.options["sampling"].top_k == 4
    assert r"stop='\n\nUser: \\n'" in capsys.readouterr().err
    talk(session, ["/set top_k=5"])
    assert session.options["stop"] == ["\n\nUser: \\n"]
    talk(session, ["/set stop="])
    assert session.options["stop"] == []


def test_a_saved_conversation_goes_on_and_nothing_else_is_replaced(session: Session, tmp_path: Path) -> None:
    other = tmp_path / "thesis.json"
    other.write_text('{"years": 4}')
    talk(session, ["/system be brief", "hi", f"/save {tmp_path / 'talk.json'}", f"/save {other}"])
    turns = list(session.conversation.turns)
    assert other.read_text() == '{"years": 4}'
    talk(session, ["/reset", f"/load {tmp_path / 'talk.json'}"])
    assert session.conversation.turns == turns
    assert session.conversation.system == [Message("system", "be brief")]
    talk(session, [f"/load {other}", f"/load {tmp_path / 'none.json'}", f"/save {tmp_path / 'talk.json'}"])
    talk(session, [f"/save {'x' * 5000}", "/save a\0b", "/save ~nobody-of-this-name/x", "/load /dev/zero"])
    assert session.conversation.turns == turns


def test_why_shows_the_draw(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    talk(session, ["/why 1", "hi", "/why 2", "/why 99", "/why x", "/tokens"])
    err = capsys.readouterr().err
    assert "there is no answer" in err
    assert session.last is not None
    drawn = session.last.drawn[1]
    assert f"{drawn.chosen.p_sampled:.4f} after temperature and filters" in err
    assert f"the dart, at {drawn.dart:.4f}" in err
    line, arrow = next(
        (above, below) for above, below in zip(err.split("\n"), err.split("\n")[1:], strict=False) if "^ the" in below
    )
    assert line[arrow.index("^")] == "=" or drawn.chosen.p_sampled < 1 / 60
    assert "has tokens 1 to 8" in err
    assert "8:" in err


def test_a_branch_goes_on_from_another_token(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    session.options["sampling"] = SamplingParams(temperature=0)
    talk(session, ["hi"])
    assert session.last is not None
    before = session.last
    wanted = alternatives(before.drawn[2])[1].token_id
    talk(session, ["/branch 3 2", "/branch 3 77"])
    ids = [one.chosen.token_id for one in session.last.drawn]
    assert ids[:3] == [*(one.chosen.token_id for one in before.drawn[:2]), wanted]
    follows = session.conversation.generator.continue_ids(
        [*before.prompt_ids, *ids[:3]], max_new_tokens=8, sampling=SamplingParams(temperature=0), inspect=0
    )
    list(follows)
    assert ids[3:] == [one.chosen.token_id for one in follows.ids.drawn]
    assert [turn.role for turn in session.conversation.turns] == ["user", "assistant"]
    assert "has alternatives 1 to 8" in capsys.readouterr().err


def test_another_checkpoint_of_the_run(run_cli: RunCli, folder: Path, tmp_path: Path) -> None:
    for step in (10, 20):
        (tmp_path / f"step-{step:08d}").symlink_to(folder)
    lines = "/model 11\n/model 20\nhi\n"
    run = tmp_path / "step-00000010"
    result = run_cli("chat", run, "--max-new-tokens", 3, stdin=lines)
    assert result.returncode == 0
    assert "no checkpoint of step 11" in result.stderr


@pytest.mark.parametrize(
    ("settings", "warned"), [("max_iters: 5\n", True), ("max_iters: 5\ndata: chat.jsonl\n", False)]
)
def test_who_has_learnt_no_dialogue_is_told(
    run_cli: RunCli, folder: Path, tmp_path: Path, settings: str, warned: bool
) -> None:
    (tmp_path / "config.yaml").write_text(settings)
    shutil.copytree(folder, tmp_path / "checkpoints" / "step-00000010")
    result = run_cli("chat", tmp_path / "checkpoints" / "step-00000010", "--max-new-tokens", 3, stdin="hi\n")
    assert result.returncode == 0, result.stderr
    assert ("has learnt no dialogue" in result.stderr) == warned


class Server(BaseHTTPRequestHandler):
    asked: list[dict[str, Any]] = []  # noqa: RUF012
    keys: list[str | None] = []  # noqa: RUF012

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self.reply(200, json.dumps({"data": [{"id": "echo"}, {"id": "echo@20"}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        self.keys.append(self.headers["Authorization"])
        question = body["messages"][-1]["content"]
        if question == "refuse":
            self.reply(400, json.dumps({"error": {"message": "not today"}}))
            return
        words = [{"choices": [{"delta": {"content": word}}]} for word in ("Hel", "lo 🙂")]
        if question == "break":
            ends = []
        else:
            ends = [{"choices": [{"delta": {}, "finish_reason": "length" if question == "long" else "stop"}]}]
            ends += [{"choices": [], "usage": {"completion_tokens": 7}}] if "stream_options" in body else []
        chunks = [f"data: {json.dumps(one)}\n\n" for one in [*words, *ends]]
        self.reply(200, ": a comment\n\n" + "".join(chunks) + ("data: [DONE]\n\n" if ends else ""))

    def reply(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def server() -> Iterator[str]:
    found = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()
    found.server_close()


def test_a_server_elsewhere(run_cli: RunCli, server: str) -> None:
    lines = "hi\nrefuse\nbreak\n/why 1\n/retry\n"
    result = run_cli("chat", "--url", server, "--seed", 5, stdin=lines, env={"MINI_LLM_API_KEY": "secret"})
    assert result.stdout == "Hello 🙂\nHello 🙂\nHello 🙂\n"
    assert "400: not today" in result.stderr
    assert "broke off" in result.stderr
    assert "only a model of this machine" in result.stderr
    tried_again = [message["content"] for message in Server.asked[-1]["messages"]]
    assert tried_again == ["hi", "Hello 🙂", "break"]  # what broke off, and not what was answered before it
    assert Server.asked[0]["seed"] == 5
    assert set(Server.keys) == {"Bearer secret"}
    assert "top_k" not in Server.asked[0]


def test_a_server_counts_its_tokens_and_its_models(run_cli: RunCli, server: str) -> None:
    Server.asked.clear()
    lines = "long\n/model 20\nhi\n/model 30\nhi\n/model echo\nhi\n"
    result = run_cli("chat", "--url", server, stdin=lines)
    assert "after 7 tokens" in result.stderr  # which came in two pieces
    assert "no model '30'" in result.stderr
    assert "echo, echo@20" in result.stderr
    assert [body["model"] for body in Server.asked] == ["echo", "echo@20", "echo@20", "echo"]


@pytest.mark.parametrize("key", ["sec\nret", "se\u2603cret"])
def test_a_key_that_no_header_can_hold_is_not_shown(run_cli: RunCli, server: str, key: str) -> None:
    for words in (["chat", "--url", server], ["eval", server, "--tasks", "piqa", "--data", "/"]):
        result = run_cli(*words, stdin="hello\n", env={"MINI_LLM_API_KEY": key})
        assert result.returncode == 1
        assert words[0] == "eval" or "MINI_LLM_API_KEY is no key" in result.stderr
        assert "cret" not in result.stderr


def test_nobody_there_and_wrong_words(run_cli: RunCli) -> None:
    result = run_cli("chat", "--url", "http://127.0.0.1:9")
    assert result.returncode == 1
    assert "nobody answers at" in result.stderr
    assert run_cli("chat", "--url", "file:///etc/passwd").returncode == 2
    assert run_cli("chat").returncode == 2
    result = run_cli("chat", "runs/demo", "--model", "echo")
    assert result.returncode == 2
    assert "--url" in result.stderr


def test_a_real_terminal(endless: Path, tmp_path: Path) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"XDG_STATE_HOME": str(tmp_path), "TERM": "xterm"}
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        command = [sys.executable, "-m", "mini_llm", "chat", str(endless), "--max-new-tokens", "50000"]
        os.execv(sys.executable, command)
    seen = b""

    def wait_for(word: bytes, more_than: int = 0) -> None:
        nonlocal seen
        end = time.monotonic() + 60
        while word not in seen or len(seen) <= more_than:
            assert time.monotonic() < end, seen[-500:]
            if select.select([terminal], [], [], 1)[0]:
                seen += os.read(terminal, 65536)

    try:
        wait_for(b"you> ")
        seen = b""
        os.write(terminal, b"hello there\r")
        wait_for(b"\n", more_than=60)
        os.write(terminal, b"\x03")  # Ctrl-C ends the answer
        wait_for(b"you> ")
        seen = b""
        os.write(terminal, b"/why 2\r")
        wait_for(b"the dart, at")
        os.write(terminal, b"/exit\r")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        child = 0
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(terminal)
    history = tmp_path / "mini-llm" / "chat_history"
    assert "hello there" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_a_question_that_is_refused_leaves_the_conversation_as_it_was(session: Session) -> None:
    with pytest.raises(UserError, match="context is 128"):
        session.do("x" * 300)
    assert session.conversation.turns == []
    session.do("/edit hi")
    assert session.conversation.turns[0].content == "hi"
    with pytest.raises(UserError, match="context is 128"):
        session.do("x" * 300)
    session.do("/undo")  # what was refused, and no more
    assert len(session.conversation.turns) == 2
