"""How fast are standard tasks scored? Items a second, ours beside lm-eval's hf backend, on the same model and items.

Both get the same contexts and continuations as text, in turns; their scores are compared. Loading is not counted.
Without --data the items are the twenty a set of our own in tests/; the figure to quote is that of real sets.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _harness import ROOT, Skipped, finish, machine, median, note, pair_ratio, serve, table, take_turns

TASKS = "hellaswag,arc_easy,piqa,winogrande,openbookqa,sciq,boolq,copa,lambada"
OURS, THEIRS = "mini-llm", "lm-eval hf"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a run or model folder; default: a random one of the demo's shape")
    parser.add_argument("--data", default=str(ROOT / "tests" / "eval" / "sets"), help="a folder with the sets")
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--items", type=int, default=200, help="of each task; default 200")
    parser.add_argument("--batch-size", type=int, default=16, help="of lm-eval; default 16 (its own default is 1)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="20 items, 2 rounds")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--worker", choices=(OURS, THEIRS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.items, args.rounds = min(args.items, 20), 2
    return args


def random_model(folder: Path) -> Path:
    """Write a model of the demo's shape with random weights, and a tokenizer learned from the demo's corpus."""
    from mini_llm.checkpoint import save_model
    from mini_llm.config import load_config, shipped_config
    from mini_llm.data.built_in import built_in_corpus
    from mini_llm.data.sources import read_documents
    from mini_llm.model.transformer import Transformer
    from mini_llm.tokenizer.train import train_tokenizer
    from mini_llm.train.config import TrainConfig

    shape = load_config(TrainConfig, shipped_config("demo.yaml")).model
    tokenizer = train_tokenizer(
        read_documents([built_in_corpus()]),
        folder / "tokenizer",
        vocab_size=shape.vocab_size,
        model_type="bpe",
        sample_bytes=5_000_000,
        seed=0,
    )
    model = Transformer(shape)
    model.init_weights(1)
    save_model(folder / "model", model, tokenizer)
    return folder / "model"


def questions(args: argparse.Namespace) -> dict[str, Any]:
    from mini_llm.eval.evaluate import prepare_questions
    from mini_llm.eval.task import find_tasks

    tasks = find_tasks(args.tasks.split(","), [])
    return {task.task: prepare_questions(task, [Path(args.data)], {}, limit=args.items) for task in tasks}


def ours(args: argparse.Namespace) -> Any:
    from mini_llm.eval.evaluate import ask
    from mini_llm.eval.language_model import LocalModel

    model, asked = LocalModel.load(args.model, device=args.device, dtype="float32"), questions(args)

    def score(name: str) -> list[float]:
        return [response[0] for responses in ask(model, asked[name]).responses for response in responses]

    return worker(score, list(asked))


def theirs(args: argparse.Namespace) -> Any:
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TQDM_DISABLE="1")
    try:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        raise Skipped("pip install 'mini-llm[eval]'") from None
    from mini_llm.pointers import resolve_checkpoint

    folder, asked = resolve_checkpoint(args.model), questions(args)
    model = HFLM(pretrained=str(folder), dtype="float32", device=args.device, batch_size=args.batch_size)

    def score(name: str) -> list[float]:
        pairs = [pair for item in asked[name].items for pair in item.requests]
        found = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        return [float(value) for value, _ in model.loglikelihood(found, disable_tqdm=True)]

    return worker(score, list(asked))


def worker(score: Any, names: list[str]) -> Any:
    for name in names:
        score(name)

    def sample() -> dict[str, Any]:
        answer = {}
        for name in names:
            start = time.perf_counter()
            values = score(name)
            answer[name] = {"seconds": time.perf_counter() - start, "values": values}
        return answer

    return sample


def main() -> None:
    args = parse()
    if args.worker:
        serve(lambda: ours(args) if args.worker == OURS else theirs(args))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or str(random_model(Path(folder)))
        common = [f"--model={model}", f"--data={args.data}", f"--tasks={args.tasks}", f"--items={args.items}"]
        common += [f"--batch-size={args.batch_size}", f"--device={args.device}"]
        command = [sys.executable, str(Path(__file__).resolve()), *common, "--worker"]
        answers, skipped = take_turns({name: [*command, name] for name in (OURS, THEIRS)}, args.rounds)
    n_items = {name: len(one.items) for name, one in questions(args).items()}
    if OURS not in answers or THEIRS not in answers:
        sys.exit(f"nothing to compare: {skipped}")
    rows, result = [], {}
    for name, n in n_items.items():
        a, b = ([answer[name]["seconds"] for answer in answers[who]] for who in (OURS, THEIRS))
        values = [answers[who][0][name]["values"] for who in (OURS, THEIRS)]
        worst = max(abs(x - y) / abs(y) for x, y in zip(*values, strict=True))
        ratio = pair_ratio(b, a)
        result[name] = {"items": n, OURS: n / median(a), THEIRS: n / median(b), "ratio": ratio, "worst": worst}
        rows.append([name, f"{n / median(a):,.1f}", f"{n / median(b):,.1f}", f"{ratio:.1f}", f"{worst:.1e}"])
    whole = [[sum(answer[name]["seconds"] for name in n_items) for answer in answers[who]] for who in (OURS, THEIRS)]
    ratio, total = pair_ratio(whole[1], whole[0]), sum(n_items.values())
    rows.append(["all", f"{total / median(whole[0]):,.1f}", f"{total / median(whole[1]):,.1f}", f"{ratio:.1f}", ""])
    print(table(["task", "mini-llm, items/s", "lm-eval hf, items/s", "times as fast", "greatest difference"], rows))
    note(f"  batch size of lm-eval: {args.batch_size}")
    result = {"machine": machine(args.device), "batch_size": args.batch_size, "tasks": result, "ratio": ratio}
    finish("eval_speed", json.loads(json.dumps(result)), as_json=args.json, device=args.device, keep=not args.quick)


if __name__ == "__main__":
    main()
