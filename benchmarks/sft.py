"""How fast does fine-tuning learn conversations, beside TRL's SFTTrainer, and does it learn the same?

The same model, the same rows packed with whole conversations, the same targets and AdamW: the losses of the first steps
must be equal. TRL gets the rows in both ways in which it takes packed ones: as rows with positions that begin anew, and
flattened into one (what its `packing=True` makes). Contenders take turns.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _harness import finish, machine, median, note, pair_ratio, serve, table, take_turns, tell, wait_for

QUICK = {"layers": 2, "dim": 64, "vocab": 1024, "block": 128, "batch": 4, "rounds": 2, "steps": 2, "conversations": 400}
COMPARED = 8  # first steps whose losses are held against each other
NEVER = 10**6  # a step that no turn comes to
SKILLS = ("spelling", "copying", "addition", "identity", "recall", "reading", "forms", "system")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shape = {"layers": 4, "dim": 192, "vocab": 8192, "batch": 8, "block": 512, "conversations": 6000}
    for key, value in shape.items():
        parser.add_argument(f"--{key}", type=int, default=value, help=f"default {value}")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender; default 5")
    parser.add_argument("--steps", type=int, default=4, help="training steps in a turn; default 4")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--contenders", help="comma-separated; default: all")
    parser.add_argument("--quick", action="store_true", help=f"a smaller question: {QUICK}")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        parser.set_defaults(**QUICK)
        args = parser.parse_args()
    return args


# --- the same model and the same conversations ----------------------------------------------------------------------


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """Write a model of random weights and conversations made by program of State of the Union addresses."""
    from mini_llm.checkpoint import save_model
    from mini_llm.demo import built_in_corpus
    from mini_llm.model.config import ModelConfig
    from mini_llm.model.transformer import Transformer
    from mini_llm.tokenizer.train import train_tokenizer
    from mini_llm.tune.skills import Material, exercises

    texts = [path.read_text(encoding="utf-8") for path in sorted(built_in_corpus().glob("*.txt"))[::8]]
    tokenizer = train_tokenizer(
        texts, folder / "tokenizer", vocab_size=args.vocab, model_type="bpe", sample_bytes=10**7, seed=0
    )
    model = Transformer(
        ModelConfig(
            dim=args.dim, n_layers=args.layers, n_heads=max(1, args.dim // 96), vocab_size=args.vocab,
            max_seq_len=args.block, tie_embeddings=False,
        )
    )  # fmt: skip
    model.init_weights(seed=0)
    save_model(folder / "base", model, tokenizer)
    material = Material.of(texts)
    with (folder / "chat.jsonl").open("w", encoding="utf-8") as file:
        for skill in SKILLS:
            for exercise in exercises(skill, args.conversations // len(SKILLS), seed=0, material=material):
                file.write(json.dumps(exercise.record()) + "\n")


def settings(args: argparse.Namespace) -> Any:
    """Return a run at one rate, without warm-up, that goes on for ever."""
    from mini_llm.tune.config import SftConfig

    return SftConfig.model_validate(
        {
            "base": str(args.folder / "base"), "data": [str(args.folder / "chat.jsonl")], "epochs": None,
            "max_iters": NEVER, "warmup_iters": 0, "lr_schedule": "wsd", "cooldown_fraction": 0.001,
            "batch_size": args.batch,
            "block_size": args.block, "learning_rate": 1e-3, "optimizer": "adamw", "device": args.device,
            "dtype": "float32", "deterministic": False,
        }
    )  # fmt: skip


# --- contenders ------------------------------------------------------------------------------------------------------


def ours(args: argparse.Namespace, *, compile: bool = True) -> None:
    from mini_llm.train.step import Stepper
    from mini_llm.tune.sft import Answers, prepared

    def ready() -> Callable[[], dict[str, Any]]:
        config, packed = prepared(settings(args).model_copy(update={"compile": compile}))
        stepper = Stepper(config, Answers(config, packed))
        stepper.compile()
        losses = [stepper.step().loss for _ in range(args.steps)]

        def sample() -> dict[str, Any]:
            wait_for(args.device)
            start = time.perf_counter()
            losses.extend(stepper.step().loss for _ in range(args.steps))
            return {"seconds": (time.perf_counter() - start) / args.steps, "losses": losses}

        return sample

    serve(ready)


def trl(args: argparse.Namespace, *, flat: bool) -> None:
    """Train with SFTTrainer, as far as it is let: it waits for its turn where a step begins."""
    try:
        import trl
    except ImportError as problem:
        tell({"skipped": f"{problem}: pip install trl"})
        return
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from mini_llm.tune.sft import prepared

    _, (rows, _) = prepared(settings(args))
    losses: list[float] = []

    class Rows(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        """The rows of the steps, one after the other: ids, targets, and positions that begin anew."""

        def __iter__(self) -> Any:
            step = 0
            while True:
                found = rows.rows(step * args.batch, args.batch)
                labels = found.ids.masked_fill(found.weights == 0, -100)
                places = torch.arange(found.ids.shape[1]).expand_as(found.ids)
                begins = torch.ones_like(found.documents, dtype=torch.bool)
                begins[:, 1:] = found.documents[:, 1:] != found.documents[:, :-1]
                positions = places - (places * begins).cummax(1).values
                batch = {"input_ids": found.ids, "labels": labels, "position_ids": positions}
                yield {key: value.reshape(1, -1) if flat else value for key, value in batch.items()}
                step += 1

    class Turns(TrainerCallback):  # type: ignore[misc]
        started = 0.0

        def on_step_begin(self, *_args: Any, **_more: Any) -> None:
            n = len(losses)
            if n < args.steps or n % args.steps:
                return
            if n == args.steps:
                tell({"ready": True})
            else:
                wait_for(args.device)
                tell({"seconds": (time.perf_counter() - self.started) / args.steps, "losses": losses})
            if sys.stdin.readline().strip() != "go":
                raise SystemExit(0)
            self.started = time.perf_counter()

    class Recording(trl.SFTTrainer):  # type: ignore[misc, name-defined]
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(Rows(), batch_size=None)

        def training_step(self, *words: Any, **more: Any) -> Any:
            loss = super().training_step(*words, **more)
            losses.append(loss.item())
            return loss

    out = str(args.folder / f"trl-{flat}")
    made = Recording(
        model=AutoModelForCausalLM.from_pretrained(args.folder / "base", dtype=torch.float32),
        args=trl.SFTConfig(
            output_dir=out, per_device_train_batch_size=1, max_steps=NEVER, learning_rate=1e-3,
            lr_scheduler_type="constant",
            warmup_steps=0, weight_decay=0.0, adam_beta1=0.9, adam_beta2=0.95, max_grad_norm=1.0,
            bf16=False, report_to=[],
            use_cpu=args.device == "cpu", save_strategy="no", logging_strategy="no", disable_tqdm=True, max_length=None,
            gradient_checkpointing=False, remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True},
            dataloader_pin_memory=False, packing=False,
        ),
        train_dataset=Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]}),  # it asks for one; see Rows
        processing_class=AutoTokenizer.from_pretrained(args.folder / "base"),
        callbacks=[Turns()],
    )  # fmt: skip
    made.train()


CONTENDERS: dict[str, Callable[[argparse.Namespace], None]] = {
    "mini-llm": ours,
    "mini-llm, eager": lambda args: ours(args, compile=False),
    "trl, rows": lambda args: trl(args, flat=False),
    "trl, flattened": lambda args: trl(args, flat=True),
}


# --- the question ----------------------------------------------------------------------------------------------------


def main() -> None:
    args = parse()
    if args.worker:
        CONTENDERS[args.worker](args)
        return
    from mini_llm.device import pick_device

    args.device = str(pick_device(args.device))
    wanted = args.contenders.split(";") if args.contenders else list(CONTENDERS)
    keys = ("layers", "dim", "vocab", "batch", "block", "conversations", "steps", "device")
    words = [word for key in keys for word in (f"--{key}", str(getattr(args, key)))]
    with tempfile.TemporaryDirectory() as name:
        note("  making a model and conversations ...")
        prepare(args, Path(name))
        starter = [sys.executable, __file__, *words, "--folder", name]
        answers, skipped = take_turns({c: [*starter, "--worker", c] for c in CONTENDERS if c in wanted}, args.rounds)
    speeds = {c: [args.batch * args.block / a["seconds"] for a in found] for c, found in answers.items()}
    losses = {c: found[-1]["losses"][:COMPARED] for c, found in answers.items()}
    mine, peers = speeds.get("mini-llm"), {c: median(s) for c, s in speeds.items() if c.startswith("trl")}
    best = max(peers, key=lambda c: peers[c], default=None)
    result = {
        "benchmark": "sft",
        "machine": machine(args.device),
        "shape": {key: getattr(args, key) for key in ("layers", "dim", "vocab", "batch", "block")},
        "device": args.device,
        "rounds": args.rounds,
        "steps": args.steps,
        "tokens_per_second": {c: round(median(s), 1) for c, s in speeds.items()},
        "samples": {c: [round(x, 1) for x in s] for c, s in speeds.items()},
        "first_losses": losses,
        "furthest_apart": {c: furthest(losses["mini-llm"], found) for c, found in losses.items()} if mine else {},
        "ratios": {c: pair_ratio(mine, s) for c, s in speeds.items() if c != "mini-llm"} if mine else {},
        "best_peer": best,
        "ratio_to_best_peer": pair_ratio(mine, speeds[best]) if mine and best else None,
        "skipped": skipped,
        "versions": {name: version(name) for name in ("torch", "trl", "transformers", "accelerate")},
    }
    show(result)
    finish("sft", result, as_json=args.json, device=args.device, keep=not (args.quick or args.contenders))


def furthest(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def show(result: dict[str, Any]) -> None:
    """Print the table, the fastest first, and under what it was measured."""
    ratios, apart = result["ratios"], result["furthest_apart"]
    lines = [
        [c, f"{speed:,.0f}", f"{ratios[c]:.2f}x" if c in ratios else "-", f"{apart[c]:.1e}" if c in apart else "?"]
        for c, speed in sorted(result["tokens_per_second"].items(), key=lambda pair: -pair[1])
    ]
    print(
        table(["contender", "tokens/s", "mini-llm is faster by", f"loss of the first {COMPARED} steps, apart"], lines)
    )
    about, losses = result["machine"], result["first_losses"].get("mini-llm", [])
    print(f"\n{about['gpu'] or about['cpu']}, {about['cores']} cores, float32, torch {about['torch']};")
    print(f"medians of {result['rounds']} turns. Losses: {', '.join(f'{loss:.4f}' for loss in losses)}.")
    for name, why in result["skipped"].items():
        print(f"{name} was skipped: {why}")


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
