"""The run behind the model: its curve, samples and checkpoints by name, while it grows and while it is pruned."""

import json
import shutil
from pathlib import Path

import pytest
from running_server import RunningServer, StartServer, write_model

from mini_llm.pointers import write_pointer
from mini_llm.tokenizer.tokenizer import Tokenizer

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def run(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """Return a run folder of two checkpoints and a milestone."""
    run = tmp_path / "study"
    for kind, step in (("milestones", 1), ("checkpoints", 10), ("checkpoints", 20)):
        write_model(run / kind / f"step-{step:08d}", tokenizer, seed=step)
    write_pointer(run / "latest", run / "checkpoints" / "step-00000020")
    write_pointer(run / "best", run / "checkpoints" / "step-00000010")
    rows = [{"step": step, "loss": 6 - step / 10, "lr": 1e-3} for step in range(1, 21)]
    rows += [{"step": step, "val_loss": 5.0, "val_bits_per_byte": 2.5} for step in (10, 20)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 21, "lo')
    (run / "samples.jsonl").write_text(json.dumps({"step": 10, "prompt": "We", "text": " the people"}) + "\n")
    (run / "config.yaml").write_text("max_iters: 40\nbatch_size: 4\nblock_size: 32\n")
    return run


@pytest.fixture
def running(start_server: StartServer, run: Path) -> RunningServer:
    return start_server(run)


def ask(server: RunningServer, model: str) -> str:
    body = {"model": model, "prompt": "Hello", "max_tokens": 8, "temperature": 0}
    return server.ask("/v1/completions", **body)["choices"][0]["text"]


def test_checkpoints_are_models(running: RunningServer, run: Path) -> None:
    listed = {entry["id"]: entry for entry in running.client.get("/v1/models").json()["data"]}
    assert list(listed) == ["study", "study@best", "study@1", "study@10", "study@20"]
    assert {entry["kind"] for entry in listed.values()} == {"latest", "best", "checkpoint", "milestone"}
    said = {name: ask(running, name) for name in listed}
    assert said["study"] == said["study@20"]
    assert said["study@best"] == said["study@10"]
    assert len(set(said.values())) == 3
    steps = running.client.get("/run/checkpoints").json()["data"]
    assert [entry["step"] for entry in steps] == [20, 10, 1, 10, 20]
    assert steps[-1]["val_bits_per_byte"] == 2.5


def test_the_run_tells_of_itself(running: RunningServer) -> None:
    card = running.client.get("/run").json()
    assert (card["model"], card["is_run"], card["step"], card["max_iters"]) == ("study", True, 20, 40)
    assert (card["tokens_seen"], card["val_bits_per_byte"], card["learnt_dialogue"]) == (20 * 128, 2.5, False)
    assert card["loss"] == 4.0
    curve = running.client.get("/run/metrics").json()["data"]
    assert len(curve) == 22  # and not the line that is half written
    assert [row["step"] for row in running.client.get("/run/metrics?after=19").json()["data"]] == [20, 20]
    assert running.client.get("/run/samples").json()["data"][0]["text"] == " the people"


def test_a_growing_run_is_followed(running: RunningServer, run: Path, tokenizer: Tokenizer) -> None:
    before = ask(running, "study")
    write_model(run / "checkpoints" / "step-00000030", tokenizer, seed=30)
    write_pointer(run / "latest", run / "checkpoints" / "step-00000030")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 30, "loss": 3.0}\n')
    assert ask(running, "study") == ask(running, "study@30") != before
    card = running.client.get("/run").json()
    assert (card["step"], card["tokens_seen"]) == (30, 30 * 128)
    assert running.client.get("/run/metrics?after=20").json()["data"] == [{"step": 30, "loss": 3.0}]


def test_a_pruned_checkpoint_is_never_a_broken_answer(running: RunningServer, run: Path) -> None:
    kept = ask(running, "study@10")
    shutil.rmtree(run / "checkpoints" / "step-00000010")
    assert ask(running, "study@10") == kept  # it is in memory
    shutil.rmtree(run / "milestones")
    gone = running.post("/v1/completions", model="study@1", prompt="x", max_tokens=1)
    assert gone.status_code == 404
    assert gone.json()["error"]["code"] == "model_not_found"
    shutil.rmtree(run / "checkpoints" / "step-00000020")
    assert ask(running, "study")
    assert running.client.get("/v1/models").status_code in (200, 503)
    assert running.client.get("/run/metrics").json()["data"]
