"""The runs that crash.py kills: small ones of each verb, with all that must survive in them.

80 steps (tuning: 40) of 47,000 parameters: dropout, Muon, spikes, samples, replayed text and conversations beside
rewards, wherever the verb knows them. Tuning begins from random weights, and its epochs end between two checkpoints.
"""

from __future__ import annotations

import json
from pathlib import Path

VERBS = ("train", "sft", "lora", "dpo", "rl")
SAVE_INTERVAL = 10
SHAPE = {"dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 512, "max_seq_len": 64}


def make_run(verb: str, folder: Path, device: str) -> dict[str, object]:
    """Write what a run of `verb` reads into `folder`, and return its settings, without out_dir and async_save."""
    texts = _addresses()
    values = {
        "data_dir": _make_store(texts, folder), "batch_size": 4, "block_size": 32, "max_iters": 80,
        "learning_rate": 1e-2, "min_lr": 1e-3, "warmup_iters": 10, "optimizer": "muon", "skip_spikes": 3.0,
        "eval_interval": 30, "eval_iters": 2, "save_interval": SAVE_INTERVAL, "log_interval": 1, "sample_interval": 40,
        "keep_last": 2, "device": device, "dtype": "float32", "compile": False,
    }  # fmt: skip
    if verb == "train":
        return values | {f"model.{key}": value for key, value in SHAPE.items()} | {"model.dropout": 0.1}
    values |= {"base": _make_base(folder), "block_size": 63, "epochs": None, "max_iters": 40, "learning_rate": 3e-3}
    if verb == "rl":
        small = {"prompts_per_step": 4, "samples": 2, "max_new_tokens": 8, "eval_questions": 4, "eval_samples": 1}
        mix = {"mix.data": [_make_examples("sft", texts, folder)], "mix.share": 0.25}
        return values | {"task": ["spelling"], "made": 60, "block_size": 127, **small, **mix}
    values["data"] = [_make_examples(verb, texts, folder)]
    if verb == "dpo":
        return values
    if verb == "lora":
        values |= {"lora.rank": 4, "optimizer": "adamw"}
    return values | {"replay": 0.25, "model.dropout": 0.1}


def as_words(values: dict[str, object]) -> list[str]:
    """Return settings as a command line has them."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]


def _addresses() -> list[str]:
    """Return the beginnings of ten State of the Union addresses."""
    from mini_llm.data.built_in import built_in_corpus

    speeches = sorted(built_in_corpus().glob("*.txt"))[::25]
    return [path.read_text(encoding="utf-8")[:30_000] for path in speeches]


def _make_store(texts: list[str], folder: Path) -> str:
    """Return the path of a token store of the addresses, with its tokenizer beside it."""
    from mini_llm.data.prepare import prepare
    from mini_llm.tokenizer.train import train_tokenizer

    (folder / "texts").mkdir()
    for number, text in enumerate(texts):
        (folder / "texts" / f"{number}.txt").write_text(text, encoding="utf-8")
    size = SHAPE["vocab_size"]
    train_tokenizer(texts, folder / "tokenizer", vocab_size=size, model_type="bpe", sample_bytes=10**6, seed=0)
    prepare([folder / "texts"], folder / "tokenizer", folder / "tokens", val_fraction=0.2, workers=1)
    return str(folder / "tokens")


def _make_base(folder: Path) -> str:
    """Return the path of a model of random weights."""
    from mini_llm.checkpoint import save_model
    from mini_llm.model.config import ModelConfig
    from mini_llm.model.transformer import Transformer
    from mini_llm.tokenizer.tokenizer import Tokenizer

    model = Transformer(ModelConfig.model_validate({**SHAPE, "max_seq_len": 256}))
    model.init_weights(seed=0)
    save_model(folder / "base", model, Tokenizer.load(folder / "tokenizer"))
    return str(folder / "base")


def _make_examples(verb: str, texts: list[str], folder: Path) -> str:
    """Return the path of 200 openings to go on with: answers to learn, or pairs of a right and a wrong one."""
    path, all_words = folder / "examples.jsonl", " ".join(texts).split()
    with path.open("w", encoding="utf-8") as file:
        for number in range(200):
            words = all_words[100 * number :][:24]
            opening, right, wrong = " ".join(words[:4]), " ".join(words[4:8]), " ".join(words[20:24])
            pair = {"prompt": opening, "chosen": right, "rejected": wrong}
            file.write(json.dumps(pair if verb == "dpo" else {"question": opening, "answer": right}) + "\n")
    return str(path)
