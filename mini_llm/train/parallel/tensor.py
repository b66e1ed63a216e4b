"""Tensor parallel: neighbours share each matrix product, for models whose layers are too large for one GPU to hurry.

Queries, keys, values, gate and up are cut by columns, so that each process has heads and inner features of its own;
the output projections are cut by rows, and their partial sums are added up: two sums a block (arXiv 1909.08053). The
stream and its norms are whole in every process. The head scores a share of the vocabulary, and the loss is made of the
shares (`loss_parallel`), so that nobody holds all scores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.distributed.tensor.parallel.style import ParallelStyle

from mini_llm.model.transformer import Transformer


class Whole(ParallelStyle):
    """A module that every process has whole, and feeds the same: so that all parameters are DTensors of one mesh.

    Without it the norms' gradients would be plain, and no clipping and no fused AdamW takes both kinds at once.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def take(_module: nn.Module, inputs: Any, mesh: DeviceMesh) -> Any:
            return (DTensor.from_local(inputs[0], mesh, [Replicate()], run_check=False), *inputs[1:])

        def give(_module: nn.Module, output: Any, _mesh: DeviceMesh) -> Any:
            return output.to_local()

        return distribute_module(module, device_mesh, None, take, give)


def share_products(model: Transformer, mesh: DeviceMesh) -> None:
    """Spread every product of `model` over the one axis of `mesh`."""
    once = PrepareModuleInput(input_layouts=(Replicate(),), desired_input_layouts=(Replicate(),))
    six = (
        Replicate(),
        *[None] * 5,
    )  # what attention is given; as one DTensor, its gradients are added once
    block = {
        "self_attn": PrepareModuleInput(input_layouts=six, desired_input_layouts=six),
        "self_attn.q_proj": ColwiseParallel(),
        "self_attn.k_proj": ColwiseParallel(),
        "self_attn.v_proj": ColwiseParallel(),
        "self_attn.o_proj": RowwiseParallel(),
        "mlp": once,
        "mlp.gate_proj": ColwiseParallel(),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(),
        "input_layernorm": Whole(),
        "post_attention_layernorm": Whole(),
    }
    if model.config.qk_norm:  # they see the heads of this process alone
        block |= {f"self_attn.{name}": SequenceParallel(sequence_dim=2) for name in ("q_norm", "k_norm")}
    for layer in model.model.layers:
        parallelize_module(layer, mesh, block)
    parallelize_module(
        model,
        mesh,
        {
            "model.embed_tokens": RowwiseParallel(input_layouts=Replicate()),
            "model.norm": Whole(),
            "lm_head": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False),
        },
    )
    model.lm_head.register_forward_hook(_whole_scores)


def _whole_scores(_head: nn.Module, _inputs: Any, scores: Any) -> Tensor:
    """Training makes the loss of shares; whoever only looks gets all scores."""
    return scores if torch.is_grad_enabled() else scores.full_tensor()
