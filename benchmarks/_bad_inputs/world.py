"""What is sound: a corpus, tokenizer, store, run and model; and each verb's sound command with its result."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _bad_inputs.case import Check, Outcome

ROOT = Path(__file__).resolve().parents[2]
WORDS = "river stone bread quiet morning lamp walks under seven bright doors and children count boats while rain falls"
TRAIN = """\
data_dir: tokens
out_dir: run
batch_size: 2
block_size: 32
max_iters: 4
eval_interval: 4
eval_iters: 1
save_interval: 2
log_interval: 1
warmup_iters: 1
min_lr: 0
keep_last: 9
device: cpu
dtype: float32
compile: false
model: {dim: 32, n_layers: 2, n_heads: 4, vocab_size: 400, max_seq_len: 256}
"""


CLEAN = """\
language: null
gopher_repetition: null
gopher_quality: null
c4: null
fineweb: null
minhash: {n_grams: 2, buckets: 2, hashes: 2}
"""


@dataclass(frozen=True)
class Verb:
    """A sound command: its words, the things of the world that it needs, what it makes, and where its result is.

    A new verb joins the areas flags, streams, limits and escapes by one more entry in `verbs`.
    """

    name: str
    words: list[str]
    needs: tuple[str, ...]
    results: tuple[str, ...] = ()  # files that must be the same bytes; with `says`, standard output too
    says: bool = False
    changes: tuple[str, ...] = ("out", "out/*")
    stdin: str = "null"
    typed: bytes = b""  # for stdin: the file `typed`
    seconds: float = 1.0  # about so long; long ones are tried less often
    reads_stdin: bool = False
    ends_after: float = 0.0  # a server: SIGTERM comes after so many seconds
    package: str = ""  # what it needs besides; where that is not installed it is left out

    @property
    def command(self) -> tuple[str, ...]:
        """Return the words that name the verb: `tokenizer train`."""
        return tuple(self.words[: 2 if self.words[0] == "tokenizer" else 1])


RUN = ("run", "run/*")
NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
TUNE = ["batch_size=2", "block_size=64", "warmup_iters=1", "min_lr=0", "device=cpu", "dtype=float32", "compile=false"]
SFT = ["out_dir=out", "max_iters=3", *TUNE, "eval_interval=3", "save_interval=3"]
RL = ["out_dir=out", "max_iters=1", *TUNE, "prompts_per_step=2", "samples=2", "max_new_tokens=8", "eval_questions=2"]
RL += ["made=8", "eval_samples=1"]
GREEDY = ["--temperature", "0", "--max-new-tokens", "12", "--device", "cpu"]


def verbs() -> list[Verb]:
    """Return the sound command of every verb that this machine has the packages for."""
    return [verb for verb in _every_verb() if not verb.package or importlib.util.find_spec(verb.package)]


def _every_verb() -> list[Verb]:
    made = ("out/model.safetensors", "out/config.json")
    return [
        Verb("tokenizer train", ["tokenizer", "train", "corpus", "--out", "out", "--vocab-size", "400"], ("corpus",),
             ("out/tokenizer.json", "out/tokenizer.model")),
        Verb("tokenizer report", ["tokenizer", "report", "tok"], ("tok",)),
        Verb("prepare", ["prepare", "corpus", "--tokenizer", "tok", "--out", "out", "--val-fraction", "0.1"],
             ("corpus", "tok"), ("out/train-00000.bin", "out/val-00000.bin", "out/train.idx")),
        Verb("plan", ["plan", "--config", "train.yaml", "--gpu", "h100"], ("train.yaml",), says=True),
        Verb("train --print-config", ["train", "--config", "train.yaml", "--print-config"], ("train.yaml",), says=True),
        Verb("train --dry-run", ["train", "--config", "train.yaml", "--dry-run"], ("train.yaml", "tokens")),
        Verb("train", ["train", "--config", "train.yaml"], ("train.yaml", "tokens"),
             ("run/metrics.jsonl", "run/latest/model.safetensors"), changes=RUN),
        Verb("resume", ["train", "--config", "train.yaml", "max_iters=6"], ("train.yaml", "tokens", "run"),
             ("run/metrics.jsonl", "run/latest/model.safetensors"), changes=RUN),
        Verb("plot", ["plot", "run", "--terminal"], ("run",), says=True),
        Verb("plot --out", ["plot", "run", "--out", "out.svg"], ("run",), says=True, changes=("out.svg",), seconds=3),
        Verb("ladder", ["ladder", "--config", "train.yaml", "max_iters=60", "--sizes", "0.01M,0.03M", "--minutes", "1",
                        "--out", "out"], ("train.yaml", "tokens"), seconds=6),
        Verb("generate", ["generate", "run", "--prompt", "river stone", *GREEDY], ("run",), says=True),
        Verb("generate -", ["generate", "run", "--prompt", "-", *GREEDY], ("run",), says=True, stdin="typed",
             typed=b"river stone", reads_stdin=True),
        Verb("chat", ["chat", "run", *GREEDY], ("run",), says=True, stdin="typed", typed=b"bright doors\n/exit\n",
             reads_stdin=True),
        Verb("import-seed", ["import-seed", "seed.pt", "--out", "out"], ("seed.pt",), made),
        Verb("export", ["export", "model", "--to", "gguf", "--type", "f16", "--out", "out"], ("model",), ("out",)),
        Verb("export hf", ["export", "model", "--to", "hf", "--out", "out"], ("model",), ("out/model.safetensors",)),
        Verb("report", ["report", "run", "--no-samples", "--out", "out.md"], ("run",), changes=("out.md", "out.html")),
        Verb("sft", ["sft", "--base", "model", "--data", "chats.jsonl", *SFT], ("model", "chats.jsonl"),
             ("out/metrics.jsonl", "out/latest/model.safetensors"), seconds=3),
        Verb("sft lora", ["sft", "--base", "model", "--data", "chats.jsonl", *SFT, "lora.rank=2"],
             ("model", "chats.jsonl"), ("out/metrics.jsonl", "out/latest/adapter_model.safetensors"), seconds=3),
        Verb("dpo", ["dpo", "--base", "chat", "--data", "pairs.jsonl", *SFT], ("chat", "pairs.jsonl"),
             ("out/metrics.jsonl", "out/latest/model.safetensors"), seconds=3),
        Verb("rl", ["rl", "--base", "chat", "--data", "asked.jsonl", *RL], ("chat", "asked.jsonl"),
             ("out/metrics.jsonl", "out/latest/model.safetensors"), seconds=3),
        Verb("pairs", ["pairs", "chat", "--prompts", "asked.jsonl", "--out", "out", "--samples", "4",
                       "--max-new-tokens", "16", "--device", "cpu"], ("chat", "asked.jsonl"), ("out",), seconds=2),
        Verb("skills", ["skills", "--out", "out", "--skills", "spelling,reading", "--n", "20", "--corpus", "corpus"],
             ("corpus",), ("out",)),
        Verb("mix", ["mix", "chats.jsonl", "--mixture", "mix.yaml", "--out", "out"],
             ("chats.jsonl", "mix.yaml"), ("out",)),
        Verb("clean", ["clean", "web.jsonl", "--config", "clean.yaml", "--out", "out", "--workers", "1"],
             ("web.jsonl", "clean.yaml"), seconds=8, package="datatrove"),
        Verb("eval --chat", ["eval", "chat", "--chat", "--limit", "1", "--out", "out", "--device", "cpu"], ("chat",),
             seconds=3),
        Verb("export --merge", ["export", "adapter", "--merge", "--out", "out"], ("adapter", "model"),
             ("out/model.safetensors",)),
        Verb("export ollama", ["export", "model", "--to", "ollama", "--out", "out"], ("model",), ("out/Modelfile",)),
        Verb("serve", ["serve", "model", "--port", "0", "--device", "cpu"], ("model",), seconds=6, ends_after=4.0),
        Verb("eval", ["eval", "model", "--text", "corpus/d00.txt", "--out", "out", "--device", "cpu"],
             ("model", "corpus")),
        Verb("demo", ["demo", "--corpus", "corpus", "--out", "out", "--minutes", "0.05", "--chat-minutes", "0.05"],
             ("corpus",), seconds=20),
    ]  # fmt: skip


@dataclass
class World:
    """The folder of sound things, and what each verb makes of them."""

    home: Path
    verbs: dict[str, Verb] = field(default_factory=lambda: {verb.name: verb for verb in verbs()})
    results: dict[str, str] = field(default_factory=dict)

    def bring(self, folder: Path, *names: str) -> None:
        """Copy sound things into a case's folder."""
        for name in names:
            source = self.home / name
            if source.is_dir():
                shutil.copytree(source, folder / name, symlinks=True)
            else:
                shutil.copyfile(source, folder / name)

    def make(self, verb: Verb, then: Callable[[Path], None] | None = None) -> Callable[[Path], None]:
        """Return what fills a folder with all that `verb` needs, and then spoils it."""

        def make(folder: Path) -> None:
            self.bring(folder, *verb.needs)
            if verb.typed:
                (folder / "typed").write_bytes(verb.typed)
            if then:
                then(folder)

        return make

    def same(self, name: str) -> Check:
        """Return a check that the command's result is the one of sound inputs."""

        def check(outcome: Outcome) -> str | None:
            found = result_of(self.verbs[name], outcome)
            return None if found == self.results[name] else "another result than without the fault, and not a word"

        check.verb = name  # type: ignore[attr-defined]
        return check


def result_of(verb: Verb, outcome: Outcome) -> str:
    """Return the hash of what a verb has made."""
    digest = hashlib.sha256(outcome.stdout if verb.says else b"")
    for name in verb.results:
        path = outcome.folder / name
        digest.update(path.read_bytes() if path.is_file() else b"none")
    return digest.hexdigest()


def write_raw(home: Path) -> None:
    """Write what no command makes: the corpus, the settings and a checkpoint of the seed's shape."""
    dice = random.Random(3)
    (home / "corpus").mkdir(parents=True)
    for n in range(24):
        text = "\n".join(" ".join(dice.choice(WORDS.split()) for _ in range(9)) + "." for _ in range(60)) + "\n"
        (home / "corpus" / f"d{n:02}.txt").write_text(text, encoding="utf-8")
    said = [[" ".join(dice.sample(WORDS.split(), 3)), " ".join(dice.sample(WORDS.split(), 4))] for _ in range(30)]
    chats = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in said]
    write_lines(home / "chats.jsonl", [{"messages": chat, "source": "ab"[n % 2]} for n, chat in enumerate(chats)])
    write_lines(home / "pairs.jsonl", [
        {"prompt": chat[:1], "chosen": chat[1:], "rejected": other[1:]} for chat, other in itertools.pairwise(chats)
    ])  # fmt: skip
    asked = [{"messages": chat[:1], "answer": chat[1]["content"], "check": "n_words"} for chat in chats[:12]]
    write_lines(home / "asked.jsonl", asked)
    pages = [" ".join(dice.choice(WORDS.split()) for _ in range(60)) + "." for _ in range(12)]
    write_lines(home / "web.jsonl", [{"text": page, "url": f"https://example.org/{n}"} for n, page in enumerate(pages)])
    (home / "mix.yaml").write_text("groups:\n  - {of: a, keep: 5, times: 2}\n  - {of: b}\n", encoding="utf-8")
    (home / "clean.yaml").write_text(CLEAN, encoding="utf-8")
    (home / "train.yaml").write_text(TRAIN, encoding="utf-8")


def write_lines(path: Path, values: list[dict[str, Any]]) -> None:
    """Write objects as a file of lines."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


def write_seed(path: Path) -> None:
    """Write a checkpoint in the seed's format, with one layer."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shapes = {
        "tok_embeddings.emb": (400, 32),
        "norm": (32,),
        "layers.0.attention_norm": (32,),
        "layers.0.ffn_norm": (32,),
    }
    shapes |= {f"layers.0.attention.w{letter}": (32, 32) for letter in "qkvo"}
    shapes |= {
        "layers.0.feed_forward.w1": (64, 32),
        "layers.0.feed_forward.w2": (32, 64),
        "layers.0.feed_forward.w3": (64, 32),
    }
    weights = {f"{name}.weight": torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    weights["output.weight"] = weights["tok_embeddings.emb.weight"]
    args = {"dim": 32, "n_layers": 1, "n_heads": 4, "n_kv_heads": 4, "vocab_size": 400, "max_seq_len": 64}
    torch.save({"model": weights, "model_args": args}, path)


if __name__ == "__main__":  # in a process of its own: the campaign itself does without torch
    sys.path.insert(0, str(ROOT))
    write_seed(Path(sys.argv[1]))
