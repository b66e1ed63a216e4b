"""The commands of docs/chat.md, in their order, at toy size: each finds what the one before it has left."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

ROOT = Path(__file__).resolve().parents[2]
ENV = {"OMP_NUM_THREADS": "1"}
Run = Callable[..., CompletedProcess[str]]
TOY = ["batch_size=4", "block_size=128", "compile=false", "epochs=null", "max_iters=2", "eval_iters=1"]
# What each verb is given besides, so that it takes seconds.
SMALLER = {
    "skills": ["--n", "6"],
    "sft": TOY,
    "dpo": TOY,
    "pairs": ["--n", "4", "--samples", "4", "--max-new-tokens", "8"],
    "rl": [*TOY[:3], "max_iters=1", "prompts_per_step=2", "samples=2", "max_new_tokens=8", "eval_questions=2"],
    "eval": ["--limit", "1"],
}


def commands() -> Iterator[list[str]]:
    page = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")
    for block in page.split("```bash\n")[1:]:
        yield from (shlex.split(line)[1:] for line in block.partition("```")[0].splitlines())


def test_the_page_s_commands_work_one_after_the_other(tmp_path: Path, run_cli: Run, sotu_texts: list[str]) -> None:
    make_base(tmp_path, run_cli, sotu_texts)
    for words in commands():
        if words[0] == "skills":
            words[words.index("--n") + 1] = "6"
        result = run_cli(*words, *SMALLER.get(words[0], []), env=ENV, cwd=tmp_path, timeout=300)
        if words[0] == "pairs":  # of a toy, whose answers are all wrong, none are made: its own say so
            pairs_by_hand(tmp_path)
            assert "Traceback" not in result.stderr
            continue
        assert result.returncode == 0, (words, result.stderr)
        assert "Traceback" not in result.stderr
    for name in ("sft", "dpo", "rl"):
        assert (tmp_path / "runs" / name / "latest" / "model.safetensors").is_file()
    assert json.loads(result.stdout)["mini_llm"]["chat"]["forgetting"]["base"] > 0


def make_base(folder: Path, run_cli: Run, texts: list[str]) -> None:
    (folder / "texts").mkdir()
    (folder / "data").mkdir()
    (folder / "texts" / "speech.txt").write_text("\n<|endoftext|>\n".join(texts[::60]), encoding="utf-8")
    talk = [{"question": f"How many {i}?", "answer": "Some, I think.", "source": "mine"} for i in range(40)]
    (folder / "data" / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talk), encoding="utf-8")
    (folder / "data" / "mixture.yaml").write_text("groups: [{of: mine, keep: 30}]\n", encoding="utf-8")
    shape = ["model.dim=32", "model.n_layers=1", "model.n_heads=2", "model.vocab_size=600", "model.max_seq_len=512"]
    settings = ["data_dir=data/tokens", "out_dir=runs/base", "max_iters=4", "eval_iters=1", "warmup_iters=1", *shape]
    for words in (
        ["tokenizer", "train", "texts/", "--out", "data/tokenizer", "--vocab-size", "600"],
        ["prepare", "texts/", "--tokenizer", "data/tokenizer", "--out", "data/tokens", "--val-fraction", "0.3"],
        ["train", *settings, "batch_size=4", "block_size=128", "compile=false"],
    ):
        result = run_cli(*words, env=ENV, cwd=folder, timeout=300)
        assert result.returncode == 0, result.stderr


def pairs_by_hand(folder: Path) -> None:
    rows = [{"prompt": f"Spell a{i}.", "chosen": f"a {i}", "rejected": "b"} for i in range(200)]
    (folder / "data" / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
