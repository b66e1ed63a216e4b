"""The step on CUDA: a decoding step of all slots is recorded once as a graph and replayed; sampling is part of it.

A model of 50M parameters has some 200 kernels a token. Launched one by one from Python they take milliseconds, replayed
as a graph a fraction of one. So shapes are fixed: B slots, one new token each, S places, and what changes from step to
step (ids, positions, settings, seeds) lies in tensors at fixed addresses. The chosen ids are written to where the next
step reads them, so that several steps run before the host looks.
Letters: B slots, D width, H query heads, J key/value heads, K head width, S places, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini_llm import log
from mini_llm.inference.darts import as_int64, darts
from mini_llm.inference.eager import EagerBackend, blocks_of
from mini_llm.inference.params import SamplingParams
from mini_llm.inference.sampling import RowParams, sample
from mini_llm.inference.slot_cache import SlotCache, bucket
from mini_llm.model.rmsnorm import RMSNorm
from mini_llm.model.rope import apply_rope, rope_tables
from mini_llm.model.transformer import Transformer


class FusedWeights:
    """The matrices that read the same input, one below the other: one product instead of three, and of two."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.qkv = [
            torch.cat([layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight])
            for layer in blocks_of(model)
        ]
        self.gate_up = [torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]) for layer in blocks_of(model)]


def decode_logits(weights: FusedWeights, cache: SlotCache, ids_B: Tensor, positions_B: Tensor, n_places: int) -> Tensor:
    """Read one token of each of the first B slots; return the scores (B, V) of each slot's next one.

    Static shapes, nothing is decided on the host: this is what a graph records. Keys and values go to each slot's place
    `positions_B`; the first `n_places` places are looked at.
    """
    model, c = weights.model, weights.model.config
    B, turned = len(ids_B), c.n_heads + c.n_kv_heads
    slots_B = torch.arange(B, device=ids_B.device)
    mask_B11S = (torch.arange(n_places, device=ids_B.device) <= positions_B[:, None])[:, None, None]
    x_B1D = model.model.embed_tokens(ids_B[:, None])
    rope = rope_tables(positions_B[:, None], c, x_B1D.dtype)
    for number, layer in enumerate(blocks_of(model)):
        attention, mlp = layer.self_attn, layer.mlp
        qkv = F.linear(norm(x_B1D, layer.input_layernorm), weights.qkv[number])
        heads = qkv.view(B, 1, -1, c.head_dim).transpose(1, 2)  # first the queries, then the keys, then the values
        qk = heads[:, :turned]
        if c.qk_norm:
            queries, keys = qk.split([c.n_heads, c.n_kv_heads], dim=1)
            qk = torch.cat((norm(queries, attention.q_norm), norm(keys, attention.k_norm)), dim=1)
        q_BH1K, k_BJ1K = apply_rope(qk, *rope).split([c.n_heads, c.n_kv_heads], dim=1)
        cache.keys_LBJSK[number][slots_B, :, positions_B] = k_BJ1K[:, :, 0]
        cache.values_LBJSK[number][slots_B, :, positions_B] = heads[:, turned:, 0]
        mixed_BH1K = F.scaled_dot_product_attention(
            q_BH1K,
            cache.keys_LBJSK[number, :B, :, :n_places],
            cache.values_LBJSK[number, :B, :, :n_places],
            attn_mask=mask_B11S,
            enable_gqa=attention.grouped,
        )
        x_B1D = x_B1D + attention.o_proj(mixed_BH1K.transpose(1, 2).reshape(B, 1, -1))
        gate, up = F.linear(norm(x_B1D, layer.post_attention_layernorm), weights.gate_up[number]).chunk(2, dim=-1)
        x_B1D = x_B1D + mlp.down_proj(F.silu(gate) * up)
    return model.lm_head(norm(x_B1D, model.model.norm))[:, 0].float()


def norm(x: Tensor, module: RMSNorm | nn.Identity) -> Tensor:
    """Apply RMSNorm as one kernel where the model's own lines are eight."""
    assert isinstance(module, RMSNorm)
    return F.rms_norm(x, module.weight.shape, module.weight, module.eps)


@dataclass
class Inputs:
    """What changes from step to step, at addresses that stay: (B,) each."""

    ids: Tensor
    positions: Tensor
    written: Tensor  # how many tokens each text has written: the number of its next dart
    seeds: Tensor


@dataclass(frozen=True)
class Text:
    """What a burst needs to know of one slot's text; a slot that rests is given its first free position."""

    token_id: int
    position: int
    written: int
    seed: int
    sampling: SamplingParams


@dataclass
class Recorded:
    """A graph and the tensors that it reads and writes."""

    inputs: Inputs
    params: RowParams
    chosen: Tensor  # (B,)
    replay: Callable[[], None]


WARM_UP = 3  # steps before a recording; with the first one, so many places beyond a text are written


class CudaGraphsBackend(EagerBackend):
    """Prompts as plain PyTorch, single tokens as graphs; a graph that cannot be recorded gives way to plain PyTorch."""

    name = "cuda-graphs"

    def __init__(self, model: Transformer, vocab_size: int) -> None:
        super().__init__(model)
        self.weights, self.vocab_size = FusedWeights(model), vocab_size
        self.works = True
        self._graphs: dict[tuple[object, ...], Recorded] = {}
        self._storage = 0

    @torch.inference_mode()
    def burst(self, texts: list[Text], n_steps: int) -> list[list[int]] | None:
        """Write `n_steps` tokens of the first B slots' texts without a look in between.

        Returns the ids by step and slot, -1 where scores are not finite; None where graphs do not work. The cache has
        room for each position plus `n_steps` and `WARM_UP`.
        """
        try:
            return self._burst(texts, n_steps)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as problem:  # a recording is refused for many reasons
            self.works = False
            log.warn(f"CUDA graphs do not work here, texts are computed slower: {str(problem).splitlines()[0][:200]}")
            return None

    def _burst(self, texts: list[Text], n_steps: int) -> list[list[int]]:
        if self._storage != self.cache.keys_LBJSK.data_ptr():  # the cache has moved: old graphs write elsewhere
            self._graphs.clear()
            self._storage = self.cache.keys_LBJSK.data_ptr()
        n_places = min(bucket(1 + n_steps + max(text.position for text in texts)), self.cache.n_places)
        params = RowParams.of([text.sampling for text in texts], self.device)
        numbers = torch.tensor(
            [[text.token_id, text.position, text.written, as_int64(text.seed)] for text in texts], device=self.device
        ).T
        used = [getattr(params, name) is not None for name in ("top_k", "top_p", "min_p", "typical_p")]
        key = (len(texts), n_places, params.all_greedy, params.any_greedy, *used)
        if key not in self._graphs:
            self._graphs[key] = self._record(Inputs(*numbers.clone()), params, n_places)
        recorded = self._graphs[key]
        for field, row in zip(fields(Inputs), numbers, strict=True):
            getattr(recorded.inputs, field.name).copy_(row)
        for field in fields(RowParams):
            if isinstance(value := getattr(params, field.name), Tensor):
                getattr(recorded.params, field.name).copy_(value)
        steps = []
        for _ in range(n_steps):
            recorded.replay()
            steps.append(recorded.chosen.clone())
        return torch.stack(steps).tolist()

    def _record(self, inputs: Inputs, params: RowParams, n_places: int) -> Recorded:
        chosen_B = torch.zeros_like(inputs.ids)

        def step() -> None:
            logits_BV = decode_logits(self.weights, self.cache, inputs.ids, inputs.positions, n_places)
            picked_B = sample(logits_BV[:, : self.vocab_size], params, darts(inputs.seeds, inputs.written))
            chosen_B.copy_(torch.where(logits_BV.sum(-1).isfinite(), picked_B, -1))
            inputs.ids.copy_(chosen_B.clamp(min=0))
            inputs.positions.add_(1)
            inputs.written.add_(1)

        return Recorded(inputs, params, chosen_B, self._capture(step))

    def _capture(self, step: Callable[[], None]) -> Callable[[], None]:
        """Record `step` and return its replay. What warming up writes lies beyond the texts' ends."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):  # memory is taken and kernels are chosen before the recording
            for _ in range(WARM_UP):
                step()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay
