"""The plan for a person: tables with frames and colours on a terminal, plain columns in a pipe."""

from __future__ import annotations

import math

from rich import box
from rich.table import Table

from mini_llm import output
from mini_llm.plan.prove import Proof
from mini_llm.plan.report import Plan, as_asked, fits
from mini_llm.units import si, size

PARTS = {
    "weights": "weights, float32",
    "gradients": "gradients, float32",
    "optimizer": "optimizer state",
    "autocast": "16-bit or gathered copies of weights",
    "activations": "activations of a micro-batch",
    "logits": "logits and their gradient",
    "optimizer_work": "the optimizer at work",
    "program": "Python and libraries",
    "allocator": "freed, kept by the allocator",
    "peak": "peak",
}


def show(plan: Plan, proof: Proof | None = None) -> None:
    """Print the plan to stdout, and its proof."""
    console = output.console(soft_wrap=False)
    if not console.is_terminal:
        console.width = 120  # whole lines for a pipe
    proofs = [proof_table(proof)] if proof else []
    for table in (run_table(plan), memory_table(plan), time_table(plan), *proofs):
        table.box = box.ROUNDED if console.is_terminal else None
        table.title_justify, table.title_style = "left", "bold"
        console.print(table)
        console.print()
    if plan.advice:
        adapts = "with auto_batch" in plan.memory
        found = "It does not fit as configured, but with" if adapts else "It does not fit. Change:"
        console.print(found, style="bold green" if adapts else "bold yellow")
        for line in plan.advice:
            console.print(f"  {line}", markup=False)
    elif fits(as_asked(plan.config, plan.memory), plan.machine):
        console.print("It fits as configured.", style="bold green")
    else:
        console.print("How much memory this machine has is unknown.")
    if proof:
        console.print(verdict_of(proof), style="bold green" if proof.holds else "bold red")
    elif plan.gpus > 1:
        console.print("Sharding is computed by formula; --prove builds the shares and counts.", style="dim")
    elif len(plan.memory) > 1:
        console.print("Checkpointing is computed by formula.", style="dim")


def run_table(plan: Plan) -> Table:
    """Return what the model is and what one token costs."""
    model, c = plan.config.model, plan.config
    table = _pairs("Model")
    table.add_row("parameters", f"{plan.parameters:,}, counted on the model built without memory")
    table.add_row(
        "shape", f"{model.n_layers} layers x {model.dim}, {model.n_heads} heads, {model.n_kv_heads} key/value heads"
    )
    table.add_row(
        "training", f"{si(plan.flops_per_token)}FLOPs a token, causal: a token meets half of the {c.block_size:,}"
    )
    item = "32" if plan.kv_bytes_per_token == 8 * model.n_layers * model.n_kv_heads * model.head_dim else "16"
    cache = plan.kv_bytes_per_token
    table.add_row(
        f"KV cache, {item} bit",
        f"{size(cache)} a token, {size(cache * model.max_seq_len)} for {model.max_seq_len:,} tokens",
    )
    return table


def memory_table(plan: Plan) -> Table:
    """Return the parts of the memory, a column for each scenario."""
    machine, c = plan.machine, plan.config
    room = "unknown" if machine.memory is None else size(machine.memory)
    table = Table(title=f"Memory of one device: {machine.name}, {room} (batch_size={c.batch_size}, {c.optimizer})")
    table.add_column("part", style="cyan")
    for name in plan.memory:
        table.add_column(name, justify="right")
    for part, label in PARTS.items():
        values = [memory.as_dict()[part] for memory in plan.memory.values()]
        if any(values):
            table.add_row(label, *map(size, values), style="bold" if part == "peak" else None)
    verdict = {True: "[green]yes[/]", False: "[red]no[/]", None: "?"}
    table.add_row("fits", *(verdict[fits(memory, machine)] for memory in plan.memory.values()))
    return table


def time_table(plan: Plan) -> Table:
    """Return tokens, hours, cost and the loss to expect."""
    s = plan.schedule
    devices = plan.machine.name if plan.machine.is_cpu else f"{plan.gpus} x {plan.machine.name}"
    table = _pairs("Time")
    table.add_row("compute-optimal", f"{si(plan.optimal_tokens)}tokens, 20 for each parameter (arXiv 2203.15556)")
    share = plan.own_tokens / plan.optimal_tokens
    table.add_row("the config's steps", f"{si(plan.own_tokens)}tokens, {share:.2g} of that")
    table.add_row("planned", f"{si(s.tokens)}tokens, {si(s.flops)}FLOPs")
    peak = f"{si(plan.machine.peak)}FLOP/s" if plan.machine.peak else "an unknown speed"
    table.add_row(f"at {plan.mfu:.0%} MFU", f"{hours(s.hours)} on {devices} of {peak} each")
    if s.tokens_per_second:
        table.add_row("speed", f"{s.tokens_per_second:,.0f} tokens/s each")
    if s.cost is not None:
        table.add_row("cost", f"{s.cost:,.2f}")
    first = math.log(plan.config.model.vocab_size)
    last = f", then about {s.loss:.2f} on web text (law of arXiv 2404.10102)" if s.loss else ""
    table.add_row("loss", f"{first:.2f} at first{last}")
    return table


def proof_table(proof: Proof) -> Table:
    """Return what one process holds, counted and planned."""
    table = Table(title=f"Proof: the first of {proof.processes:,} processes, built on fake tensors")
    for name in ("part", "counted", "planned", "difference"):
        table.add_column(name, justify="left" if name == "part" else "right", style="cyan" if name == "part" else None)
    for part, counted in proof.counted.items():
        planned = proof.planned[part]
        table.add_row(PARTS[part], f"{counted:,} B", f"{planned:,} B", f"{counted / planned - 1:+.2%}")
    least, most = f"{proof.least_weights:,} B", f"{proof.most_weights:,} B"
    table.add_row("weights of all processes", f"{least} to", most, "")
    return table


def verdict_of(proof: Proof) -> str:
    """Return what the proof says, in a sentence."""
    if not proof.whole:
        return "The shares do not make up the whole model."
    if not proof.holds:
        return "The plan does not hold: the first process has more or less than planned."
    return "Proved: the shares make up the model, each part is as planned to 1 %, and a whole step was traced on them."


def _pairs(title: str) -> Table:
    table = Table(title=title, show_header=False)
    table.add_column(style="cyan")
    table.add_column()
    return table


def hours(value: float | None) -> str:
    """Return hours in the unit that reads best."""
    if value is None:
        return "an unknown time"
    for unit, length in (("years", 8766.0), ("days", 24.0), ("hours", 1.0)):
        if value >= 2 * length:
            return f"{value / length:,.1f} {unit}"
    return f"{value * 60:,.1f} minutes"
