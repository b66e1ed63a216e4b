"""What is left of the engine's speed after HTTP? Streams in a closed loop: each asks again when it has its answer.

    python benchmarks/serve.py [--quick] [--url URL --model ID] [--soak SECONDS]

With --url, another server of OpenAI's completions is measured: llama.cpp's, or `transformers serve`, on these weights.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

TEXT = "the people of this union have kept their word and the law is as it was in the days of old"
WORDS = TEXT.split(" ")


@dataclass
class Tally:
    """What one load has seen."""

    first: list[float] = field(default_factory=list)  # seconds to the first token
    between: list[float] = field(default_factory=list)  # seconds between two pieces
    tokens: int = 0
    requests: int = 0
    errors: int = 0


def percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values) or [float("nan")]
    return {f"p{p}": round(1000 * ordered[min(len(ordered) - 1, p * len(ordered) // 100)], 2) for p in (50, 95, 99)}


async def ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any], tally: Tally, leave_at: float) -> None:
    """Read one stream; leave it after `leave_at` seconds."""
    began = last = time.perf_counter()
    async with session.post(f"{url}/v1/completions", json=body) as response:
        if response.status != 200:
            tally.errors += 1
            return
        async for line in response.content:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            now, data = time.perf_counter(), json.loads(line[6:])
            if "error" in data:
                tally.errors += 1
                return
            if data.get("usage"):
                tally.tokens += data["usage"]["completion_tokens"]
            elif data["choices"] and data["choices"][0].get("text"):
                (tally.first if last == began else tally.between).append(now - last)
                last = now
            if now - began > leave_at:
                return
    tally.requests += 1


async def load(url: str, model: str, streams: int, n_prompt: int, n_new: int, seconds: float, *, soak: bool) -> Tally:
    """Let `streams` clients ask for `seconds`; in a soak a fifth of them leaves, and one in twenty stops reading."""
    tally, ends = Tally(), time.perf_counter() + seconds
    timeout = aiohttp.ClientTimeout(total=600)

    async def client(number: int) -> None:
        rng = random.Random(number)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
            while time.perf_counter() < ends:
                prompt = " ".join(rng.choices(WORDS, k=n_prompt))
                body = {"model": model, "prompt": prompt, "max_tokens": n_new, "temperature": 0, "stream": True,
                        "ignore_eos": True, "stream_options": {"include_usage": True}}  # fmt: skip
                mood = rng.random() if soak else 1.0
                if mood < 0.05:
                    async with session.post(f"{url}/v1/completions", json=body):
                        await asyncio.sleep(rng.random() * 5)
                    continue
                await ask(session, url, body, tally, rng.random() if mood < 0.25 else 1e9)

    await asyncio.gather(*(client(number) for number in range(streams)))
    return tally


def engine_speed(folder: Path, streams: int, n_prompt: int, n_new: int) -> float:
    """Return the tokens/s of the engine alone."""
    from mini_llm.inference.engine.request import Request
    from mini_llm.inference.generate import Generator
    from mini_llm.inference.sampling.params import SamplingParams

    generator, rng = Generator(folder, device="cpu", max_slots=max(32, streams)), random.Random(0)
    prompts = [generator.encode_prompt(" ".join(rng.choices(WORDS, k=n_prompt))) for _ in range(streams)]
    greedy = SamplingParams(temperature=0)
    asked = [Request(prompt_ids=p, max_new_tokens=n_new, sampling=greedy, ignore_eos=True) for p in prompts]
    for _repeat in range(2):  # the first one grows the cache
        began = time.perf_counter()
        handles = [generator.engine.submit(request) for request in asked]
        n = sum(len(list(handle)) for handle in handles)
    return n / (time.perf_counter() - began)


def random_model(folder: Path, quick: bool) -> Path:
    """Write a model of random weights: 50M parameters, or a tiny one."""
    from mini_llm.checkpoint import save_model
    from mini_llm.model.config import ModelConfig
    from mini_llm.model.transformer import Transformer
    from mini_llm.tokenizer.train import train_tokenizer

    text = [" ".join(WORDS) + " " + Path(__file__).read_text(encoding="utf-8")] * 3
    tokenizer = train_tokenizer(text, folder / "tok", vocab_size=400, model_type="bpe", sample_bytes=10**6, seed=0)
    shape = {"dim": 64, "n_layers": 2, "n_heads": 4} if quick else {}
    model = Transformer(ModelConfig(vocab_size=400 if quick else 32000, max_seq_len=2048, **shape))
    model.init_weights(seed=0)
    save_model(folder / "model", model, tokenizer)
    return folder / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--url")
    parser.add_argument("--model", default="model")
    parser.add_argument("--soak", type=float, default=0.0, help="seconds of 64 streams")
    args = parser.parse_args()
    temporary = tempfile.TemporaryDirectory()
    folder = args.folder or (None if args.url else random_model(Path(temporary.name), args.quick))
    process = None
    url = args.url
    if url is None:
        words = ["serve", str(folder), "--port", "0", "--name", args.model, "--slots", "64"]
        command = [sys.executable, "-m", "mini_llm", *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        url = process.stdout.readline().strip().rstrip("/")
    try:
        loads = [(streams, n_words) for n_words in (16, 256) for streams in (1, 8, 32, 64)]
        for streams, n_prompt in [(1, 16), (4, 16)] if args.quick else loads:
            n_new, seconds = (16, 1.0) if args.quick else (128, 20.0)
            began = time.perf_counter()
            tally = asyncio.run(load(url, args.model, streams, n_prompt, n_new, seconds, soak=False))
            speed = tally.tokens / (time.perf_counter() - began)
            row: dict[str, Any] = {
                "streams": streams,
                "prompt_words": n_prompt,
                "tokens_per_second": round(speed, 1),
                "errors": tally.errors,
                "first_ms": percentiles(tally.first),
                "between_ms": percentiles(tally.between),
            }
            if folder is not None:
                row["share_of_engine"] = round(speed / engine_speed(folder, streams, n_prompt, n_new), 3)
            print(json.dumps(row), flush=True)
        if args.soak:
            memory = psutil.Process(process.pid) if process else None
            before = memory.memory_info().rss if memory else 0
            tally = asyncio.run(load(url, args.model, 64, 16, 128, args.soak, soak=True))
            grown = (memory.memory_info().rss - before) / 1e6 if memory else None
            soaked = {"soak_seconds": args.soak, "requests": tally.requests, "errors": tally.errors, "grown_mb": grown}
            print(json.dumps(soaked))
    finally:
        if process is not None:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        temporary.cleanup()


if __name__ == "__main__":
    main()
