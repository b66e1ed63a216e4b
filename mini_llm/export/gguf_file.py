"""A model folder as one GGUF file, for llama.cpp and whatever is built on it: other names, rows moved, fewer bits.

The `gguf` package, llama.cpp's own, writes the file and quantises. Two things are easy to get wrong, and both give a
model that runs and writes nonsense: the rows of queries and keys (in models of the kind `llama`, llama.cpp turns
neighbouring pairs, Hugging Face turns halves) and the tokenizer (gguf_vocabulary.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mini_llm import log
from mini_llm.checkpoint import load_model, model_weights
from mini_llm.errors import UsageError, UserError
from mini_llm.export.gguf_vocabulary import Vocabulary, read_vocabulary
from mini_llm.files import MADE_HERE, check_page, new_file
from mini_llm.model.config import ModelConfig
from mini_llm.model.rope import rope_frequencies
from mini_llm.tokenizer.folder import has_tokenizer
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.user_files import writing_to

if TYPE_CHECKING:
    from gguf import GGUFWriter

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
K_QUANT = re.compile(r"i?q[1-8]_[\w]+")  # what llama-quantize makes besides
BLOCK = 32  # weights of a row that share a scale in q8_0 and q4_0; a K-quant's block has 256
K_BLOCK = 256
MOST_F16 = 65504.0
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def export_gguf(folder: Path, out: Path, kind: str, *, name: str) -> None:
    """Write the model in `folder` as the GGUF file `out`, whole or not at all; `kind` is one of `TYPES`.

    `name` is what programs show of it. Without a tokenizer in the folder the file has none: it takes and gives ids.

    Raises:
        UsageError: `kind` is none of them; for a K-quant the message has the commands that make one.
        UserError: something in the folder that llama.cpp lacks, by name; a full disk; `out` is another kind of file.
    """
    gguf = _import_gguf()
    check_kind(kind)
    check_page(out)
    model = load_model(folder, device="cpu", dtype=torch.float32)
    config = model.config
    if config.qk_norm and config.rope_scaling:
        raise UserError(f"{folder} is a Qwen3 with Llama 3's RoPE scaling: llama.cpp ignores it there")
    vocabulary = None
    if has_tokenizer(folder):
        vocabulary = read_vocabulary(Tokenizer.load(folder), config.vocab_size)
    else:
        log.warn(f"{folder} holds no tokenizer: {out} will take and give ids alone")
    with writing_to(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with new_file(out) as temporary:
            writer = gguf.GGUFWriter(temporary, _architecture(config))
            _add_shape(writer, config, kind, name)
            _add_vocabulary(writer, vocabulary)
            _write_tensors(writer, dict(_tensors(model_weights(model), config)), kind)


def check_kind(kind: str) -> None:
    """Raise UsageError unless `kind` is one that is written here."""
    if kind in TYPES:
        return
    if K_QUANT.fullmatch(kind.lower()):
        raise UsageError(
            f"{kind} is made by llama.cpp itself, from a GGUF file of more bits",
            "mini-llm export MODEL --to gguf --type f16 --out model.gguf\n"
            f"llama-quantize model.gguf model-{kind.lower()}.gguf {kind.upper()}",
        )
    raise UsageError(f"--type {kind} is not known", f"one of {', '.join(TYPES)}")


def rows_for_k_quants(config: ModelConfig) -> str | None:
    """Return a warning where llama-quantize cannot make K-quants of some matrices, None where it can of all."""
    widths = {config.dim, config.hidden_dim, config.n_heads * config.head_dim}
    odd = sorted(width for width in widths if width % K_BLOCK)
    if not odd:
        return None
    return f"rows of {', '.join(map(str, odd))} do not divide by {K_BLOCK}: llama-quantize gives those more bits"


def to_interleaved(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Turn RoPE's half-split rows (0, K/2, 1, ...) of each head into the neighbouring pairs that llama.cpp turns."""
    rows, columns = weight.shape
    return weight.reshape(n_heads, 2, rows // n_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _import_gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF files need the gguf package", "pip install 'mini-llm[gguf]'") from None
    return gguf


def _architecture(config: ModelConfig) -> str:
    return "qwen3" if config.qk_norm else "llama"


def _add_shape(writer: GGUFWriter, config: ModelConfig, kind: str, name: str) -> None:
    import gguf

    writer.add_type("model")
    writer.add_name(name)
    writer.add_description(MADE_HERE)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary | None) -> None:
    if vocabulary is None:
        writer.add_tokenizer_model("no_vocab")
        return
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges and vocabulary.model == "gpt2":
        writer.add_token_merges(vocabulary.merges)
    for name, i in vocabulary.special_ids.items():
        getattr(writer, f"add_{name}_token_id")(i)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(vocabulary.add_space_prefix)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def _tensors(weights: dict[str, torch.Tensor], config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (llama.cpp's name, float32) of each tensor; views where rows stay."""
    for name, tensor in weights.items():
        stem, weight = name.removesuffix(".weight"), tensor.numpy()
        if not config.qk_norm and stem.endswith(("q_proj", "k_proj")):
            weight = to_interleaved(weight, config.n_heads if stem.endswith("q_proj") else config.n_kv_heads)
        if stem in NAMES:
            yield f"{NAMES[stem]}.weight", weight
        else:
            _, _, layer, part = stem.split(".", 3)
            yield f"blk.{layer}.{NAMES[part]}.weight", weight
    if config.rope_scaling:  # llama.cpp divides each frequency by its factor
        plain = rope_frequencies(config.model_copy(update={"rope_scaling": None}))
        yield "rope_freqs.weight", (plain / rope_frequencies(config)).numpy()


def _write_tensors(writer: GGUFWriter, tensors: dict[str, np.ndarray], kind: str) -> None:
    """Write the list of tensors, then one after the other: only one is held twice."""
    import gguf

    kinds = {name: gguf.GGMLQuantizationType[_kind_of(name, weight, kind).upper()] for name, weight in tensors.items()}
    for name, weight in tensors.items():
        block, n_bytes = gguf.GGML_QUANT_SIZES[kinds[name]]
        size = weight.size // block * n_bytes
        writer.add_tensor_info(name, weight.shape, np.dtype(np.float32), size, raw_dtype=kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, weight in tensors.items():
        writer.write_tensor_data(gguf.quants.quantize(np.ascontiguousarray(weight), kinds[name]))
    writer.close()


def _kind_of(name: str, weight: np.ndarray, kind: str) -> str:
    if weight.ndim == 1:
        return "f32"  # norms: few numbers, and every one counts for a whole row
    if kind.startswith("q") and weight.shape[1] % BLOCK:
        kind = "f16"
    if kind == "f16" and np.abs(weight).max(initial=0) > MOST_F16:
        raise UserError(f"{name} holds numbers above {MOST_F16:,.0f}, the largest of f16", "use --type bf16 or f32")
    return kind
