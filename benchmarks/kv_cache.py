"""What does the KV cache save? Greedy generation with and without it, by the length of the text.

Without a cache every new token costs a forward pass over the whole text so far; with it, over that token alone. Both
compute the same scores from the same weights, which is checked. The time for one token is taken where the text has the
named length: the cache holds that many tokens, or that many are read anew.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from _harness import finish, machine, median, note, table, wait_for

LENGTHS = (64, 128, 256, 512, 1024, 2048)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="mini-50m", help="the shape: a file of configs/; default mini-50m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each; default 3")
    parser.add_argument("--quick", action="store_true", help="lengths up to 1,024")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    return parser.parse_args()


def seconds(work: Callable[[], Any], device: str) -> float:
    """Return how long `work` takes."""
    wait_for(device)
    start = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - start


def main() -> None:
    args = parse()
    import torch

    from mini_llm.config import load_config, shipped_config
    from mini_llm.model.kv_cache import KVCache
    from mini_llm.model.transformer import Transformer
    from mini_llm.train.config import TrainConfig

    shape = load_config(TrainConfig, shipped_config(f"{args.config}.yaml")).model
    shape = shape.model_copy(update={"max_seq_len": LENGTHS[-1] + 64})
    model = Transformer(shape)
    model.init_weights(1)
    model.to(args.device).eval()
    rows = []
    for length in LENGTHS[:-1] if args.quick else LENGTHS:
        ids = torch.randint(shape.vocab_size, (1, length), generator=torch.Generator().manual_seed(2)).to(args.device)
        with torch.inference_mode():
            cache = KVCache(shape, 1, length, device=args.device)
            model(ids[:, :-1], cache=cache, last_only=True)

            def cached(cache: Any = cache, ids: Any = ids, length: int = length) -> Any:
                cache.rewind(length - 1)
                return model(ids[:, -1:], cache=cache, last_only=True)

            def uncached(ids: Any = ids) -> Any:
                return model(ids, last_only=True)

            if length <= 256:  # and it warms up; longer ones would take longer than what is measured
                assert torch.allclose(cached(), uncached(), atol=1e-3)
            pairs = [(seconds(cached, args.device), seconds(uncached, args.device)) for _ in range(args.rounds)]
        row = {
            "length": length,
            "cached_ms": 1e3 * median(a for a, _ in pairs),
            "uncached_ms": 1e3 * median(b for _, b in pairs),
            "ratio": median(b / a for a, b in pairs),
        }
        rows.append(row)
        note(f"  {length} tokens: {row['ratio']:.1f} times")
    head = ["tokens so far", "ms a token, cached", "ms a token, uncached", "uncached / cached"]
    cells = [
        [f"{r['length']:,}", f"{r['cached_ms']:.1f}", f"{r['uncached_ms']:.1f}", f"{r['ratio']:.1f}"] for r in rows
    ]
    print(table(head, cells))
    about = {"benchmark": "kv_cache", "machine": machine(args.device), "device": args.device}
    result = {**about, "config": args.config, "rows": rows}
    finish("kv_cache", result, as_json=args.json, device=args.device, keep=not args.quick)


if __name__ == "__main__":
    main()
