"""What is left of the engine's speed after HTTP, and how fast do llama.cpp's and transformers' servers write the same?

    python benchmarks/serve.py [--quick] [--json] [--rounds N] [--soak SECONDS]

A model of 50M random weights, with a tokenizer of its own, is served from one folder: by `mini-llm serve` in bfloat16
and int8, by llama.cpp's server (in the package xllamacpp) from that folder's GGUF files in BF16 and Q8_0, and by
`transformers serve`. 1, 8, 32 and 64 streams ask at once, each twice or more; the contenders take turns with the same
questions, and who is not measured is stopped. The engine alone gets the same questions without a server. Then 64
clients use our server for two minutes and behave as clients do: a fifth leaves, one in twenty does not read.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
from _harness import Skipped, finish, machine, median, note, pair_ratio, table
from _serve_contenders import SLOTS, EngineAlone, ServerProcess, llama_cpp, ours, transformers
from _serve_load import WORDS, Asked, load, questions, soak

EACH = {1: 12, 8: 2, 32: 2, 64: 1}  # how often each of so many streams asks
PAIRS = [("Mini-LLM bf16", "llama.cpp BF16"), ("Mini-LLM int8", "llama.cpp Q8_0")]
SETTLED = 30.0  # seconds of a soak after which memory should grow no more

WORD = Asked("the people", 8)


def write_model(folder: Path, *, quick: bool) -> Path:
    """Write a model of random weights in bfloat16, 50M parameters or a tiny one, with a tokenizer of invented words."""
    import torch

    from mini_llm.checkpoint import save_model
    from mini_llm.model.config import ModelConfig
    from mini_llm.model.transformer import Transformer
    from mini_llm.tokenizer.train import train_tokenizer

    rng = random.Random(0)
    syllables = [consonant + vowel for consonant in "bcdfghjklmnprstvwz" for vowel in "aeiou"]
    invented = ["".join(rng.choices(syllables, k=rng.randint(2, 4))) for _ in range(1000 if quick else 40_000)]
    text = " ".join(invented * 2 + WORDS * 50)
    size = 800 if quick else 32_000
    tokenizer = train_tokenizer(
        [text], folder / "tokenizer", vocab_size=size, model_type="bpe", sample_bytes=10**7, seed=0
    )
    shape: dict[str, Any] = {"dim": 64, "n_layers": 2, "n_heads": 4} if quick else {}
    model = Transformer(ModelConfig(vocab_size=size, max_seq_len=2048, **shape))
    model.init_weights(seed=0)
    save_model(folder / "model", model, tokenizer, dtype=torch.bfloat16)
    return folder / "model"


def p95(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, 95 * len(ordered) // 100)]


def metric(server: ServerProcess, name: str) -> float:
    """Return a number of our server's /metrics."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=5) as response:
        found = re.search(rf"^mini_llm_{name} ([0-9.e+-]+)$", response.read().decode(), re.M)
    assert found, name
    return float(found[1])


def soaked(server: ServerProcess, seconds: float) -> dict[str, Any]:
    """Let 64 clients behave as clients do; return what was left of them."""
    note(f"  soak, {seconds:.0f} s ...")
    process, seen = psutil.Process(server.process.pid), []

    def look(now: float) -> None:
        seen.append((now, process.memory_info().rss / 1e6))

    tally = soak(server.url, server.model, SLOTS, seconds, look)
    ends = time.monotonic() + 15
    while metric(server, "requests_running") + metric(server, "requests_waiting") and time.monotonic() < ends:
        time.sleep(0.05)
    settled = next((size for now, size in seen if now >= min(SETTLED, seconds / 4)), seen[0][1])
    return {
        "seconds": round(tally.seconds, 1),
        "answers": tally.requests,
        "left": tally.left,
        "unread": tally.unread,
        "errors": len(tally.errors),
        "first_error": next(iter(tally.errors), None),
        "tokens_per_second": round(tally.tokens / tally.seconds, 1),
        "slots_left": metric(server, "requests_running") + metric(server, "requests_waiting"),
        "rss_mb": [round(seen[0][1], 1), round(settled, 1), round(seen[-1][1], 1)],
        "grown_mb": round(seen[-1][1] - settled, 1),
    }


class Comparison:
    """All contenders, started one after the other, and what was measured of them."""

    def __init__(self, folder: Path, *, quick: bool) -> None:
        from mini_llm.export.gguf_file import export_gguf

        self.quick, self.servers, self.engines = quick, [], {}
        self.speeds: dict[str, dict[int, list[float]]] = {}
        self.first: dict[str, dict[int, list[float]]] = {}
        self.errors: dict[str, list[str]] = {}
        self.skipped: dict[str, str] = {}

        def gguf(kind: str) -> ServerProcess:
            file = folder.parent / f"{kind}.gguf"
            export_gguf(folder, file, kind.lower(), name="benchmark")
            return llama_cpp(file, kind)

        starts = {
            "Mini-LLM bf16": lambda: ours(folder, "bfloat16"),
            "Mini-LLM int8": lambda: ours(folder, "int8"),
            "llama.cpp BF16": lambda: gguf("BF16"),
            "llama.cpp Q8_0": lambda: gguf("Q8_0"),
            "transformers bf16": lambda: transformers(folder),
        }
        for name, start in starts.items():
            note(f"  starting {name} ...")
            try:
                server = start()
                self.servers.append(server)
                load(server.url, server.model, [[WORD]], plain=server.plain)  # makes what is made once
                server.rest()
            except (Skipped, OSError, ImportError, TimeoutError) as why:
                self.skipped[name] = str(why)
                note(f"  {name}: skipped ({why})")
        for kind, dtype in (("bf16", "bfloat16"), ("int8", "int8")):
            self.engines[f"Mini-LLM {kind}"] = EngineAlone(folder, dtype)

    def _ask(self, server: ServerProcess, streams: int, seed: int) -> None:
        asked = questions(streams, 1 if server.once else EACH[streams], seed)
        tally = load(server.url, server.model, asked, plain=server.plain)
        self.speeds.setdefault(server.name, {}).setdefault(streams, []).append(tally.tokens / tally.seconds)
        self.first.setdefault(server.name, {}).setdefault(streams, []).extend(tally.first)
        self.errors.setdefault(server.name, []).extend(tally.errors)
        note(
            f"  {server.name}, {streams} streams: {tally.tokens / tally.seconds:,.0f} tokens/s in {tally.seconds:.0f} s"
        )

    def round(self, streams: int, seed: int) -> None:
        """Let every contender answer the same questions, in turn; slow ones are asked at few streams, once."""
        for server in self.servers:
            if streams > server.streams or (server.once and seed > 1):
                continue
            # What has rested for a minute may have lost its pages to the system: a word first brings them back.
            server.wake()
            load(server.url, server.model, [[WORD]], plain=server.plain)
            self._ask(server, streams, seed)
            server.rest()
            if server.name in self.engines:
                self.engines[server.name].write(1, 1, 0)
                speed = self.engines[server.name].write(streams, EACH[streams], seed)
                self.speeds.setdefault(f"{server.name}, engine alone", {}).setdefault(streams, []).append(speed)

    def close(self) -> None:
        """End all processes."""
        for each in [*self.servers, *self.engines.values()]:
            each.close()

    def ratio(self, ours: str, theirs: str, streams: int) -> float | None:
        """Return how many times as fast as `theirs` `ours` was, the median over the rounds."""
        pair = [self.speeds.get(name, {}).get(streams, []) for name in (ours, theirs)]
        return pair_ratio(*pair) if all(pair[0]) and all(pair[1]) and len(pair[0]) == len(pair[1]) > 0 else None


def report(found: Comparison, loads: list[int], soak_result: dict[str, Any] | None, args: argparse.Namespace) -> None:
    """Print the tables and write the JSON file."""
    rows = []
    for name, speeds in found.speeds.items():
        other = dict(PAIRS).get(name)
        cells = [name]
        for n in loads:
            cells.append(f"{median(speeds[n]):,.0f}" if speeds.get(n) else "")
        for n in loads:
            times = found.first.get(name, {}).get(n)
            cells.append(f"{1000 * p95(times):,.0f}" if times else "")
        rows.append(cells)
        for label, ratio in (("... of the engine", f"{name}, engine alone"), (f"... times {other}", other)):
            values = [found.ratio(name, ratio, n) if ratio else None for n in loads]
            if any(values):
                form = "{:.0%}" if label.endswith("engine") else "{:.2f}"
                rows.append([label, *(form.format(v) if v else "" for v in values), *[""] * len(loads)])
    head = ["tokens/s", *(f"{n} streams" for n in loads), *(f"p95 first, ms, {n}" for n in loads)]
    print(table(head, rows))
    speeds = {
        name: {n: round(median(values), 1) for n, values in by.items() if any(values)}
        for name, by in found.speeds.items()
    }
    result = {
        "machine": machine("cpu"),
        "parameters": "tiny" if found.quick else "50M",
        "rounds": args.rounds,
        "tokens_per_second": speeds,
        "first_ms": {
            name: {n: {"p50": round(1000 * median(v), 1), "p95": round(1000 * p95(v), 1)} for n, v in by.items() if v}
            for name, by in found.first.items()
        },
        "share_of_engine": {
            ours: {n: found.ratio(ours, f"{ours}, engine alone", n) for n in loads} for ours, _ in PAIRS
        },
        "times_llama_cpp": {ours: {n: found.ratio(ours, other, n) for n in loads} for ours, other in PAIRS},
        "errors": {name: [len(problems), *problems[:1]] for name, problems in found.errors.items()},
        "soak": soak_result,
        "skipped": found.skipped,
    }  # fmt: skip
    for name, problems in found.errors.items():
        if problems:
            note(f"  {name}: {len(problems)} errors, first: {problems[0][:400]!r}")
    if soak_result:
        print("\nSoak:", json.dumps(soak_result))
    finish("serve", result, as_json=args.json, keep=not args.quick)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model, 1 and 8 streams, one round, a soak of 5 s")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--rounds", type=int, help="turns of each contender; default 3, quick 1")
    parser.add_argument("--soak", type=float, help="seconds of 64 clients; default 120, quick 5; 0: none")
    parser.add_argument("--minutes", type=float, default=11, help="no round begins that would end later")
    parser.add_argument("--streams", type=int, nargs="+", default=[], help="default 1 8 32 64, quick 1 8")
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 3)
    seconds = args.soak if args.soak is not None else (5.0 if args.quick else 120.0)
    loads = args.streams or ([1, 8] if args.quick else [*EACH])
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        found = Comparison(write_model(Path(temporary), quick=args.quick), quick=args.quick)
        try:
            longest = 0.0
            for number in range(args.rounds):
                began = time.monotonic()
                if number and began - started + longest + seconds > 60 * args.minutes:
                    break
                for streams in loads:
                    found.round(streams, number + 1)
                longest = max(longest, time.monotonic() - began)
                note(f"  round {number + 1} of {args.rounds}, {longest:.0f} s")
            soak_result = None
            if seconds:
                found.servers[0].wake()
                soak_result = soaked(found.servers[0], seconds)
            report(found, loads, soak_result, args)
        finally:
            found.close()


if __name__ == "__main__":
    main()
