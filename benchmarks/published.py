"""How near is the speed that `mini-llm plan` predicts for many GPUs to what others have published?

Nothing is timed: shapes and figures are those of the sources, the prediction is `plan`'s, with its usual share of the
peak. MPT's MLP has two matrices instead of three, so its inner width is given as two thirds: the same operations.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from _harness import ROOT, finish, table

sys.path.insert(0, str(ROOT))

OLMO = "configs/8b.yaml block_size=4096 model.max_seq_len=4096 model.rope_scaling=null model.vocab_size=100352"
MPT = "configs/8b.yaml model.vocab_size=50368 model.rope_scaling=null model.max_seq_len=8192"
OLMO_SOURCE, MPT_SOURCE = "OLMo-core 1.2.0, README", "llm-foundry, benchmarking"
TITAN = "torchtitan, performance.md (2024)"
MPT_65B = f"{MPT} model.dim=8192 model.n_layers=80 model.n_heads=64 model.n_kv_heads=64 model.hidden_dim=21845"
MPT_30B = f"{MPT} model.dim=7168 model.n_layers=48 model.n_heads=56 model.n_kv_heads=56 model.hidden_dim=19114"
RUNS = (  # name, GPU, lowest and highest tokens/s of one GPU, source, settings
    ("OLMo 1B, rows of 4,096", "h100", 45_000, 47_000, OLMO_SOURCE,
     f"{OLMO} model.dim=2048 model.n_layers=18 model.n_heads=16 model.n_kv_heads=16 model.hidden_dim=5632"),
    ("OLMo 7B, rows of 4,096", "h100", 9_700, 10_000, OLMO_SOURCE,
     f"{OLMO} model.dim=4096 model.n_layers=32 model.n_heads=32 model.n_kv_heads=32 model.hidden_dim=11008"),
    ("OLMo 13B, rows of 4,096", "h100", 4_400, 4_600, OLMO_SOURCE,
     f"{OLMO} model.dim=5120 model.n_layers=40 model.n_heads=40 model.n_kv_heads=40 model.hidden_dim=13824"),
    ("Llama 3.1 8B, rows of 8,192, compiled, 8 GPUs", "h100", 6_667, 6_667, "torchtitan, benchmarks (2024-12)",
     "configs/8b.yaml block_size=8192"),
    ("Llama 3 8B, rows of 8,192, 64 GPUs", "a100", 2_973, 2_973, TITAN, "configs/8b.yaml block_size=8192"),
    ("Llama 3 70B, rows of 8,192, 64 GPUs", "a100", 331, 331, TITAN, "configs/70b.yaml block_size=8192"),
    ("MPT 65B, rows of 2,048, 64 GPUs", "h100", 1_039, 1_039, MPT_SOURCE,
     f"{MPT_65B} block_size=2048"),
    ("MPT 30B, rows of 2,048, 8 GPUs", "h100", 2_002, 2_002, MPT_SOURCE, f"{MPT_30B} block_size=2048"),
    ("MPT 30B, rows of 8,192, 8 GPUs", "h100", 1_384, 1_384, MPT_SOURCE, f"{MPT_30B} block_size=8192"),
)  # fmt: skip


def predict(gpu: str, words: str) -> tuple[float, float]:
    """Return what `plan` says: tokens/s of one GPU, and the share of the peak that it takes for usual."""
    from mini_llm.config import load_config
    from mini_llm.plan.report import make_plan
    from mini_llm.train.config import TrainConfig

    path, *settings = words.split()
    plan = make_plan(load_config(TrainConfig, ROOT / path, ["model.head_dim=128", *settings]), gpu=gpu)
    assert plan.schedule.tokens_per_second is not None
    return plan.schedule.tokens_per_second, plan.mfu


def compare() -> list[dict[str, Any]]:
    """Return every published run with the prediction and how far it is off the nearest published figure."""
    rows = []
    for name, gpu, low, high, source, words in RUNS:
        predicted, mfu = predict(gpu, words)
        nearest = min(max(predicted, low), high)
        rows.append(
            {"run": name, "gpu": gpu, "published": [low, high], "source": source, "predicted": predicted, "mfu": mfu}
            | {"error": predicted / nearest - 1}
        )
    return rows


def as_table(rows: list[dict[str, Any]]) -> str:
    """Return them in Markdown; what is off by more than 20 % is bold."""
    lines = []
    for row in rows:
        low, high = row["published"]
        published = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        error = f"**{row['error']:+.0%}**" if abs(row["error"]) > 0.2 else f"{row['error']:+.0%}"
        predicted = f"{row['predicted']:,.0f} at {row['mfu']:.0%}"
        lines.append([row["run"], row["gpu"].upper(), published, predicted, error, row["source"]])
    return table(["run", "GPU", "published tokens/s each", "`plan`, at its usual MFU", "off by", "source"], lines)


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the same: it takes seconds")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    asked = parser.parse_args()
    rows = compare()
    print(as_table(rows))
    finish("published", {"runs": rows}, as_json=asked.json, keep=False)


if __name__ == "__main__":
    main()
