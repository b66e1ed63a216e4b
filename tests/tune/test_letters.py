"""Letters in the rows: what is learned of reading some pieces' codes holds for others, and a run with them resumes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mini_llm.checkpoint import load_model
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.config import SftConfig
from mini_llm.tune.letters import codes, features, quiet, write_letters
from mini_llm.tune.sft import sft
from mini_llm.tune.skills.pieces import texts_of

LETTERS = "abcdefghijklmnopqrstuvwxyz"
IDS = torch.arange(300).reshape(2, 150)


def a_model(tokenizer: Tokenizer, *, tied: bool = False) -> Transformer:
    model = Transformer(
        ModelConfig(dim=64, n_layers=1, n_heads=2, vocab_size=tokenizer.vocab_size, tie_embeddings=tied)
    )
    model.init_weights(seed=0)
    return model


def foretold(vectors: torch.Tensor, letters: list[int]) -> float:
    """Return how often the second letter of the odd ones is told by what a ridge regression learns on the even ones."""
    wanted = torch.nn.functional.one_hot(torch.tensor(letters), 26).double()
    seen, rows = vectors[::2].double(), vectors[1::2].double()
    scale = seen.square().mean()
    weights = torch.linalg.solve(seen.T @ seen + scale * torch.eye(seen.shape[1]), seen.T @ wanted[::2])
    return ((rows @ weights).argmax(1) == wanted[1::2].argmax(1)).double().mean().item()


@pytest.mark.parametrize("table", ["embedding", "head"])
def test_letters_are_read_from_rows_by_what_was_learned_on_other_rows(table: str) -> None:
    generator = torch.Generator().manual_seed(1)
    texts = ["".join(LETTERS[i] for i in torch.randint(26, (5,), generator=generator)) for _ in range(3000)]
    fading = 1 / torch.arange(1, 193).sqrt()  # as the directions of an embedding do
    plain = torch.randn(len(texts), 192, generator=generator) * fading
    seconds = [LETTERS.index(text[1]) for text in texts]
    assert foretold(plain, seconds) < 0.1
    code = codes(texts, 128, generator) * 0.8 * plain.norm(dim=1).mean()
    turn = torch.eye(128) if table == "embedding" else torch.linalg.qr(torch.randn(128, 128, generator=generator))[0]
    assert foretold(plain + code @ turn @ quiet(plain, 128), seconds) > 0.8


def test_a_code_is_of_the_letters_their_places_and_their_neighbours() -> None:
    assert features(" of") == {"0 o": 1, "1 f": 1, "^o": 0.5, "of": 0.5, "f$": 0.5, "2": 0.5, "space": 0.5}
    assert set(features("of")) ^ set(features(" of")) == {"space", "none"}
    assert features("") == features("\ufffd") == {}
    of, with_space, fo, nothing = codes(["of", " of", "fo", ""], 64, torch.Generator().manual_seed(0))
    assert of.norm().item() == pytest.approx(1)
    assert nothing.norm() == 0
    assert of @ with_space > 0.6 > of @ fo


@pytest.mark.parametrize("tied", [False, True])
def test_codes_go_where_the_base_keeps_least(chat_tokenizer: Tokenizer, tied: bool) -> None:
    model, before = a_model(chat_tokenizer, tied=tied), a_model(chat_tokenizer, tied=tied)
    write_letters(model, chat_tokenizer, 0.5, IDS, seed=3)
    texts = texts_of(chat_tokenizer)
    for table in ("model.embed_tokens", "lm_head"):
        old, new = (m.get_submodule(table).weight.detach() for m in (before, model))
        added = (new - old).norm(dim=1) / old.norm(dim=1).mean()
        share = 0.5 if tied or table != "lm_head" else 0.25
        for i, length in enumerate(added.tolist()):
            assert length == pytest.approx(share if features(texts.get(i, "")) else 0, abs=1e-5), texts.get(i)
    if not tied:
        with torch.no_grad():
            hidden = before.model(IDS).flatten(0, 1)
        scores = hidden @ (model.lm_head.weight - before.lm_head.weight).T
        somewhere = hidden.norm(dim=1).mean() * 0.25 * before.lm_head.weight.norm(dim=1).mean() / math.sqrt(64)
        assert scores.std() < 0.75 * somewhere  # than scores of random directions would change by
    again = a_model(chat_tokenizer, tied=tied)
    write_letters(again, chat_tokenizer, 0.5, IDS, seed=3)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_a_run_with_letters_goes_on_to_the_bit(base: Path, spelling_file: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {"base": str(base), "data": [str(spelling_file)], "block_size": 127, "batch_size": 4}
    values |= {"compile": False, "device": "cpu", "dtype": "float32", "letters": 0.5, "epochs": None, "max_iters": 6}
    values |= {"eval_interval": 3, "eval_iters": 1, "learning_rate": 0.003}

    def stop(step: int, _model: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    whole = sft(SftConfig.model_validate({**values, "out_dir": str(tmp_path / "whole")}))
    broken = SftConfig.model_validate({**values, "out_dir": str(tmp_path / "broken")})
    with pytest.raises(KeyboardInterrupt):
        sft(broken, stop)
    sft(broken)
    for name in ("latest/model.safetensors", "metrics.jsonl"):
        assert (whole / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()


def test_the_command_writes_them_once_and_into_no_base_that_stays(
    base: Path, spelling_file: Path, tmp_path: Path, run_cli: Any
) -> None:
    out = tmp_path / "run"
    words = ["sft", "--base", base, "--data", spelling_file, f"out_dir={out}", "letters=0.5"]
    small = ["block_size=127", "device=cpu", "dtype=float32", "compile=false", "max_iters=1", "learning_rate=0"]
    result = run_cli(*words, *small)
    assert result.returncode == 0, result.stderr
    old, new = (load_model(folder, device="cpu", dtype=torch.float32) for folder in (base, out / "latest"))
    assert not torch.equal(old.model.embed_tokens.weight, new.model.embed_tokens.weight)
    assert torch.equal(old.model.layers[0].mlp.up_proj.weight, new.model.layers[0].mlp.up_proj.weight)
    for verb, more, message in (
        ("sft", ["letters=0.5", "lora.rank=4"], "lora leaves as it is"),
        ("dpo", ["letters=0.5"], "written into a base by sft"),
        ("sft", ["letters=-1"], "letters"),
    ):
        refused = run_cli(verb, "--base", base, "--data", spelling_file, f"out_dir={tmp_path / 'no'}", *more)
        assert refused.returncode == 2, refused.stderr
        assert message in refused.stderr
        assert not (tmp_path / "no").exists()
