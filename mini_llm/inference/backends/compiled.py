"""The step on a CPU: step.c, and this side of the fence: the model's weights and a step's rows as C sees them.

float32 and bfloat16 weights stay where they are. int8 ones are made here: for each output the largest weight becomes
127; where they are multiplied, activations are int16, the largest of a row 32767. Everything else is float32; the cache
is float32 for float32 weights, else bfloat16.
"""

from __future__ import annotations

from ctypes import POINTER, Structure, addressof, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from mini_llm.inference.backends.eager import Rows, blocks_of
from mini_llm.inference.backends.native import load_native
from mini_llm.inference.backends.pace import Pace
from mini_llm.inference.backends.slot_cache import SlotCache
from mini_llm.model.rope import rope_tables
from mini_llm.model.transformer import Transformer

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}  # F32, BF16, INT8 of step.c


class _Matrix(Structure):
    _fields_ = [("data", c_void_p), ("scale", c_void_p)]


class _Layer(Structure):
    _fields_ = [(name, _Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")] + [
        (name, c_void_p) for name in ("norm_1", "norm_2", "q_norm", "k_norm")
    ]


class _Model(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("n_layers", "dim", "n_heads", "n_kv_heads", "head_dim", "hidden_dim")),
        *((name, c_int32) for name in ("vocab_size", "kind")),
        ("eps", c_float),
        ("embedding", _Matrix),
        ("head", _Matrix),
        ("norm", c_void_p),
        ("layers", POINTER(_Layer)),
    ]


class _Cache(Structure):
    _fields_ = [
        ("keys", c_void_p),
        ("values", c_void_p),
        ("n_slots", c_int64),
        ("n_places", c_int64),
        ("kind", c_int32),
    ]


class _Rows(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("n", "n_wanted")),
        *((name, c_void_p) for name in ("ids", "slots", "positions", "wanted", "cos", "sin", "logits", "scratch")),
    ]


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a matrix (out, in) to int8; return it and the scales (out): weight = int8 * scale, nearly."""
    scale = weight.float().abs().amax(-1).clamp(min=1e-12) / 127
    return (weight.float() / scale[:, None]).round().to(torch.int8), scale


class CompiledBackend:
    """step.c on a model's weights.

    Raises:
        NoCompiler: step.c cannot be compiled here.
    """

    name = "compiled"

    def __init__(self, model: Transformer, *, int8: bool = False) -> None:
        self.config = model.config
        weight = model.lm_head.weight
        assert weight.device.type == "cpu", f"on {weight.device}"
        assert weight.dtype in KINDS, f"of {weight.dtype}"
        self.device, self.int8 = weight.device, int8
        self.dtype = torch.int8 if int8 else weight.dtype
        self.whole_chunks = False
        self.cache = SlotCache(
            model.config, self.device, torch.float32 if self.dtype == torch.float32 else torch.bfloat16
        )
        self._library = load_native()
        self._library.scratch_size.restype = c_int64
        self._library.scratch_size.argtypes = [POINTER(_Model), c_int64, c_int64, c_int64]
        self._library.step.argtypes = [POINTER(_Model), POINTER(_Cache), POINTER(_Rows), c_int64]
        self._library.step.restype = None
        self._kept: list[object] = []  # what C holds pointers to
        self._c_model = self._describe(model)
        self._cos = self._sin = torch.empty(0)
        self._scratch = torch.empty(0)
        self._pace = Pace(torch.get_num_threads())

    def run(self, rows: Rows) -> Tensor:
        """Compute the step; see `Backend.run`."""
        n, cache, most = len(rows.ids), self.cache, torch.get_num_threads()
        if self._cos.shape[0] < cache.n_places:
            self._cos, self._sin = (
                table[0, 0].contiguous()
                for table in rope_tables(torch.arange(cache.n_places)[None], self.config, torch.float32)
            )
        size = self._library.scratch_size(self._c_model, n, cache.n_places, most)
        if self._scratch.shape[0] < size:
            self._scratch = torch.empty(size)
        logits_MV = torch.empty(len(rows.wanted), self.config.vocab_size)
        numbers = [(c_int32 * len(values))(*values) for values in (rows.ids, rows.slots, rows.positions, rows.wanted)]
        c_cache = _Cache(
            cache.keys_LBJSK.data_ptr(), cache.values_LBJSK.data_ptr(), cache.n_slots, cache.n_places,
            KINDS[cache.keys_LBJSK.dtype],
        )  # fmt: skip
        c_rows = _Rows(
            n, len(rows.wanted), *(addressof(values) for values in numbers),
            self._cos.data_ptr(), self._sin.data_ptr(), logits_MV.data_ptr(), self._scratch.data_ptr(),
        )  # fmt: skip
        if self._pace.most != most:
            self._pace = Pace(most)
        self._library.step(self._c_model, c_cache, c_rows, self._pace.begin(n))
        self._pace.end(n)
        return logits_MV

    def _describe(self, model: Transformer) -> _Model:
        c = model.config
        embedding = self._matrix(model.model.embed_tokens.weight)
        layers = (_Layer * c.n_layers)()
        for target, layer in zip(layers, blocks_of(model), strict=True):
            attention, mlp = layer.self_attn, layer.mlp
            for name in ("q", "k", "v", "o"):
                setattr(target, name, self._matrix(getattr(attention, f"{name}_proj").weight))
            for name in ("gate", "up", "down"):
                setattr(target, name, self._matrix(getattr(mlp, f"{name}_proj").weight))
            target.norm_1 = self._vector(layer.input_layernorm.weight)
            target.norm_2 = self._vector(layer.post_attention_layernorm.weight)
            for name in ("q_norm", "k_norm"):
                setattr(target, name, self._vector(getattr(attention, name).weight) if c.qk_norm else None)
        self._kept.append(layers)
        return _Model(
            c.n_layers, c.dim, c.n_heads, c.n_kv_heads, c.head_dim, c.hidden_dim, c.vocab_size, KINDS[self.dtype],
            c.norm_eps, embedding, embedding if c.tie_embeddings else self._matrix(model.lm_head.weight),
            self._vector(model.model.norm.weight), layers,
        )  # fmt: skip

    def _matrix(self, weight: Tensor) -> _Matrix:
        data, scale = quantize(weight) if self.int8 else (weight.detach().contiguous(), None)
        self._kept += [data, scale]
        return _Matrix(data.data_ptr(), None if scale is None else scale.data_ptr())

    def _vector(self, weight: Tensor) -> int:
        vector = weight.detach().float().contiguous()
        self._kept.append(vector)
        return vector.data_ptr()
