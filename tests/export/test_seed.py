"""Old checkpoints come over with equal logits, and nothing that a pickle hides is ever executed."""

import dataclasses
import json
import os
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mini_llm.checkpoint import load_model
from mini_llm.errors import UserError
from mini_llm.export.seed import import_seed, read_seed, to_half_split
from mini_llm.inference.generate import Generator
from mini_llm.pointers import resolve_checkpoint

SHAPE = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 300, "multiple_of": 32}
SHAPE |= {"max_seq_len": 64, "dropout": 0.0, "device": "cuda"}
Weights = dict[str, torch.Tensor]
Write = Callable[..., Path]


def seed_weights(tied: bool = True) -> Weights:
    """Return random weights under the names that the published code gives them."""
    draw = torch.Generator().manual_seed(3)
    dim, heads, keys, hidden, vocab = 32, 32, 16, 128, 300

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw) * 0.3

    weights = {"tok_embeddings.emb.weight": random(vocab, dim)}
    for layer in range(2):
        block = f"layers.{layer}"
        for name, rows in {"wq": heads, "wk": keys, "wv": keys, "wo": dim}.items():
            weights[f"{block}.attention.{name}.weight"] = random(rows, dim)
        for name, rows, columns in (("w1", hidden, dim), ("w2", dim, hidden), ("w3", hidden, dim)):
            weights[f"{block}.feed_forward.{name}.weight"] = random(rows, columns)
        for name in ("attention_norm", "ffn_norm"):
            weights[f"{block}.{name}.weight"] = 1 + random(dim)
    weights["norm.weight"] = 1 + random(dim)
    weights["output.weight"] = weights["tok_embeddings.emb.weight"] if tied else random(vocab, dim)
    frequencies = 1.0 / 10000 ** (torch.arange(0, 8, 2).float() / 8)
    angles = torch.outer(torch.arange(64).float(), frequencies)
    weights["rope.freqs_cis"] = torch.polar(torch.ones_like(angles), angles)
    return weights


@pytest.fixture
def model_args(monkeypatch: pytest.MonkeyPatch) -> object:
    """Return the seed's settings as it pickles them: an instance of a class `model.config.ModelArgs`."""
    module = types.ModuleType("model.config")
    fields = [(name, type(value), value) for name, value in SHAPE.items()]
    module.ModelArgs = dataclasses.make_dataclass("ModelArgs", fields)  # type: ignore[attr-defined]
    module.ModelArgs.__module__ = "model.config"
    monkeypatch.setitem(sys.modules, "model", types.ModuleType("model"))
    monkeypatch.setitem(sys.modules, "model.config", module)
    return module.ModelArgs()  # type: ignore[attr-defined]


@pytest.fixture
def write(tmp_path: Path, model_args: object) -> Write:
    """Return `write(weights, prefix=..., **changes)`: it saves a checkpoint as the seed's trainer does."""

    def save(weights: Weights | None = None, prefix: str = "", **changes: object) -> Path:
        weights = {prefix + name: w for name, w in (weights or seed_weights()).items()}
        optimizer = {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95)}]}
        content = {"model": weights, "optimizer": optimizer, "model_args": model_args, "iter_num": 5}
        torch.save({**content, "best_val_loss": torch.tensor(3.5), **changes}, tmp_path / "ckpt.pt")
        return tmp_path / "ckpt.pt"

    return save


def published_logits(weights: Weights, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits by the published model's own steps, in float32 and through PyTorch's attention."""
    x = weights["tok_embeddings.emb.weight"][ids]
    B, T, _ = x.shape
    turn = weights["rope.freqs_cis"][:T].view(1, T, 1, -1)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, (32,), weights[name], eps=1e-6)

    for layer in range(2):
        p = f"layers.{layer}."
        h = norm(x, p + "attention_norm.weight")
        q, k, v = ((h @ weights[f"{p}attention.{n}.weight"].T).view(B, T, -1, 8) for n in ("wq", "wk", "wv"))
        q, k = (torch.view_as_real(torch.view_as_complex(t.reshape(B, T, -1, 4, 2)) * turn).flatten(3) for t in (q, k))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + out.transpose(1, 2).reshape(B, T, -1) @ weights[p + "attention.wo.weight"].T
        h = norm(x, p + "ffn_norm.weight")
        gate, value = (h @ weights[f"{p}feed_forward.{n}.weight"].T for n in ("w1", "w3"))
        x = x + (torch.nn.functional.silu(gate) * value) @ weights[p + "feed_forward.w2.weight"].T
    return norm(x, "norm.weight") @ weights["output.weight"].T


def test_the_command_line_imports_and_says_its_proof(write: Write, spm_model: Path, run_cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    weights = seed_weights()
    for name in ("tok_embeddings.emb.weight", "output.weight"):  # as many ids as the tokenizer has
        weights[name] = torch.cat([weights[name]] * 2)
    path = write(weights, prefix="_orig_mod.", model_args={**SHAPE, "vocab_size": 600})
    result = run_cli("import-seed", path, "--out", tmp_path / "model", "--tokenizer", spm_model, fresh=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert "proof: 64 random ids" in result.stderr
    text = run_cli("generate", tmp_path / "model", "--prompt", "The people", "--max-new-tokens", 5, "--seed", 1)
    assert text.returncode == 0, text.stderr
    assert text.stdout.startswith("The people")


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_the_published_code(tied: bool, write: Write, tmp_path: Path) -> None:
    weights = seed_weights(tied)
    assert import_seed(write(weights), tmp_path / "model") < 1e-4
    model = load_model(tmp_path / "model", device="cpu", dtype=torch.float32)
    assert model.config.tie_embeddings == tied
    assert (model.config.norm_eps, model.config.n_kv_heads) == (1e-6, 2)
    ids = torch.randint(300, (2, 40))
    torch.testing.assert_close(model(ids), published_logits(weights, ids), atol=1e-3, rtol=1e-4)


def test_transformers_computes_them_too(write: Write, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    weights = seed_weights()
    import_seed(write(weights), tmp_path / "model")
    ids = torch.randint(300, (1, 30))
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tmp_path / "model")(ids).logits
    torch.testing.assert_close(logits, published_logits(weights, ids), atol=1e-3, rtol=1e-4)


def test_without_settings_the_angles_tell_the_heads(write: Write, tmp_path: Path) -> None:
    import_seed(write(model_args=None), tmp_path / "a")
    weights = seed_weights()
    del weights["rope.freqs_cis"]
    import_seed(write(weights), tmp_path / "b")
    shapes = [json.loads((tmp_path / name / "config.json").read_text()) for name in "ab"]
    assert shapes[0] == shapes[1]
    with pytest.raises(UserError, match="how many heads"):
        import_seed(write(weights, model_args=None), tmp_path / "c")


def test_the_published_safetensors_come_over_too(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    save_file({name: w.clone() for name, w in seed_weights().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**SHAPE, "model_type": "mini-llm"}))
    import_seed(folder, tmp_path / "model")
    assert load_model(tmp_path / "model", device="cpu", dtype=torch.float32).config.dim == 32


def test_the_layout_moves_rows_and_nothing_else() -> None:
    rows = torch.arange(16.0)[:, None].expand(16, 3).contiguous()
    assert to_half_split(rows, 8)[:, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("place", ["model_args", "inside", "plain"])
def test_hidden_code_is_named_and_never_runs(place: str, write: Write, tmp_path: Path) -> None:
    bomb = Bomb(tmp_path / "executed")
    if place == "plain":  # no archive of torch's, but a bare pickle
        path = tmp_path / "ckpt.pt"
        path.write_bytes(pickle.dumps({"model": bomb}, protocol=2))
    else:
        path = write(model_args=bomb) if place == "model_args" else write(model={"norm.weight": bomb})
    with pytest.raises(UserError, match=r"holds posix\.system, which could execute code: not loaded"):
        import_seed(path, tmp_path / "model")
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "model").exists()


def test_the_command_line_refuses_hidden_code_too(write: Write, run_cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    result = run_cli("import-seed", write(model_args=Bomb(tmp_path / "executed")), "--out", tmp_path / "model")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "not loaded" in result.stderr
    assert not (tmp_path / "executed").exists()


def broken(name: str, change: Callable[[torch.Tensor], object]) -> Callable[[Weights], object]:
    return lambda weights: weights.update({name: change(weights[name])})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken("norm.weight", lambda w: w * float("nan")), "norm.weight holds NaN"),
        (broken("norm.weight", lambda w: w[:-1]), "norm.weight"),
        (broken("norm.weight", lambda w: 7), "not a plain tensor"),
        (broken("norm.weight", lambda w: torch.ones(1).expand(10**12)), "not a plain tensor"),
        (broken("rope.freqs_cis", lambda w: w**0.5), "logits differ"),
        (lambda weights: weights.pop("layers.1.ffn_norm.weight"), "layers.1.post_attention_layernorm.weight"),
        (lambda weights: weights.pop("tok_embeddings.emb.weight"), "embed_tokens.weight' is missing"),
        (lambda weights: weights.update({"head.bias": torch.ones(3)}), "head.bias"),
    ],
)
def test_what_does_not_fit_is_named(
    damage: Callable[[Weights], object], message: str, write: Write, tmp_path: Path
) -> None:
    weights = seed_weights()
    damage(weights)
    with pytest.raises(UserError, match=message):
        import_seed(write(weights), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_settings_that_contradict_the_weights_are_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"settings say n_layers=3, the weights 2"):
        import_seed(write(model_args={**SHAPE, "n_layers": 3}), tmp_path / "model")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04garbage"])
def test_a_file_of_another_kind_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "ckpt.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"ckpt\.pt"):
        read_seed(tmp_path / "ckpt.pt")


def test_missing_truncated_and_in_the_way(write: Write, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint at"):
        read_seed(tmp_path / "none.pt")
    path = write()
    (tmp_path / "half.pt").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="truncated"):
        read_seed(tmp_path / "half.pt")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    with pytest.raises(UserError, match="not replaced"):
        import_seed(path, tmp_path / "mine")


def test_a_pickle_given_to_generate_leads_here(write: Write) -> None:
    with pytest.raises(UserError, match="mini-llm import-seed"):
        resolve_checkpoint(write())


def test_without_a_tokenizer_the_folder_says_so(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import_seed(write(), tmp_path / "model")
    assert "warning: no tokenizer" in capsys.readouterr().err
    assert "holds no tokenizer" in (tmp_path / "model" / "README.md").read_text()
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Generator(tmp_path / "model", device="cpu")
