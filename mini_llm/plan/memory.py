"""What training keeps in memory at its fullest moment, part by part.

Two moments compete. Where the backward pass begins, everything that the forward pass kept is there, and the loss head
is busy; gradients are there only if an earlier micro-batch left some. Where the optimizer steps, all that is gone, and
the gradients are complete. What the parts are made of, and how well they fit, is told in README.md.
Letters: B rows, T tokens, D width, F inner width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch

from mini_llm.model.accounting import count_block_matrices, count_block_parameters, count_parameters
from mini_llm.model.causal_attention import blocks as attention_blocks
from mini_llm.model.causal_attention import kept_weights
from mini_llm.model.config import ModelConfig
from mini_llm.plan.activations import HEAP_BLOCK, Saved, eager_activations
from mini_llm.train.compiled import recomputes
from mini_llm.train.config import TrainConfig
from mini_llm.train.head_loss import CHUNK_BYTES
from mini_llm.train.head_room import scores_room
from mini_llm.train.loss import MOST_SCORES_BYTES

# Bytes of `mini-llm train` without its tensors, and of the compiler; measured on Linux (x86-64, torch 2.13).
# In 16 bits a CPU has oneDNN's programs for its products too (AMD EPYC, Zen 5).
PROGRAM, COMPILER, LOW_PRODUCTS = 330e6, 140e6, 70e6
SOFT_BYTES = 16  # of a token that is counted for soft targets, at most `soft_tokens`
# A C heap keeps freed blocks that later ones do not fit into: a third of the live ones measured, 0.31 to 0.43, and more
# when gradients of earlier micro-batches lie between them. Compiled code reuses its buffers.
HEAP_SLACK, HEAP_SLACK_ACCUMULATING = 0.33, 0.7
# Float32 tensors of (B, T, V) at once, eager: log-probabilities, and their gradient before and after the softmax.
# Compiled there is one, in the products' type: the gradient takes the place of the logits.
LOGIT_COPIES_EAGER = 3
# Copies of its largest group of equal matrices that Muon works on: the step, its stack, and the iteration's three.
MUON_COPIES = 5


@dataclass(frozen=True)
class Scenario:
    """How the work is spread: `shards` GPUs each keep their part of weights, gradients and optimizer state (FSDP2)."""

    name: str
    shards: int = 1
    tensor: int = 1  # of which so many share each matrix product, and the scores
    checkpointing: bool = False  # keep each block's input alone and compute the block again in the backward pass


@dataclass(frozen=True)
class Memory:
    """Bytes on one device; `peak` is what its memory must hold, which is less than the sum of all parts."""

    weights: int
    gradients: int
    optimizer: int
    autocast: int
    activations: int
    logits: int
    optimizer_work: int
    program: int
    allocator: int
    peak: int

    def as_dict(self) -> dict[str, int]:
        """Return the parts by name."""
        return asdict(self)


def predict_memory(
    config: TrainConfig, dtype: torch.dtype, scenario: Scenario, *, on_cpu: bool, room: float | None = None
) -> Memory:
    """Return the memory of one device that computes in `dtype`; a GPU of `room` bytes, None: a large one."""
    c, model = config, config.model
    parameters, matrices, shards = count_parameters(model), count_block_matrices(model), scenario.shards
    weights, gradients = 4 * parameters // shards, 4 * parameters // shards
    # AdamW remembers two numbers for each weight, Muon one.
    state = 4 * (2 * parameters - (matrices if c.optimizer == "muon" else 0)) // shards
    work = MUON_COPIES * 4 * _largest_group(model) // shards if c.optimizer == "muon" else 0
    low = dtype != torch.float32
    autocast = 2 * (matrices + model.vocab_size * model.dim) if low else 0
    if shards > 1:  # whole are only the block at work and the next one on its way
        autocast = 2 * (2 if low else 4) * count_block_parameters(model) // scenario.tensor
    saved = activations(c, dtype, checkpointing=scenario.checkpointing, on_cpu=on_cpu)
    logits = head_bytes(c, dtype, on_cpu=on_cpu, room=room)
    if scenario.tensor > 1:
        logits = shared_scores(c, scenario.tensor)
    backward = saved.bytes + logits + autocast + (gradients if c.gradient_accumulation_steps > 1 else 0)
    step = gradients + work
    program = int(PROGRAM + (COMPILER if c.compile else 0) + (LOW_PRODUCTS if low else 0)) if on_cpu else 0
    program += SOFT_BYTES * c.soft_tokens if on_cpu and c.soft_targets else 0
    slack = HEAP_SLACK_ACCUMULATING if c.gradient_accumulation_steps > 1 else HEAP_SLACK
    allocator = int(slack * saved.heap_bytes) if on_cpu and not c.compile else 0
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=state,
        autocast=autocast,
        activations=saved.bytes,
        logits=logits,
        optimizer_work=work,
        program=program,
        allocator=allocator,
        peak=program + weights + state + max(backward + allocator, step),
    )


def head_bytes(config: TrainConfig, dtype: torch.dtype, *, on_cpu: bool, room: float | None = None) -> int:
    """Return what the loss head holds at once: the scores of all tokens, or of a chunk and the gradients made of it."""
    c, model = config, config.model
    scores = 4 * c.batch_size * c.block_size * model.vocab_size
    most, chunk = (MOST_SCORES_BYTES["cpu"], CHUNK_BYTES["cpu"]) if on_cpu else scores_room(room or math.inf)
    item = dtype.itemsize
    if scores <= most or dtype == torch.float16:
        return scores // 4 * item if c.compile else scores * LOGIT_COPIES_EAGER
    # In steps: the scores in their type, in float32, and their gradient; a GPU's kernel writes it in the scores' place.
    chunk = min(scores, chunk) // 4 * (item if item == 4 or not on_cpu else 2 + 4 + 2)
    gradients = 4 * model.dim * (model.vocab_size + c.batch_size * c.block_size)
    return chunk + 2 * gradients  # as computed, and scaled by the loss's own gradient


def shared_scores(config: TrainConfig, tensor: int) -> int:
    """Return what the loss head holds of the scores where `tensor` devices share the vocabulary: never in chunks."""
    scores = 4 * config.batch_size * config.block_size * config.model.vocab_size // tensor
    return scores * LOGIT_COPIES_EAGER


def activations(config: TrainConfig, dtype: torch.dtype, *, checkpointing: bool, on_cpu: bool) -> Saved:
    """Return what one micro-batch's forward pass keeps, the loss head's part left out."""
    c, model = config, config.model
    tokens = c.batch_size * c.block_size
    if c.compile:
        kept = tokens * compiled_bytes_per_token(model, dtype, on_cpu=on_cpu)
        if on_cpu:
            kept += c.batch_size * model.n_heads * kept_weights(c.block_size, dtype) * dtype.itemsize
        largest = 4 * tokens * max(model.dim, model.hidden_dim)
        block = Saved(kept, kept if largest < HEAP_BLOCK else 0)
        rest = Saved(8 * tokens * model.dim, 8 * tokens * model.dim if largest < HEAP_BLOCK else 0)
    else:
        # A GPU's attention keeps no weights, whatever the rows' length: as a CPU's does in rows longer than its blocks.
        longest = attention_blocks().longest
        shape = (c.batch_size, c.block_size) if on_cpu or c.block_size > longest else (1, max(tokens, longest + 1))
        block, rest = (saved.scaled(tokens / math.prod(shape)) for saved in eager_activations(model, *shape, dtype))
    blocks = block.scaled(model.n_layers)
    if checkpointing:  # the stream at each block's entrance is float32 also under autocast
        entrances = 4 * tokens * model.dim * model.n_layers
        blocks = Saved(entrances + block.bytes, entrances + block.heap_bytes)
    return Saved(blocks.bytes + rest.bytes, blocks.heap_bytes + rest.heap_bytes)


def compiled_bytes_per_token(model: ModelConfig, dtype: torch.dtype, *, on_cpu: bool) -> int:
    """Return what one compiled block keeps of one token: what goes into its matrix products, and what comes out.

    The stream before attention and before the MLP, in float32; queries, keys, values, attention's result; gate and up;
    one number a head; both normalised and the product of gate and up, where these are not computed again, as what lies
    within a norm, RoPE or SiLU is. A CPU also has attention's result in order of tokens; a GPU queries and keys as they
    were before RoPE, in the joined product that values are a part of.
    """
    item = dtype.itemsize
    q, kv = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    dropped = 2 * model.dim if model.dropout else 0
    attention = 3 * q + (2 if on_cpu else 3) * kv
    again = 0 if on_cpu and recomputes(model) else 2 * model.dim + model.hidden_dim
    return 8 * model.dim + item * (attention + 2 * model.hidden_dim + again) + 4 * model.n_heads + dropped


def _largest_group(model: ModelConfig) -> int:
    """Return the numbers in the largest group of matrices of one shape: gate and up, or queries and output."""
    mlp = 2 * model.dim * model.hidden_dim
    return model.n_layers * max(mlp, 2 * model.dim * model.n_heads * model.head_dim)
