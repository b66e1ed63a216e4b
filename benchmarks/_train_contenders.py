"""What train_throughput.py compares, each in a process of its own: the same step on the same rows of tokens.

litgpt runs in an environment that has no Mini-LLM: nothing of it is imported before a contender needs it.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable
from typing import Any

from _harness import Skipped, is_gpu, stepper_of_same_rows, wait_for


def random_rows(args: argparse.Namespace) -> Any:
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, args.vocab, (args.batch, args.block + 1), generator=generator)


def most_memory_gb(args: argparse.Namespace) -> float:
    """Return the most memory so far: of the GPU, or of this process; litgpt's environment has no Mini-LLM to ask."""
    import torch

    if is_gpu(args.device):
        return torch.cuda.max_memory_allocated(args.device) / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def timed(step: Callable[[], Any], args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """Warm `step` up and return the function that times `args.steps` of it."""

    def sample() -> dict[str, Any]:
        if is_gpu(args.device):
            step()  # takes again the memory that was given up
        wait_for(args.device)
        start = time.perf_counter()
        for _ in range(args.steps):
            step()
        wait_for(args.device)
        seconds = (time.perf_counter() - start) / args.steps
        if is_gpu(args.device):  # the next contender needs it
            sys.modules["torch"].cuda.empty_cache()
        return {"seconds": seconds, "memory_gb": most_memory_gb(args)}

    step()
    sample()
    return sample


def ours(args: argparse.Namespace, change: Callable[[Any], Any] = lambda stepper: stepper.compile()) -> Any:
    model = {"dim": args.dim, "n_layers": args.layers, "n_heads": args.heads, "hidden_dim": args.ff}
    stepper = stepper_of_same_rows(
        {
            "batch_size": args.batch,
            "block_size": args.block,
            "device": args.device,
            "dtype": args.dtype,
            "deterministic": args.deterministic,
            "optimizer": "adamw",
            "model": {**model, "vocab_size": args.vocab, "max_seq_len": args.block},
        },
        random_rows(args),
    )
    change(stepper)
    return timed(stepper.step, args)


def compile_separate(stepper: Any) -> None:
    """Make q, k and v, and gate and up, in products of their own."""
    from mini_llm.model import joined

    joined.JOINED.clear()
    stepper.compile()


def compile_by_head(stepper: Any) -> None:
    """Lay queries and keys out head by head, which costs attention three copies."""
    from mini_llm.model import joined

    joined.BY_TOKEN.clear()
    stepper.compile()


def compile_in_chunks(stepper: Any) -> None:
    """Make the scores a chunk at a time, as a smaller card has to, in the head's one kernel."""
    from mini_llm.train import loss

    loss.MOST_SCORES_BYTES[stepper.device.type] = 0
    stepper.compile()


def compile_in_steps(stepper: Any) -> None:
    """Do the same in PyTorch's own operations."""
    from mini_llm.train import head_loss

    head_loss.IN_ONE_KERNEL.clear()
    compile_in_chunks(stepper)


def compile_and_record(stepper: Any) -> None:
    """Record forward and backward as CUDA graphs: the host starts two things a micro-batch and not some 540."""
    import torch

    if stepper.device.type != "cuda":
        raise Skipped("only CUDA records graphs")
    stepper.compile()
    compiled, example = stepper.loss_sum, stepper.objective.example().to(stepper.device)

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = stepper.trainee.model

        def forward(self, rows: Any) -> Any:
            return compiled(rows)

    with stepper._kernels():
        expected = compiled(example).item()
        stepper.loss_sum = torch.cuda.make_graphed_callables(Whole(), (example,))
        found = stepper.loss_sum(example).item()
    if abs(found - expected) > 1e-3 * abs(expected):
        raise RuntimeError(f"what was recorded computes something else: {found}, not {expected}")


def peer(args: argparse.Namespace, model: Any, loss_of: Callable[[Any], Any]) -> Callable[[], dict[str, Any]]:
    """Train a peer's model as its users do: automatic mixed precision, clipping, fused AdamW."""
    import torch

    if args.peers_reuse_memory:
        from mini_llm.device import reuse_freed_memory

        reuse_freed_memory()
    model.to(args.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    rows = random_rows(args)
    low = args.dtype != "float32"

    def step() -> None:
        with torch.autocast(args.device.split(":")[0], dtype=getattr(torch, args.dtype), enabled=low):
            loss = loss_of(rows.to(args.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return timed(step, args)


def transformers(args: argparse.Namespace, *, compile: bool) -> Callable[[], dict[str, Any]]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=args.dim,
        intermediate_size=args.ff,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        max_position_embeddings=args.block,
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    forward = torch.compile(model, dynamic=False) if compile else model

    def loss_of(rows: Any) -> Any:
        targets = rows[:, 1:].contiguous()
        return forward(input_ids=rows[:, :-1], labels=targets, shift_labels=targets).loss

    return peer(args, model, loss_of)


def nanogpt(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """GPT-2 as nanoGPT trains it, written anew: learned places, LayerNorm, GELU, no biases, a tied head, compiled.

    Its MLP has two matrices where Llama's has three: they are half as wide again, so that a token costs the same.
    """
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_1, self.norm_2 = (nn.LayerNorm(args.dim, bias=False) for _ in range(2))
            self.qkv, self.out = (
                nn.Linear(args.dim, 3 * args.dim, bias=False),
                nn.Linear(args.dim, args.dim, bias=False),
            )
            self.up, self.down = (
                nn.Linear(a, b, bias=False) for a, b in ((args.dim, 3 * args.ff // 2), (3 * args.ff // 2, args.dim))
            )

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (
                part.unflatten(-1, (args.heads, -1)).transpose(1, 2)
                for part in self.qkv(self.norm_1(x)).chunk(3, dim=-1)
            )
            x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
            return x + self.down(F.gelu(self.up(self.norm_2(x))))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(args.vocab, args.dim), nn.Embedding(args.block, args.dim)
            self.blocks = nn.ModuleList(Block() for _ in range(args.layers))
            self.norm, self.head = nn.LayerNorm(args.dim, bias=False), nn.Linear(args.dim, args.vocab, bias=False)
            self.head.weight = self.tokens.weight

        def forward(self, rows: Tensor) -> Tensor:
            x = self.tokens(rows[:, :-1]) + self.places.weight
            for block in self.blocks:
                x = block(x)
            return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), rows[:, 1:].flatten())

    model = GPT()
    for weight in model.parameters():
        if weight.ndim == 2:
            nn.init.normal_(weight, std=0.02)
    return peer(args, model, torch.compile(model, dynamic=False))


def litgpt(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    import torch
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    config = Config(
        block_size=args.block,
        vocab_size=args.vocab,
        padded_vocab_size=args.vocab,
        n_layer=args.layers,
        n_head=args.heads,
        n_embd=args.dim,
        intermediate_size=args.ff,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    model = GPT(config)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.02)
    model.transformer.wte.weight = model.lm_head.weight  # its option tie_embeddings
    forward = torch.compile(model, dynamic=False)

    def loss_of(rows: Any) -> Any:
        return chunked_cross_entropy(forward(rows[:, :-1]), rows[:, 1:].contiguous())

    return peer(args, model, loss_of)


def matmuls(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """Do the matrix products of a step and nothing else, into memory that is there; answer FLOP/s.

    One layer's and the head's, forward and both halves of backward; layers are alike, so one stands for all. From the
    library that is the fastest here.
    """
    import torch

    from mini_llm.device import use_fast_products

    use_fast_products()
    tokens, d, f = args.batch * args.block, args.dim, args.ff
    work = []
    for inputs, outputs, times in [(d, d, 4), (d, f, 2), (f, d, 1), (d, args.vocab, 0)]:
        x, w, y = (
            torch.randn(*size).to(args.device, getattr(torch, args.dtype))
            for size in ((tokens, inputs), (outputs, inputs), (tokens, outputs))
        )
        count = times * args.layers or 1  # 0: the head, once
        work.append((count, 2 * tokens * inputs * outputs, x, w, y))
    results = [(torch.empty_like(y), torch.empty_like(x), torch.empty_like(w)) for _, _, x, w, y in work]

    def seconds(x: Any, w: Any, y: Any, out_y: Any, out_x: Any, out_w: Any) -> float:
        wait_for(args.device)
        start = time.perf_counter()
        torch.mm(x, w.t(), out=out_y)
        torch.mm(y, w, out=out_x)
        torch.mm(y.t(), x, out=out_w)
        wait_for(args.device)
        return time.perf_counter() - start

    def sample() -> dict[str, Any]:
        total = flops = 0.0
        for (count, ops, *tensors), out in zip(work, results, strict=True):
            total += count * min(seconds(*tensors, *out) for _ in range(3))
            flops += count * 3 * ops
        return {"flops_per_second": flops / total}

    sample()
    return sample


# Mini-LLM in other forms: what each choice for a GPU brings.
FORMS: dict[str, Callable[[Any], None]] = {
    "mini-llm separate": compile_separate,
    "mini-llm by head": compile_by_head,
    "mini-llm in chunks": compile_in_chunks,
    "mini-llm in steps": compile_in_steps,
    "mini-llm recorded": compile_and_record,
}
CONTENDERS: dict[str, Callable[[argparse.Namespace], Callable[[], dict[str, Any]]]] = {
    "mini-llm": ours,
    "mini-llm before": ours,
    **{name: functools.partial(ours, change=change) for name, change in FORMS.items()},
    "transformers": lambda args: transformers(args, compile=False),
    "transformers compiled": lambda args: transformers(args, compile=True),
    "nanogpt": nanogpt,
    "litgpt": litgpt,
    "matmuls": matmuls,
}
