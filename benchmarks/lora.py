"""Does LoRA on a base that has never seen a conversation learn to answer, and to stop?

A small base reads State of the Union addresses and nothing else. Exercises with new words are then learned in several
ways: the whole model, LoRA with the rows of the chat markers and without them, other scales and other rates. Asked are
words that were not learned: how many answers end by `<|end|>`, how many are right, and how much of the text was
forgotten. Everything is seeded; no time is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _harness import finish, machine, note, table

SKILLS = ("spelling", "copying", "reversing")
LONGEST = 64  # tokens of an answer
LORA: dict[str, Any] = {"rank": 16}
WAYS: dict[str, dict[str, Any]] = {
    "all weights": {"learning_rate": 1e-3},
    "LoRA": {"lora": LORA},
    "LoRA, without markers": {"lora": {**LORA, "train_markers": False}},
    "LoRA, alpha / rank": {"lora": {**LORA, "rslora": False}},
    "LoRA, a third of the rate": {"lora": LORA, "learning_rate": 1e-3},
    "LoRA, thrice the rate": {"lora": LORA, "learning_rate": 9e-3},
    "LoRA, rank 4": {"lora": {"rank": 4}},
    "LoRA, rank 64": {"lora": {"rank": 64}},
}


def speeches() -> list[Path]:
    from mini_llm.data.built_in import built_in_corpus

    return sorted(built_in_corpus().glob("*.txt"))


def make_base(folder: Path, *, tied: bool, steps: int) -> Path:
    """Return the run of a model of some 1.3 million parameters that has read `steps` times 2,048 tokens."""
    from mini_llm.data.prepare import prepare
    from mini_llm.tokenizer.train import train_tokenizer
    from mini_llm.train.config import TrainConfig
    from mini_llm.train.train import train

    if not (folder / "tokens").exists():
        texts = [path.read_text(encoding="utf-8") for path in speeches()]
        train_tokenizer(texts, folder / "tokenizer", vocab_size=2048, model_type="bpe", sample_bytes=10**7, seed=0)
        prepare(speeches(), folder / "tokenizer", folder / "tokens", val_fraction=0.05, workers=1)
    config = {
        "data_dir": str(folder / "tokens"), "out_dir": str(folder / f"base-{tied}"), "batch_size": 8,
        "block_size": 256, "max_iters": steps, "warmup_iters": 20, "optimizer": "muon", "learning_rate": 3e-3,
        "muon_learning_rate": 0.02, "min_lr": 0.0, "lr_schedule": "wsd", "eval_interval": steps, "eval_iters": 8,
        "device": "cpu", "dtype": "float32", "compile": False,
        "model": {"dim": 128, "n_layers": 4, "n_heads": 4, "vocab_size": 2048, "tie_embeddings": tied},
    }  # fmt: skip
    return train(TrainConfig.model_validate(config))


def tune(base: Path, folder: Path, name: str, changes: dict[str, Any], seed: int) -> Path:
    from mini_llm.tune.config import SftConfig
    from mini_llm.tune.sft import sft

    config = {
        "base": str(base), "data": [str(folder / "train.jsonl")], "out_dir": str(folder / f"{base.name}-{name}-{seed}"),
        "block_size": 256, "batch_size": 8, "epochs": 6, "eval_interval": 1000, "seed": seed, "optimizer": "adamw",
        "data_dir": str(folder / "tokens"), "device": "cpu", "dtype": "float32", "compile": False, **changes,
    }  # fmt: skip
    return sft(SftConfig.model_validate(config))


def ask(run: Path, exercises: list[dict[str, Any]]) -> dict[str, float]:
    """Return the shares of answers that end and that are right, in per cent, greedy."""
    from mini_llm import Generator
    from mini_llm.inference.sampling.params import SamplingParams
    from mini_llm.tokenizer.chat import Message, encode_chat
    from mini_llm.tune.checks import CHECKS

    generator = Generator(run, device="cpu", dtype="float32")
    generator.ready_to_chat()
    texts = [
        generator.continue_ids(
            encode_chat(generator.tokenizer, [Message(**m) for m in exercise["messages"]]),
            max_new_tokens=LONGEST, sampling=SamplingParams(temperature=0), seed=0,
        )
        for exercise in exercises
    ]  # fmt: skip
    answers = ["".join(text) for text in texts]
    right = [CHECKS[e["check"]](answer, e["answer"]) for e, answer in zip(exercises, answers, strict=True)]
    ended = [text.finish_reason == "stop" for text in texts]
    return {"ended": 100 * sum(ended) / len(ended), "right": 100 * sum(right) / len(right)}


def text_loss(run: Path, folder: Path) -> float:
    """Return the bits per byte of held-out addresses."""
    import torch

    from mini_llm.checkpoint import load_model
    from mini_llm.data.token_store import TokenStore
    from mini_llm.pointers import resolve_checkpoint
    from mini_llm.tokenizer.tokenizer import Tokenizer
    from mini_llm.train.config import TrainConfig
    from mini_llm.train.evaluate import Evaluator
    from mini_llm.train.loss import rows_loss_sum

    model = load_model(resolve_checkpoint(run), device="cpu", dtype=torch.float32)
    config = TrainConfig(data_dir=str(folder / "tokens"), batch_size=8, block_size=256, eval_iters=16)
    evaluator = Evaluator.of(config, TokenStore.open(folder / "tokens"), Tokenizer.load(folder / "tokenizer"))
    found = evaluator.run(lambda rows: rows_loss_sum(model, rows, torch.float32), torch.device("cpu"))
    return found.bits_per_byte


def make_exercises(path: Path, n: int, arguments: Any, seed: int) -> list[dict[str, Any]]:
    from mini_llm.tune.skills import Material
    from mini_llm.tune.skills.write import Wish, write_exercises

    write_exercises(path, Wish(dict.fromkeys(SKILLS, n), seed, arguments), Material("Mini-LLM"))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="of LoRA and of the rows' order (default 3)")
    parser.add_argument("--quick", action="store_true", help="one seed, one base, 60 exercises; no result file")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    arguments = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="mini-llm-lora-") as name:
        folder = Path(name)
        make_exercises(folder / "train.jsonl", 300 if arguments.quick else 1000, "train", 0)
        asked = make_exercises(folder / "asked.jsonl", 20 if arguments.quick else 100, "new", 1)
        for tied in (True,) if arguments.quick else (True, False):
            base = make_base(folder, tied=tied, steps=100 if arguments.quick else 600)
            kind = "tied" if tied else "untied"
            results[f"{kind}: base"] = {**ask(base, asked), "bits per byte of text": text_loss(base, folder)}
            for way, changes in WAYS.items():
                runs = [
                    tune(base, folder, way.replace(" ", "").replace("/", "-"), changes, seed)
                    for seed in range(1 if arguments.quick else arguments.seeds)
                ]
                found = [{**ask(run, asked), "bits per byte of text": text_loss(run, folder)} for run in runs]
                means = {key: sum(values[key] for values in found) / len(found) for key in found[0]}
                results[f"{kind}: {way}"] = means
                note(f"  {kind}: {way}: " + ", ".join(f"{key} {value:.4g}" for key, value in means.items()))
    rows = [[way, *(f"{value:.4g}" for value in values.values())] for way, values in results.items()]
    print(table(["", *next(iter(results.values()))], rows))
    finish("lora", {"ways": results, "machine": machine()}, as_json=arguments.json, keep=not arguments.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
