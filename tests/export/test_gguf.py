"""GGUF files, read by llama.cpp itself: the same ids, the same greedy text, nearly the same loss in fewer bits."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from llama_cpp import open_gguf
from tokenizers import decoders, models, pre_tokenizers, trainers

from mini_llm.checkpoint import load_model, save_model
from mini_llm.errors import UserError
from mini_llm.export import gguf_file
from mini_llm.export.gguf_file import export_gguf
from mini_llm.export.gguf_vocabulary import REST, Kind, read_vocabulary
from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.tokenizer import Tokenizer
from tests.one_core import one_core

gguf = pytest.importorskip("gguf")
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
SHAPES: dict[str, dict[str, object]] = {
    "llama, tied, grouped heads": {},
    "llama, own head": {"tie_embeddings": False, "n_kv_heads": 4},
    "llama, stretched, wide heads": {"rope_scaling": LLAMA3, "head_dim": 32, "rope_theta": 500.0},
    "qwen3": {"qk_norm": True},
}
# What llama.cpp's tokenizer, which knows nothing of our two escapes, cuts otherwise.
KNOWN = ["a \u2581 literal U+2581", "the escape \ue000 itself"]
TEXTS = [
    *KNOWN, "", " ", "a", "   three spaces", "trailing   ", "a\nb", "\n\n\n", "\t\ttabs\t", "line\r\nends\r\n",
    "nul \x00 inside", "\x1b[31mred\x1b[0m", "The people of the United States.", "naïve café", "cafe\u0301",
    "日本語のテキスト", "中文，标点。", "हिन्दी", "مرحبا بالعالم", "שלום", "👩‍👩‍👧‍👦 family", "🇨🇭🏳️‍🌈", "\ufeffBOM",
    "a\u00a0b\u200bc", "A" * 200, "1234567890 3.14159", "def f(x):\n    return x**2\n", "<0x41> <s> </s> <|end|>",
    "ﬁ ½ ①",
]  # fmt: skip
MakeFolder = Callable[..., Path]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with one_core():
        yield


@pytest.fixture(scope="session")
def make_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_store: Path, random_model: Callable[..., Transformer]
) -> MakeFolder:
    """Return `make_folder(tokenizer=None, **shape)`: it writes a model with random weights, sharp enough to differ."""
    made: dict[str, Path] = {}

    def make(tokenizer: Tokenizer | None = None, **shape: object) -> Path:
        tokenizer = tokenizer or Tokenizer.load(tiny_store.parent / "tokenizer")
        key = f"{tokenizer.folder} {shape}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("model") / "folder"
            save_model(made[key], random_model(**{"dim": 64, "vocab_size": 520, **shape}), tokenizer)
        return made[key]

    return make


def export(folder: Path, out: Path, kind: str = "f32") -> Path:
    export_gguf(folder, out, kind, name="test")
    return out


def our_greedy(folder: Path, prompt: list[int], n: int) -> list[int]:
    model = load_model(folder, device="cpu", dtype=torch.float32)
    tokenizer, ids = Tokenizer.load(folder), list(prompt)
    ends = [i for name in ("</s>", "<|end|>", "<|endoftext|>", "<|im_end|>") if (i := tokenizer.special_id(name))]
    for _ in range(n):
        scores = model(torch.tensor([ids]), last_only=True)[0, -1]
        scores[ends] = -torch.inf  # llama.cpp is asked to ignore them too
        best, second = scores.topk(2).values.tolist()
        assert best - second > 1e-4, "too close to call: another seed"
        ids.append(int(scores.argmax()))
    return ids[len(prompt) :]


def common_beginning(folder: Path, path: Path) -> int:
    """Return after how many of 64 greedy tokens llama.cpp leaves Mini-LLM's way."""
    tokenizer = Tokenizer.load(folder)
    prompt = [*tokenizer.prefix_ids, *tokenizer.encode("The people of the United States")]
    ours = our_greedy(folder, prompt, 64)
    with open_gguf(path) as llama:
        theirs = llama.greedy(prompt, 64)
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), 64)


def different_texts(folder: Path, path: Path) -> list[str]:
    tokenizer = Tokenizer.load(folder)
    with open_gguf(path) as llama:
        return [text for text in TEXTS if llama.ids(text) != tokenizer.encode(text)]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_llama_cpp_writes_the_same_64_tokens(shape: dict[str, object], make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(**shape)
    assert common_beginning(folder, export(folder, tmp_path / "m.gguf")) == 64


def same(weight: np.ndarray, n_heads: int) -> np.ndarray:
    return weight


def all_heads(weight: np.ndarray, n_heads: int) -> np.ndarray:
    return INTERLEAVED(weight, 4)  # also of the two that keys have


INTERLEAVED = gguf_file.to_interleaved


@pytest.mark.parametrize("wrong", [same, all_heads])
def test_rows_in_another_order_are_found(
    wrong: Callable[..., np.ndarray], make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_file, "to_interleaved", wrong)
    assert common_beginning(make_folder(), export(make_folder(), tmp_path / "m.gguf")) < 3


def test_llama_cpp_cuts_the_same_ids(make_folder: MakeFolder, tmp_path: Path) -> None:
    path = export(make_folder(), tmp_path / "m.gguf")
    assert different_texts(make_folder(), path) == KNOWN
    tokenizer = Tokenizer.load(make_folder())
    with open_gguf(path) as llama:
        assert llama.ids("Hi", bos=True) == [*tokenizer.prefix_ids, *tokenizer.encode("Hi")]
        assert llama.text(tokenizer.encode("naïve\n  café 😀")) == "naïve\n  café 😀"
        asked = llama.conversation([{"role": "user", "content": "hi"}])
        assert asked.removeprefix("<s>") == "<|user|>hi<|end|><|assistant|>"
        assert llama.ids(asked.removeprefix("<s>"), parse_special=True)[0] == tokenizer.special_id("<|user|>")


def test_a_missing_space_prefix_is_found(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf.GGUFWriter, "add_add_space_prefix", lambda writer, value: None)
    assert len(different_texts(make_folder(), export(make_folder(), tmp_path / "m.gguf"))) > 20


def test_in_fewer_bits_the_loss_is_nearly_the_same(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder()
    ids = torch.randint(8, 512, (1, 41), generator=torch.Generator().manual_seed(2))
    ours = load_model(folder, device="cpu", dtype=torch.float32)(ids[:, :-1])[0]
    loss = torch.nn.functional.cross_entropy(ours, ids[0, 1:]).item()
    for kind, bound in {"f32": 1e-5, "bf16": 5e-3, "f16": 1e-3, "q8_0": 5e-3, "q4_0": 0.2}.items():
        with open_gguf(export(folder, tmp_path / f"{kind}.gguf", kind)) as llama:
            assert llama.loss(ids[0].tolist(), 520) == pytest.approx(loss, rel=bound), kind


@pytest.mark.parametrize("kind", gguf_file.TYPES)
def test_read_back_every_number_is_where_it_was(kind: str, make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(rope_scaling=LLAMA3)
    reader = gguf.GGUFReader(export(folder, tmp_path / "m.gguf", kind))
    model = load_model(folder, device="cpu", dtype=torch.float32)
    found = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    for ours, theirs, heads in (("q", "attn_q", 4), ("k", "attn_k", 2), ("v", "attn_v", 0), ("o", "attn_output", 0)):
        weight = model.get_parameter(f"model.layers.1.self_attn.{ours}_proj.weight").numpy()
        there = found[f"blk.1.{theirs}.weight"]
        if heads:  # undone by the opposite reordering
            there = there.reshape(heads, -1, 2, there.shape[1]).swapaxes(1, 2).reshape(there.shape)
        assert np.abs(there - weight).max() <= {"f32": 0, "f16": 1e-3, "bf16": 5e-3, "q8_0": 1e-2, "q4_0": 0.2}[kind]
    assert np.array_equal(found["blk.0.attn_norm.weight"], model.model.layers[0].input_layernorm.weight.numpy())
    assert "output.weight" not in found, "tied: the head is the embedding"
    assert found["rope_freqs.weight"].shape == (8,)
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    assert kinds[:8] == [Kind.UNKNOWN, *[Kind.CONTROL] * 7]
    assert kinds[8:264] == [Kind.BYTE] * 256
    assert kinds[512:] == [Kind.UNUSED] * 8
    assert reader.fields["tokenizer.ggml.eot_token_id"].contents() == 7


GPT = pre_tokenizers.ByteLevel(add_prefix_space=False)
BARE = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"


def cut(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"), BARE])


BYTE_LEVEL = {
    "gpt-2": GPT,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT]),
    "llama-bpe": cut(rf"{CONTRACTIONS}|\p{{N}}{{1,3}}|{REST}"),
    "qwen2": cut(rf"{CONTRACTIONS}|\p{{N}}|{REST}"),
}


def byte_level(folder: Path, cut: pre_tokenizers.PreTokenizer, texts: list[str], **options: object) -> Tokenizer:
    """Train a byte-level BPE, as SmolLM, Qwen and Llama 3 have one, and write its folder."""
    backend = tokenizers.Tokenizer(models.BPE(**options))
    backend.pre_tokenizer, backend.decoder = cut, decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(folder)


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_byte_level_tokenizers_of_others(
    name: str, make_folder: MakeFolder, tmp_path: Path, sotu_texts: list[str]
) -> None:
    tokenizer = byte_level(
        tmp_path / "bpe",
        BYTE_LEVEL[name],
        [text[:20_000] for text in sotu_texts[::50]],
        ignore_merges=name == "llama-bpe",
    )
    assert read_vocabulary(tokenizer, 520).pre == name
    folder = make_folder(tokenizer)
    path = export(folder, tmp_path / "m.gguf")
    assert different_texts(folder, path) == []
    assert common_beginning(folder, path) == 64


def test_a_tokenizer_that_llama_cpp_lacks_is_refused_by_name(
    make_folder: MakeFolder, tmp_path: Path, sotu_texts: list[str]
) -> None:
    other = byte_level(tmp_path / "bpe", cut(r"\w+|\W+"), [sotu_texts[0][:20_000]])
    with pytest.raises(UserError, match="has no name in"):
        export(make_folder(other), tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_unigram_is_refused_by_name(make_folder: MakeFolder, tmp_path: Path, sotu_texts: list[str]) -> None:
    from mini_llm.tokenizer.train import train_tokenizer

    texts = [sotu_texts[0][:20_000]]
    unigram = train_tokenizer(texts, tmp_path / "u", vocab_size=400, model_type="unigram", sample_bytes=10**5, seed=0)
    with pytest.raises(UserError, match="Unigram"):
        export(make_folder(unigram), tmp_path / "m.gguf")


def test_the_command_line(make_folder: MakeFolder, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    folder = make_folder()
    run = tmp_path / "runs" / "mine"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "step-00000005").symlink_to(folder)
    (run / "latest").symlink_to(Path("checkpoints") / "step-00000005")
    result = run_cli("export", run, "--to", "gguf", "--type", "q8_0", cwd=tmp_path, fresh=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "mine-q8_0.gguf").read_bytes()[:4] == b"GGUF"
    result = run_cli("export", run, "--to", "ollama", "--type", "q8_0", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "mine-ollama" / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./model.gguf"
    assert 'PARAMETER stop "<|end|>"' in lines
    result = run_cli("export", run, "--to", "hf", "--dtype", "bfloat16", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    half, whole = (load_model(f, device="cpu", dtype=torch.float32) for f in (tmp_path / "mine-hf", folder))
    assert torch.equal(half.lm_head.weight, whole.lm_head.weight.bfloat16().float())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--type", "q4_k_m"], 2, "llama-quantize model.gguf model-q4_k_m.gguf Q4_K_M"),
        (["--type", "f17"], 2, "one of f32, f16, bf16, q8_0, q4_0"),
        (["--out", "notes.txt"], 1, "Mini-LLM did not make it"),
    ],
)
def test_what_cannot_be_written_is_said(
    words: list[str], code: int, message: str, make_folder: MakeFolder, tmp_path: Path, run_cli
) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "notes.txt").write_text("mine")
    result = run_cli("export", make_folder(), "--to", "gguf", *words, cwd=tmp_path)
    assert (result.returncode, "Traceback" in result.stderr) == (code, False)
    assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", "hf", "--type", "q8_0"), "--to hf --dtype bfloat16"),
        (("--merge", "--type", "q8_0"), "--to hf --dtype bfloat16"),
        (("--to", "gguf", "--dtype", "bfloat16"), "--to gguf --type bf16"),
        (("--to", "gguf", "--no-chat"), "--to ollama"),
    ],
)
def test_an_option_of_another_target_is_not_passed_over(
    words: tuple[str, ...], said: str, make_folder: MakeFolder, tmp_path: Path, run_cli
) -> None:  # type: ignore[no-untyped-def]
    result = run_cli("export", make_folder(), *words, cwd=tmp_path)
    assert (result.returncode, list(tmp_path.iterdir())) == (2, [])
    assert said in result.stderr


def test_a_folder_is_never_overwritten(make_folder: MakeFolder, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "notes.txt").write_text("mine")
    for target in ("hf", "ollama"):
        result = run_cli("export", make_folder(), "--to", target, "--out", tmp_path)
        assert (result.returncode, "is not empty" in result.stderr) == (1, True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_numbers_beyond_f16_are_refused(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(dim=32)
    model = load_model(folder, device="cpu", dtype=torch.float32)
    model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    save_model(tmp_path / "m", model, Tokenizer.load(folder))
    with pytest.raises(UserError, match="use --type bf16"):
        export(tmp_path / "m", tmp_path / "m.gguf", "f16")
    assert list(tmp_path.glob("*gguf*")) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on a file's size")
@pytest.mark.parametrize("target", ["gguf", "ollama"])
def test_a_limit_on_the_size_of_files_is_said(target: str, make_folder: MakeFolder, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mini_llm", "export", str(make_folder(dim=64)), "--to", target, "--out", "x.gguf"]
    limited = ["bash", "-c", 'ulimit -f 64 && exec "$@"', "bash", *command]  # blocks of 1,024 bytes
    result = subprocess.run(limited, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=120)
    assert (result.returncode, "Traceback" in result.stderr) == (1, False), result.stderr
    assert "cannot write" in result.stderr
    assert "file-size limit" in result.stderr
    assert "ulimit -f" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_is_said(make_folder: MakeFolder, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("mine")
    for target in ("gguf", "ollama", "hf"):
        result = run_cli("export", make_folder(), "--to", target, "--out", tmp_path / "file" / "x")
        assert (result.returncode, "Traceback" in result.stderr) == (1, False), result.stderr
        assert "cannot write" in result.stderr
