"""Our checkpoints are Hugging Face folders, and theirs load here; what is damaged or hostile is refused by name."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mini_llm import checkpoint, files
from mini_llm.checkpoint import (
    DamagedCheckpoint,
    load_model,
    save_model,
    stored_dtype,
    verify_checkpoint,
)
from mini_llm.errors import UserError
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.pointers import read_pointer, resolve_checkpoint, write_pointer
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.weights import read_weights

OURS = {
    "README.md",
    "checksums.json",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
}
IDS = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(1))


def make_model(**shape: Any) -> Transformer:
    values = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 512, "max_seq_len": 64, **shape}
    model = Transformer(ModelConfig(**values)).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model


@pytest.fixture(scope="session")
def tokenizer(tiny_store: Path) -> Tokenizer:
    return Tokenizer.load(tiny_store / "tokenizer")


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    save_model(tmp_path / "model", make_model(), tokenizer)
    return tmp_path / "model"


def load(folder: Path) -> Transformer:
    return load_model(folder, device="cpu", dtype=torch.float32)


# --- Hugging Face ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [{}, {"tie_embeddings": False}, {"qk_norm": True}, {"rope_theta": 5e5, "rope_scaling": {"factor": 4.0}}],
    ids=["tied", "untied", "qwen3", "llama3 rope"],
)
def test_ours_loads_in_transformers_with_equal_logits(
    shape: dict[str, Any], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = make_model(**shape)
    save_model(tmp_path / "m", model, tokenizer)
    assert set(os.listdir(tmp_path / "m")) == OURS
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(theirs(IDS).logits, model(IDS), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(load(tmp_path / "m")(IDS), model(IDS))
    hf_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    text = "Fellow citizens,\n\tthe state of our Union is 😀 </s>"
    assert hf_tokenizer("Fellow citizens", add_special_tokens=False)["input_ids"] == tokenizer.encode("Fellow citizens")
    assert hf_tokenizer.decode(tokenizer.encode(text)) == text
    assert theirs.generation_config.eos_token_id == tokenizer.eos_ids


def hf_model(kind: str, **changes: Any) -> Any:
    import transformers

    values = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**values)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("Llama", {}), ("Llama", {"tie_word_embeddings": True}), ("Llama", {"num_key_value_heads": 4}), ("Qwen3", {})],
)
@pytest.mark.parametrize("saving", [{}, {"max_shard_size": "20KB"}], ids=["one file", "sharded"])
def test_theirs_loads_in_ours_with_equal_logits(
    kind: str, changes: dict[str, Any], saving: dict[str, Any], tmp_path: Path
) -> None:
    theirs = hf_model(kind, **changes)
    theirs.save_pretrained(tmp_path, **saving)
    assert (tmp_path / "model.safetensors.index.json").exists() is bool(saving)
    model = load(tmp_path)
    torch.testing.assert_close(model(IDS), theirs(IDS).logits, atol=1e-5, rtol=1e-4)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    if changes.get("tie_word_embeddings"):
        assert model.lm_head.weight is model.model.embed_tokens.weight


def test_bfloat16_stays_bfloat16_and_converts(tmp_path: Path, tokenizer: Tokenizer) -> None:
    theirs = hf_model("Llama").to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs")
    assert stored_dtype(tmp_path / "theirs") == torch.bfloat16
    model = load_model(tmp_path / "theirs", device="cpu", dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(model(IDS).float(), theirs(IDS).logits.float(), atol=0.02, rtol=0.02)
    save_model(tmp_path / "ours", make_model(), tokenizer, dtype=torch.bfloat16)
    assert stored_dtype(tmp_path / "ours") == torch.bfloat16
    assert {w.dtype for w in load_file(tmp_path / "ours" / "model.safetensors").values()} == {torch.bfloat16}


def test_rope_angles_that_old_folders_hold_are_passed_over(tmp_path: Path) -> None:
    theirs = hf_model("Llama")
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(load(tmp_path)(IDS), theirs(IDS).logits, atol=1e-5, rtol=1e-4)


def test_a_tied_head_is_stored_once(folder: Path) -> None:
    names = set(load_file(folder / "model.safetensors"))
    assert "lm_head.weight" not in names
    assert "model.embed_tokens.weight" in names


def test_files_can_be_read_by_others(folder: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o044 for path in folder.iterdir()}
    assert set(modes.values()) == {0o044}


# --- finding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("links", [True, False], ids=["links", "text files"])
def test_pointers_lead_to_the_checkpoint(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError("a required privilege is not held by the client")

        monkeypatch.setattr(Path, "symlink_to", refuse)
    run = tmp_path / "demo" / "run"
    for step in (1, 2):
        (run / "checkpoints" / f"step-{step}").mkdir(parents=True)
        (run / "checkpoints" / f"step-{step}" / "config.json").write_text("{}")
        write_pointer(run / "latest", run / "checkpoints" / f"step-{step}")
    write_pointer(run / "best", run / "checkpoints" / "step-1")
    assert (run / "latest").is_symlink() is links
    assert sorted(os.listdir(run)) == ["best", "checkpoints", "latest"]
    assert read_pointer(run / "best") == Path("checkpoints/step-1")
    second = run / "checkpoints" / "step-2"
    for path in (run, run / "latest", second, tmp_path / "demo", str(run)):
        assert resolve_checkpoint(path).resolve() == second
    assert resolve_checkpoint(run / "best").resolve() == run / "checkpoints" / "step-1"
    shutil.move(tmp_path / "demo", tmp_path / "moved")  # pointers are relative
    assert resolve_checkpoint(tmp_path / "moved").resolve().name == "step-2"


def test_an_empty_folder_a_missing_one_and_a_file_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no model in"):
        resolve_checkpoint(tmp_path / "empty")
    with pytest.raises(UserError, match="no such folder"):
        resolve_checkpoint(tmp_path / "missing")
    for name, content in (("a", b""), ("b", b"\0\xff" * 5000), ("c", b"a" * 5000), ("d", b"/"), ("e", b".")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError):
            resolve_checkpoint(tmp_path / name)


@pytest.mark.parametrize("target", [".", "..", "latest", "checkpoints/gone"])
def test_pointers_that_lead_nowhere_or_in_circles_end(target: str, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(target)
    with pytest.raises(UserError):
        resolve_checkpoint(tmp_path)
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").write_text(target)
    with pytest.raises(UserError):
        resolve_checkpoint(tmp_path)


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(OURS - {"checksums.json"}))
@pytest.mark.parametrize("damage", ["missing", "truncated", "a bit", "empty"])
def test_damage_to_any_file_is_found_by_name(name: str, damage: str, folder: Path) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        flipped = data.copy()
        flipped[len(data) // 2] ^= 4
        path.write_bytes({"truncated": data[:-9], "a bit": flipped, "empty": b""}[damage])
    with pytest.raises(DamagedCheckpoint, match=name.replace(".", r"\.")):
        verify_checkpoint(folder)
    with pytest.raises(DamagedCheckpoint, match=name.replace(".", r"\.")):
        load(folder)


@given(data=st.data())
@examples(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_weights_that_were_tampered_with_are_refused_or_load(data: st.DataObject, folder: Path) -> None:
    """Without checksums, as in a folder from elsewhere: any change of the header is an error of ours or harmless."""
    (folder / "checksums.json").unlink(missing_ok=True)
    path = folder / "model.safetensors"
    original = path.read_bytes()
    position = data.draw(st.integers(0, 2000))
    value = data.draw(st.integers(0, 255))
    path.write_bytes(original[:position] + bytes([value]) + original[position + 1 :])
    try:
        load(folder)
    except UserError as problem:
        assert str(folder) in str(problem)  # noqa: PT017
    finally:
        path.write_bytes(original)


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    for key, value in changes.items():
        if value is ...:
            del values[key]
        else:
            values[key] = value
    path.write_text(json.dumps(values))


HOSTILE = [
    *({key: value} for key in ("hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size")
      for value in ("x", -1, 1.5, [], {}, 10**9, 10**30, float("nan"), float("inf"), True)),
    *({key: ...} for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "model_type")),
    {"head_dim": "x"}, {"head_dim": -2}, {"head_dim": 3}, {"head_dim": 10**9}, {"head_dim": 10**30},
    {"num_attention_heads": 0}, {"num_attention_heads": 3}, {"num_key_value_heads": 3}, {"num_key_value_heads": 0},
    {"rope_parameters": "x"}, {"rope_parameters": [1]}, {"rope_parameters": {"rope_type": []}},
    {"rope_parameters": {"rope_type": "yarn"}}, {"rope_parameters": {"rope_type": "llama3"}},
    {"rope_parameters": {"rope_theta": -1}}, {"rope_parameters": {"rope_theta": "hot"}},
    {"model_type": "gpt2"}, {"model_type": ["llama"]}, {"model_type": {}}, {"model_type": "qwen3"},
    {"attention_bias": True}, {"hidden_act": "gelu"}, {"hidden_act": {}}, {"rms_norm_eps": "tiny"},
    {"rms_norm_eps": 0}, {"max_position_embeddings": 0}, {"max_position_embeddings": None},
    {"tie_word_embeddings": "maybe"}, {"tie_word_embeddings": False},
]  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE, ids=str)
def test_a_hostile_config_is_refused(change: dict[str, Any], folder: Path) -> None:
    (folder / "checksums.json").unlink()
    edit(folder / "config.json", **change)
    with pytest.raises(UserError):
        load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"x"', "\0", "[" * 100_000, "9" * 5000, '{"a": 1e999}'])
@pytest.mark.parametrize("name", ["config.json", "checksums.json"])
def test_what_is_no_json_object_is_refused(name: str, text: str, folder: Path) -> None:
    if name == "config.json":
        (folder / "checksums.json").unlink()
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=name.replace(".", r"\.") if text[:1] != "{" else None):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_in_place_of_a_file_is_refused(name: str, folder: Path) -> None:
    (folder / "checksums.json").unlink()
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "checksums.json"])
def test_what_cannot_be_read_is_named(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == name:
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DamagedCheckpoint, match=rf"cannot read .*{re.escape(name)}: Permission denied"):
        load(folder)


def test_weights_that_do_not_fit_are_named(folder: Path) -> None:
    (folder / "checksums.json").unlink()
    weights = load_file(folder / "model.safetensors")
    for change, message in (
        ({"model.norm.weight": None}, r"model\.norm\.weight is missing"),
        ({"model.norm.bias": torch.ones(1)}, r"model\.norm\.bias is unknown"),
        ({"model.norm.weight": torch.ones(3)}, r"model\.norm\.weight has shape \(3,\), config\.json says \(32,\)"),
    ):
        changed = {name: w for name, w in {**weights, **change}.items() if w is not None}
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(DamagedCheckpoint, match=message):
            load(folder)
    save_file({}, folder / "model.safetensors")
    with pytest.raises(DamagedCheckpoint):
        load(folder)


@pytest.mark.parametrize(
    "weight_map",
    [None, [], "x", {"a": 1}, {"a": None}, {"a": "missing.safetensors"}, {"a": ".."}, {"a": ""}, {"a": "."}, {}],
    ids=str,
)
def test_a_hostile_index_is_refused(weight_map: Any, folder: Path) -> None:
    (folder / "checksums.json").unlink()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError):
        load(folder)


def test_an_index_cannot_lead_out_of_the_folder(folder: Path) -> None:
    (folder / "checksums.json").unlink()
    shutil.move(folder / "model.safetensors", folder.parent / "outside.safetensors")
    for name in ("../outside.safetensors", str(folder.parent / "outside.safetensors")):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(DamagedCheckpoint, match=r"index\.json lists .*outside\.safetensors"):
            read_weights(folder)


def test_checksums_cannot_lead_out_of_sense(folder: Path) -> None:
    for sums in ({"config.json": 7}, {"../../etc/passwd": "x"}, {"a\0b": "x"}, {"config.json": None}):
        (folder / "checksums.json").write_text(json.dumps(sums))
        with pytest.raises(UserError):
            verify_checkpoint(folder)


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.safetensors"])
def test_pickles_are_never_opened(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "checksums.json").unlink()
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="safetensors"):
        load(folder)
    assert not (folder / "exploded").exists()


@pytest.mark.parametrize(
    ("value", "dtype"),
    [("bfloat16", torch.bfloat16), ("int8", torch.float32), (["x"], torch.float32), (None, torch.float32)],
)
def test_the_stored_type(value: Any, dtype: torch.dtype, folder: Path) -> None:
    edit(folder / "config.json", dtype=value)
    assert stored_dtype(folder) == dtype


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["save_file", "write_checksums", "_write_json"])
def test_a_failed_save_leaves_the_old_model(
    step: str, folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(checkpoint, step, fail)
    with pytest.raises(OSError, match="No space left"):
        save_model(folder, make_model(dim=64), tokenizer)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert os.listdir(folder.parent) == ["model"]


def test_a_disk_that_fails_at_the_last_moment_leaves_the_old_model(
    folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        save_model(folder, make_model(dim=64), tokenizer)
    verify_checkpoint(folder)
    assert os.listdir(folder.parent) == ["model"]


def test_saving_again_replaces_the_folder(folder: Path, tokenizer: Tokenizer) -> None:
    (folder / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"notes\.txt"):
        save_model(folder, make_model(dim=64), tokenizer)
    (folder / "notes.txt").unlink()
    save_model(folder, make_model(dim=64), tokenizer)
    assert set(os.listdir(folder)) == OURS
    assert load(folder).config.dim == 64


def test_a_pointer_is_followed_once_and_may_then_move_on(tmp_path: Path) -> None:
    for step in ("a", "b"):
        (tmp_path / "checkpoints" / step).mkdir(parents=True)
        (tmp_path / "checkpoints" / step / "config.json").write_text("{}")
    write_pointer(tmp_path / "latest", tmp_path / "checkpoints" / "a")
    found = [resolve_checkpoint(path) for path in (tmp_path, tmp_path / "latest")]
    write_pointer(tmp_path / "latest", tmp_path / "checkpoints" / "b")
    assert [folder.resolve().name for folder in found] == ["a", "a"]
