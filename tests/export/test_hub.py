"""Pushing and pulling by the command line, against the hub's API on loopback: every byte arrives, or none counts."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from fake_hub import TOKEN, FakeHub, Repository, run_hub

from mini_llm.checkpoint import verify_checkpoint
from mini_llm.errors import UsageError
from mini_llm.hub import is_hub_name, parse_name
from mini_llm.pointers import resolve_checkpoint

Done = subprocess.CompletedProcess[str]
Ask = Callable[..., Done]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with run_hub() as running:
        yield running


@pytest.fixture
def environment(hub: FakeHub, tmp_path: Path) -> dict[str, str | None]:
    ours: dict[str, str | None] = {key: None for key in os.environ if key.startswith(("HF_", "HUGGING"))}
    plain = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return {**ours, **plain, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}


@pytest.fixture
def ask(environment: dict[str, str | None], tmp_path: Path, run_cli: Ask) -> Ask:
    """Return `ask("push", ..., token=None, HF_HUB_OFFLINE="1")`: it runs the command line in a folder of its own."""

    def command(*words: object, token: str | None = TOKEN, fresh: bool = False, **more: str) -> Done:
        done = run_cli(*words, cwd=tmp_path, env={**environment, "HF_TOKEN": token, **more}, fresh=fresh)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return command


def test_what_is_pushed_is_what_is_pulled(run: Path, hub: FakeHub, ask: Ask, tmp_path: Path) -> None:
    sent = ask("push", run, "alice/mine", "--license", "mit", "--with-gguf", "--type", "f16", "--with-logs", fresh=True)
    assert sent.returncode == 0, sent.stderr
    repository = hub.repositories["alice/mine"]
    assert repository.private, "private unless it is said otherwise"
    checkpoint = resolve_checkpoint(run)
    there = repository.files
    for name in ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model"):
        assert there[name] == (checkpoint / name).read_bytes(), name
    assert there["logs/metrics.jsonl"] == (run / "metrics.jsonl").read_bytes()
    assert there["mine-f16.gguf"][:4] == b"GGUF"
    assert not [name for name in there if "training_state" in name or "optimizer" in name]
    got = ask("pull", "hf://alice/mine", "--out", tmp_path / "got", fresh=True)
    assert got.returncode == 0, got.stderr
    verify_checkpoint(tmp_path / "got")
    listed = json.loads((tmp_path / "got" / "checksums.json").read_text())
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= listed.keys()
    assert "README.md" not in listed, "people edit it on the hub"
    for path in (tmp_path / "got").iterdir():
        assert path.is_file()
        assert path.read_bytes() == there[path.name]
    words = ("--prompt", "The", "--max-new-tokens", 8, "--temperature", 0)
    texts = [ask("generate", model, *words).stdout for model in (run, tmp_path / "got", "hf://alice/mine")]
    assert texts[0] == texts[1] == texts[2] != ""
    named = ask("generate", f"hf://alice/mine@{repository.head}", *words)
    assert named.stdout == texts[0], named.stderr
    offline = ask("generate", "hf://alice/mine", *words, HF_HUB_OFFLINE="1")
    assert offline.stdout == texts[0], offline.stderr


def test_its_tokenizer_and_weights_go_on(run: Path, hub: FakeHub, ask: Ask, tiny_store: Path, tmp_path: Path) -> None:
    assert ask("push", run, "alice/mine").returncode == 0
    made = ask("prepare", tiny_store.parent / "texts", "--tokenizer", "hf://alice/mine", "--out", tmp_path / "tokens")
    assert made.returncode == 0, made.stderr
    words = ["init_from=hf://alice/mine", f"data_dir={tmp_path / 'tokens'}", f"out_dir={tmp_path / 'more'}"]
    words += ["max_iters=2", "block_size=32", "batch_size=2", "eval_iters=1", "compile=false", "device=cpu"]
    trained = ask("train", *words)
    assert trained.returncode == 0, trained.stderr
    assert ask("push", tmp_path / "more", "alice/more", "--public").returncode == 0
    front = yaml.safe_load(hub.repositories["alice/more"].files["README.md"].decode().split("---")[1])
    assert (front["base_model"], front["base_model_relation"]) == ("alice/mine", "finetune")
    assert "license" not in front, "never a guess"
    assert not hub.repositories["alice/more"].private


def test_the_card_is_made_of_the_run(run: Path, hub: FakeHub, ask: Ask, tiny_store: Path) -> None:
    (run / "eval").mkdir(exist_ok=True)
    scores = {"results": {"piqa": {"alias": "piqa", "acc,none": 0.525, "acc_stderr,none": 0.0117}}}
    (run / "eval" / "results_2026.json").write_text(json.dumps(scores))
    (run / "eval" / "results_broken.json").write_text("[")
    assert ask("push", run, "alice/mine", "--license", "mit").returncode == 0
    card = hub.repositories["alice/mine"].files["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["license"], front["library_name"], "mini-llm" in front["tags"]) == ("mit", "transformers", True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "val_loss" in line][-1]
    assert f"| {last['step']} | {last['val_loss']:.4f} | {last['val_bits_per_byte']:.4f} |" in card
    assert "Seen in training: 2,560 tokens." in card  # 40 steps of 2 rows of 32
    assert "hf://alice/mine" in card
    assert "| piqa |  |  | acc | 0.5250 | 0.0117 |  |" in card
    assert "tokens for each parameter" in card
    assert str(tiny_store.parent) not in card, "no path of one machine"


def test_an_interrupted_upload_leaves_nothing(
    run: Path, hub: FakeHub, ask: Ask, environment: dict[str, str | None]
) -> None:
    hub.gate.clear()
    line = [sys.executable, "-m", "mini_llm", "push", str(run), "alice/mine"]
    env = {key: value for key, value in {**os.environ, **environment, "HF_TOKEN": TOKEN}.items() if value is not None}
    with subprocess.Popen(line, env=env, stderr=subprocess.DEVNULL) as process:
        assert hub.arrived.wait(60), "no large file was sent"
        process.kill()
    assert hub.repositories["alice/mine"].files == {}
    hub.gate.set()
    assert ask("push", run, "alice/mine").returncode == 0
    assert hub.repositories["alice/mine"].files["model.safetensors"] == (run / "latest/model.safetensors").read_bytes()


def test_refusals_are_said_in_words(run: Path, hub: FakeHub, ask: Ask, tmp_path: Path) -> None:
    assert ask("push", run, "alice/mine").returncode == 0
    hub.repositories["bob/gated"] = Repository(gated=True, commits=dict(hub.repositories["alice/mine"].commits))
    hub.repositories["bob/gated"].head = hub.repositories["alice/mine"].head
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for words, options, code, message in (
        (("push", run, "alice/other"), {"token": None}, 1, "hf auth login"),
        (("push", run, "alice/other"), {"token": "hf_expired"}, 1, "hf auth login"),
        (("push", run, "no-user"), {}, 2, "must be USER/NAME"),
        (("push", tmp_path / "none", "alice/x"), {}, 1, "no such folder"),
        (("pull", "alice/mine", "--out", tmp_path / "a"), {"token": None}, 1, "no alice/mine on the hub"),
        (("pull", "alice/none", "--out", tmp_path / "a"), {}, 1, "no alice/none on the hub"),
        (("pull", "alice/mine@v9", "--out", tmp_path / "a"), {}, 1, "no revision 'v9'"),
        (("pull", "bob/gated", "--out", tmp_path / "a"), {}, 1, "accept it at"),
        (("pull", "../x/y", "--out", tmp_path / "a"), {}, 2, "is no name on the hub"),
        (("pull", "alice/mine", "--out", tmp_path / "full"), {}, 1, "is not empty"),
        (("pull", "alice/mine", "--out", tmp_path / "a"), {"HF_HUB_OFFLINE": "1"}, 1, "cannot be reached"),
        (("generate", "hf://alice/none", "--prompt", "x"), {}, 1, "no alice/none on the hub"),
    ):
        done = ask(*words, **options)
        assert (done.returncode, message in done.stderr) == (code, True), (words, done.stderr)
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "a").exists()


def test_a_damaged_download_never_becomes_the_folder(run: Path, hub: FakeHub, ask: Ask, tmp_path: Path) -> None:
    assert ask("push", run, "alice/mine").returncode == 0
    files = hub.repositories["alice/mine"].files
    files["model.safetensors"] = files["model.safetensors"][:-1] + b"\x01"
    done = ask("pull", "alice/mine", "--out", tmp_path / "got")
    assert (done.returncode, "is damaged" in done.stderr) == (1, True)
    assert not (tmp_path / "got").exists()


def test_names() -> None:
    assert parse_name("hf://a/b@v1.0") == ("a/b", "v1.0")
    assert parse_name(Path("hf://a/b")) == ("a/b", None)
    assert is_hub_name(Path("hf://a/b"))
    assert not is_hub_name("runs/hf")
    for wrong in ("hf://", "hf://a/b/c", "hf://a/..", "hf://datasets/x/y", "hf://a/b@", "hf://a b"):
        with pytest.raises(UsageError):
            parse_name(wrong)
