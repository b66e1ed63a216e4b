"""The ladder: a few small runs of a recipe tell what the big run will reach before it is spent, and how it should look.

Every rung is the config's own recipe, its model smaller by one rule, trained to the end of a schedule of its own on a
third of a budget of tokens and on all of it. Before that the smallest rung looks for better rates.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mini_llm import log
from mini_llm.data.mixture import Mixture
from mini_llm.errors import UsageError, UserError
from mini_llm.files import new_file
from mini_llm.model.accounting import count_block_matrices, flops_per_token
from mini_llm.model.config import ModelConfig
from mini_llm.plan.law import Law, Point, fit, foretell
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.config import TrainConfig
from mini_llm.train.evaluate_mixture import evaluator_of
from mini_llm.train.speed import seconds_per_step
from mini_llm.train.step import NotFinite, Stepper
from mini_llm.user_files import writing_to

FACTORS = (1.0, 0.5, 2.0)  # of all rates, on the smallest rung; further where the best is at the edge, twice at most
LEAST_STEPS = 20  # of the shortest run: fewer are all warm-up
STARTS = 0.15  # share of the minutes left for building, compiling and looking


@dataclass(frozen=True)
class Rung:
    """One run to be done, or done."""

    size: int  # weights of the blocks, as asked for
    parameters: int  # of all products
    tokens: int
    factor: float
    loss: float  # held-out, nats per token; inf: it diverged
    seconds: float


@dataclass(frozen=True)
class Found:
    """What the rungs say of the big run."""

    config: TrainConfig
    rungs: list[Rung]
    law: Law
    loss: float
    low: float
    high: float
    factor: float  # of the rates
    shape: ModelConfig  # for the same operations as `config` asks for
    shape_tokens: int
    shape_loss: float

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON's types."""
        own = {key: getattr(self, key) for key in ("loss", "low", "high", "factor", "shape_tokens", "shape_loss")}
        return {
            "parameters": products(self.config.model),
            "tokens": budget(self.config),
            **own,
            "shape": {key: getattr(self.shape, key) for key in ("dim", "n_layers", "n_heads")},
            "law": asdict(self.law),
            "rungs": [asdict(rung) for rung in self.rungs],
        }


def products(model: ModelConfig) -> int:
    """Return N: the weights that a token is multiplied with, the head's among them, also where it is tied."""
    return count_block_matrices(model) + model.vocab_size * model.dim


def budget(config: TrainConfig) -> int:
    """Return the tokens that a run of this config sees."""
    return config.max_iters * config.tokens_per_step


def parse_sizes(text: str) -> list[int]:
    """Return sizes in weights, smallest first: "0.5M,1M" are 500,000 and 1,000,000.

    Raises:
        UsageError: no sizes, or fewer than two.
    """
    units = {"K": 1e3, "M": 1e6, "B": 1e9}
    sizes = set()
    for word in text.split(","):
        number, unit = word.strip()[:-1], units.get(word.strip()[-1:].upper())
        try:
            size = float(number) * unit if unit else float(word)
        except ValueError:
            size = math.nan
        if not 1e3 <= size <= 1e12:
            raise UsageError(f"--sizes: '{word}' is no size", "for example: --sizes 0.5M,1M,2M,5M")
        sizes.add(round(size))
    if len(sizes) < 2:
        raise UsageError("--sizes: a curve needs two sizes at least", "for example: --sizes 0.5M,1M,2M,5M")
    return sorted(sizes)


def smaller(model: ModelConfig, size: float) -> ModelConfig:
    """Return the shape nearest to `size` weights in its blocks: depth, heads and MLP in proportion to the width."""
    shapes = [_of_width(model, dim) for dim in range(16, 16 * 1024, 16) if dim <= 8 * model.dim]
    return min(shapes, key=lambda shape: abs(math.log(count_block_matrices(shape) / size)))


def _of_width(model: ModelConfig, dim: int) -> ModelConfig:
    share = dim / model.dim
    heads = max(h for h in range(1, max(1, round(model.n_heads * share)) + 1) if dim % (2 * h) == 0)
    groups = model.n_heads // model.n_kv_heads
    values = {
        "dim": dim,
        "n_layers": max(1, round(model.n_layers * share)),
        "n_heads": heads,
        "n_kv_heads": heads // groups if heads % groups == 0 else heads,
        "head_dim": dim // heads,
        "hidden_dim": max(16, round(model.hidden_dim * share / 16) * 16),
    }
    return ModelConfig.model_validate(model.model_dump() | values)


def climb(config: TrainConfig, sizes: Sequence[int], minutes: float, out: Path) -> Found:
    """Train the rungs within about `minutes`, keep each in `out`, and return what they say; called again, go on.

    Raises:
        UserError: the tokens cannot be read, or `out` holds another ladder.
        UsageError: the minutes are too few.
    """
    models = {size: smaller(config.model, size) for size in sizes}
    if len({products(model) for model in models.values()}) < len(sizes):
        raise UsageError("--sizes: two of them come out as one shape", "give sizes that are further apart")
    kept = _Kept(out, config, sizes, minutes)
    steps = kept.steps or _steps_within(config, models, minutes)
    kept.begin(steps)
    short = steps // 3
    first = {factor: kept.run(sizes[0], models[sizes[0]], short, factor) for factor in FACTORS}
    for _ in range(2):
        factor = min(first, key=lambda f: first[f].loss)
        if factor in (min(first), max(first)):
            further = factor / 2 if factor == min(first) else factor * 2
            first[further] = kept.run(sizes[0], models[sizes[0]], short, further)
    factor = min(first, key=lambda f: first[f].loss)
    if not math.isfinite(first[factor].loss):
        raise UserError("the smallest rung diverges at all rates that were tried", "try learning_rate=1e-3")
    rungs = [kept.run(size, models[size], n, factor) for size in sizes for n in (short, steps)]
    points = [Point(r.parameters, r.tokens, r.loss) for r in rungs if math.isfinite(r.loss)]
    if len({p.parameters for p in points}) < 2 or len({p.tokens for p in points}) < 2:
        raise UserError("too many rungs diverged to draw a curve", "try a lower learning_rate")
    said, low, high = foretell(points, products(config.model), budget(config))
    law = fit(points)
    shape, tokens, best = _best_shape(config, law)
    return Found(
        config, list(dict.fromkeys([*first.values(), *rungs])), law, said, low, high, factor, shape, tokens, best
    )


def _steps_within(config: TrainConfig, models: dict[int, ModelConfig], minutes: float) -> int:
    """Return the steps of the longer runs, so that all runs together take the minutes.

    Raises:
        UsageError: they are too few.
    """
    if config.max_iters // 3 < LEAST_STEPS:
        raise UsageError(f"max_iters={config.max_iters} are too few steps", f"give {3 * LEAST_STEPS} or more")
    log.info("measuring this machine, rung by rung (compiling takes up to a minute each) ...")
    seconds = [seconds_per_step(config.model_copy(update={"model": model}), steps=3) for model in models.values()]
    every_step = sum(seconds) * 4 / 3 + seconds[0] * len(FACTORS[1:]) / 3
    steps = min(config.max_iters, int(60 * minutes * (1 - STARTS) / every_step))
    if steps // 3 < LEAST_STEPS:
        needed = 3 * LEAST_STEPS * every_step / 60 / (1 - STARTS)
        more = f"give --minutes {math.floor(needed) + 1}, or fewer --sizes"
        raise UsageError(f"{minutes:g} minutes are too few here for these sizes", more)
    return steps


def _best_shape(config: TrainConfig, law: Law) -> tuple[ModelConfig, int, float]:
    """Return the shape, tokens and loss that the law likes best among those that cost what `config` costs."""
    cost = flops_per_token(config.model, config.block_size) * budget(config)
    candidates = []
    for eighth in range(-24, 17):  # an eighth to four times the size
        shape = smaller(config.model, count_block_matrices(config.model) * 2 ** (eighth / 8))
        tokens = int(cost / flops_per_token(shape, config.block_size))
        candidates.append((law.loss(products(shape), tokens), tokens, shape))
    loss, tokens, shape = min(candidates, key=lambda found: found[0])
    return shape, tokens, loss


class _Kept:
    """The finished runs of a ladder, a line each; the first line says of what."""

    def __init__(self, out: Path, config: TrainConfig, sizes: Sequence[int], minutes: float) -> None:
        self.config, self.path = config, out / "ladder.jsonl"
        mixture = Mixture.open(config.data_dir)
        self.about = {
            "config": config.model_dump(mode="json"), "sizes": list(sizes), "minutes": minutes,
            "tokens": mixture.fingerprints,
        }  # fmt: skip
        self.mixture, self.steps = mixture, 0
        self.done: dict[tuple[int, int, float], Rung] = {}
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        try:
            first, *lines = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
            steps, about = int(first.pop("steps")), first
            done = [Rung(**line) for line in lines]
        except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError):
            raise UserError(f"{self.path} cannot be read as a ladder", "give another folder: --out DIR") from None
        if about != json.loads(json.dumps(self.about)):
            raise UserError(f"{self.path} is of another ladder", "give another folder: --out DIR")
        self.steps = steps
        self.done = {(rung.size, rung.tokens, rung.factor): rung for rung in done}

    def begin(self, steps: int) -> None:
        """Write down what this ladder is of, before the first run: a folder that cannot be written ends it here."""
        self.steps = steps
        with writing_to(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write()

    def _write(self) -> None:
        lines = [self.about | {"steps": self.steps}, *map(asdict, self.done.values())]
        with new_file(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def run(self, size: int, model: ModelConfig, steps: int, factor: float) -> Rung:
        """Return a run, of this call or of one before."""
        key = size, steps * self.config.tokens_per_step, factor
        if key not in self.done:
            config, began = rung_config(self.config, model, steps, factor), time.perf_counter()
            loss = train_rung(config, self.mixture)
            seconds = round(time.perf_counter() - began, 1)
            self.done[key] = Rung(size, products(model), key[1], factor, loss, seconds)
            with writing_to(self.path):
                self._write()
        rung = self.done[key]
        log.info(
            f"{model.n_layers} x {model.dim}, {rung.tokens:,} tokens, rates x {factor:g}: "
            f"{rung.loss:.4f} nats/token ({rung.seconds:.0f} s)"
        )
        return rung


def rung_config(config: TrainConfig, model: ModelConfig, steps: int, factor: float) -> TrainConfig:
    """Return the recipe for a rung: its schedule ends after `steps`, all rates times `factor`."""
    rates = {key: getattr(config, key) * factor for key in ("learning_rate", "muon_learning_rate", "min_lr")}
    warmup = min(config.warmup_iters, max(1, steps // 10))
    return config.model_copy(
        update={**rates, "model": model, "max_iters": steps, "warmup_iters": warmup, "lr_decay_iters": None}
    )


def train_rung(config: TrainConfig, mixture: Mixture) -> float:
    """Train, and return the held-out loss; infinity where it diverged."""
    stepper = Stepper(config)
    stepper.compile()
    try:
        for _ in range(config.max_iters):
            stepper.step()
    except NotFinite:
        return math.inf
    evaluator = evaluator_of(config, mixture, Tokenizer.load(mixture.stores[0].tokenizer_folder))
    with stepper.average.in_place():
        return evaluator.run(stepper.evaluation_loss_sum, stepper.device).loss
