"""How long until a model's first word, from the moment that the command is typed?

    python benchmarks/cold_start.py [--quick] [--json]

`mini-llm generate` on the 50M model (random weights, bfloat16), as a new process each time: with the step compiled
before, and with an empty cache, so that C must be compiled first. Beside it what `import torch` alone takes, in turns.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _harness import ROOT, finish, machine, median, note, table

PROMPT = "The model"


def write_model(folder: Path) -> Path:
    """Write the 50M model with a small tokenizer of this repository's own words."""
    import torch

    from mini_llm.checkpoint import save_model
    from mini_llm.model.config import ModelConfig
    from mini_llm.model.transformer import Transformer
    from mini_llm.tokenizer.train import train_tokenizer

    documents = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    tokenizer = train_tokenizer(
        documents, folder / "tokenizer", vocab_size=2048, model_type="bpe", sample_bytes=10**7, seed=1
    )
    model = Transformer(ModelConfig())
    model.init_weights(seed=0)
    save_model(folder / "model", model, tokenizer, dtype=torch.bfloat16)
    return folder / "model"


def first_word(model: Path, cache: Path) -> float:
    """Return the seconds until the command has written more than its prompt."""
    command = "from mini_llm.cli import main; main()"
    arguments = ["generate", str(model), "--prompt", PROMPT, "--max-new-tokens", "8", "--seed", "1", "--device", "cpu"]
    started, shown = time.perf_counter(), b""
    with subprocess.Popen(
        [sys.executable, "-c", command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    ) as process:
        assert process.stdout is not None
        while len(shown) <= len(PROMPT):
            piece = process.stdout.read1(1024)  # type: ignore[attr-defined]
            assert piece, f"the command ended after {shown!r}"
            shown += piece
        return time.perf_counter() - started


def import_torch() -> float:
    """Return the seconds that Python takes to start and import torch."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two rounds, and no result file")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"first word": [], "first word, nothing compiled": [], "import torch": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_model(folder)
        first_word(model, folder / "cache")  # compiles
        for turn in range(2 if options.quick else options.rounds):
            note(f"  round {turn + 1}")
            seconds["first word"].append(first_word(model, folder / "cache"))
            seconds["first word, nothing compiled"].append(first_word(model, folder / f"empty-{turn}"))
            seconds["import torch"].append(import_torch())
    medians = {name: median(values) for name, values in seconds.items()}
    print(table(["", "seconds"], [[name, f"{value:.2f}"] for name, value in medians.items()]))
    result = {"machine": machine(), "seconds": medians, "samples": seconds}
    finish("cold_start", result, as_json=options.json, keep=not options.quick)


if __name__ == "__main__":
    main()
