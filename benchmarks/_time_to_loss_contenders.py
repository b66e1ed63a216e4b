"""One run of time_to_loss.py, in a process of its own: a contender, a rate, a seed, a number of steps.

The job comes as one JSON object; rows and held-out rows are arrays on the disk, the same ones for all. A job with
`pace` is timed: it does so many steps at each `go`, and no look at held-out rows; all others are run to the end, by no
clock. litgpt runs in an environment that has no Mini-LLM: nothing of it is imported before a contender needs it.

What of the others is their own code, and what had to be written anew, because it lies in a script that trains when it
is imported:

- nanoGPT: its model, its initial weights, its AdamW (`configure_optimizers`, fused on a CPU too). Anew: the loop, and
  the cosine to a tenth. Not Llama: learned positions, LayerNorm, GELU, the head is the embedding.
- nanochat: its model, its initial weights, its MuonAdamW. Anew: the loop, and its schedules of rate, momentum and decay
  as in `scripts/base_train.py`. Its window is "L", as in its recipe for a CPU. Two of its rules reach far below what
  they were made for and are left out, which is kinder: rates by the root of the batch (2,048 tokens would get a
  sixteenth) and decay by the length of the run (23 instead of 0.28). Not Llama: embeddings of values in every second
  layer, norms without weights, squared ReLU, gates, and scores kept within 15.
- transformers: LlamaForCausalLM in its Trainer, all defaults but the rate: linear to zero, no warm-up, no decay.
- litgpt: its model, its initial weights and its cosine from `litgpt.pretrain`, its defaults but for the warm-up (a
  twentieth of the steps; its 2,000 would be more than there are) and the rate.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from _harness import Skipped, tell, wait_for

Build = Callable[[], "Contender"]


class Contender:
    """What a run asks: one step on its rows (R, T+1), and the mean loss of held-out rows, nats."""

    def __init__(self, model: Any, step: Callable[[int, Any], Any], loss: Callable[[Any], Any]) -> None:
        self.model, self.step, self.loss = model, step, loss


class Watch:
    """Looks at held-out rows between steps: how far the run has come."""

    def __init__(self, job: Namespace, contender: Contender) -> None:
        import numpy as np
        import torch

        self.job, self.contender = job, contender
        self.rows = torch.from_numpy(np.load(job.held_out)).long()
        self.few = self.rows[:: max(1, len(self.rows) // job.curve_rows)]  # of the curve
        self.points = {round(job.steps * part / job.points) for part in range(1, job.points)}
        self.steps = 0
        self.curve: list[tuple[int, float]] = []

    def lap(self) -> None:
        """A step is over."""
        self.steps += 1
        if self.steps in self.points:
            self.curve.append((self._tokens(), self._held_out(self.few)))

    def answer(self) -> dict[str, Any]:
        """Return what came out."""
        return {
            "loss": self._held_out(self.rows),
            "tokens": self._tokens(),
            "parameters": n_parameters(self.contender),
            "curve": self.curve,
        }

    def _tokens(self) -> int:
        return self.steps * self.job.batch * self.job.block

    def _held_out(self, rows: Any) -> float:
        """Return the mean loss of rows, nats per token."""
        import torch

        with torch.no_grad():
            parts = rows.split(self.job.batch)
            sums = [float(self.contender.loss(part.to(self.job.device))) * len(part) for part in parts]
        return sum(sums) / len(rows)


class Clock:
    """Times steps: after `WARM` of them, which compile, and then after every `pace`, it answers and waits for `go`."""

    WARM = 4  # nanochat's second step compiles again

    def __init__(self, job: Namespace, contender: Contender, building: float) -> None:
        self.job, self.contender, self.building = job, contender, building
        self.warm: list[float] = []
        self.seconds: list[float] = []
        self.mark = time.perf_counter()

    def lap(self) -> None:
        """A step is over; what lies between two calls is its time.

        Raises:
            SystemExit: nobody asks for more.
        """
        wait_for(self.job.device)
        seconds = time.perf_counter() - self.mark
        if len(self.warm) < self.WARM:
            self.warm.append(seconds)
            if len(self.warm) == self.WARM:
                tell({"ready": True})
                self._await()
        else:
            self.seconds.append(seconds)
            if len(self.seconds) == self.job.pace:
                usual = statistics.median(self.seconds)
                compiling = max(0.0, sum(self.warm) - self.WARM * usual)
                tell({"building": self.building, "compiling": compiling, "seconds": self.seconds})
                self.seconds = []
                self._await()
        self.mark = time.perf_counter()

    def _await(self) -> None:
        if sys.stdin.readline().strip() != "go":
            raise SystemExit


def n_parameters(contender: Contender) -> int:
    """Return how many numbers are learned."""
    return sum(p.numel() for p in contender.model.parameters())


def rows_of(job: Namespace) -> Any:
    """Return all rows of the run, int32, (steps * R, T+1), in the order in which they are trained on."""
    import numpy as np

    return np.load(job.rows, mmap_mode="r")[: job.steps * job.batch]


def run(job: Namespace) -> dict[str, Any]:
    """Train to the end and answer; or, with `pace`, let itself be timed."""
    import torch

    torch.set_float32_matmul_precision("high")  # nanoGPT's setting; it changes nothing on a CPU
    torch.manual_seed(job.seed)
    build = CONTENDERS[job.contender](job)
    began = time.perf_counter()
    contender = build()
    if getattr(job, "pace", 0):
        train(job, contender, Clock(job, contender, time.perf_counter() - began))
        return {}
    watch = Watch(job, contender)
    train(job, contender, watch)
    return watch.answer()


def train(job: Namespace, contender: Contender, watch: Watch | Clock) -> None:
    """Do all steps, each followed by a lap; transformers' Trainer has a loop of its own."""
    import torch

    rows = rows_of(job)
    if isinstance(contender, TheirLoop):
        contender.train(rows, watch)
        return
    for step in range(job.steps):
        part = torch.tensor(rows[step * job.batch : (step + 1) * job.batch], dtype=torch.long)
        contender.step(step, part.to(job.device))
        watch.lap()


# --- contenders ------------------------------------------------------------------------------------------------------


def ours(job: Namespace) -> Build:
    from mini_llm.config import load_config
    from mini_llm.train.config import TrainConfig
    from mini_llm.train.step import Stepper

    config = load_config(TrainConfig, job.config, job.settings)
    shape = {"dim": job.dim, "n_layers": job.layers, "n_heads": job.heads, "vocab_size": job.vocab, "head_dim": None}
    model = config.model.model_dump() | shape | {"n_kv_heads": job.heads, "hidden_dim": None, "max_seq_len": job.block}
    tokens = job.steps * job.batch * job.block
    config = TrainConfig.model_validate(
        config.model_dump()
        | {
            "model": model, "data_dir": job.store, "seed": job.seed, "max_iters": job.steps, "device": job.device,
            "batch_size": job.batch, "block_size": job.block, "gradient_accumulation_steps": 1,
            "warmup_iters": min(config.warmup_iters, max(1, job.steps // 10)),
            "learning_rate": config.learning_rate * job.factor,
            "muon_learning_rate": config.muon_learning_rate * job.factor,
            "min_lr": config.min_lr * job.factor,
            **({"init_tokens": tokens, "soft_tokens": tokens} if job.own_rows else {}),
        }
    )  # fmt: skip

    def build() -> Contender:
        stepper = Stepper(config)
        trainee = stepper.trainee.model
        is_ready: list[bool] = []

        def step(number: int, rows: Any) -> None:
            if not is_ready:
                stepper.compile()
                is_ready.append(True)
            stepper.step()

        return Contender(trainee, step, lambda rows: stepper.evaluation_loss_sum(rows) / rows[:, 1:].numel())

    return build


def in_their_folder(job: Namespace) -> None:
    """Let a checkout's modules be imported; none has a package that could be installed."""
    if not job.checkout:
        raise Skipped("no checkout was given")
    sys.path.insert(0, job.checkout)


def nanogpt(job: Namespace) -> Build:
    in_their_folder(job)
    import torch
    from model import GPT, GPTConfig

    shape = {"n_layer": job.layers, "n_head": job.heads, "n_embd": job.dim, "vocab_size": job.vocab}
    config = GPTConfig(**shape, block_size=job.block, dropout=0.0, bias=False)
    peak = 1e-3 * job.factor
    warmup = max(1, job.steps // 20)

    def build() -> Contender:
        model = GPT(config).to(job.device)
        optimizer = model.configure_optimizers(0.1, peak, (0.9, 0.95), "cuda")  # the name only asks for the fused one
        forward = torch.compile(model)

        def step(number: int, rows: Any) -> None:
            for group in optimizer.param_groups:
                group["lr"] = cosine(number, warmup, job.steps, peak)
            with low_precision(job):
                loss = forward(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())[1]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return Contender(model, step, lambda rows: model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())[1])

    return build


def cosine(step: int, warmup: int, steps: int, peak: float) -> float:
    """nanoGPT's: up in a line, down along a cosine to a tenth."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def low_precision(job: Namespace) -> Any:
    """bfloat16 on a GPU, as all of them do there; float32 on a CPU."""
    import torch

    return torch.autocast("cuda", dtype=torch.bfloat16, enabled=job.device.startswith("cuda"))


def nanochat(job: Namespace) -> Build:
    in_their_folder(job)
    import torch

    try:
        from nanochat.gpt import GPT, GPTConfig
    except ImportError as problem:
        raise Skipped(f"nanochat needs a package that is missing: {problem}") from None
    heads = {"n_head": job.heads, "n_kv_head": job.heads}
    config = GPTConfig(
        sequence_len=job.block, vocab_size=job.vocab, n_layer=job.layers, n_embd=job.dim, window_pattern="L", **heads
    )
    steps, f = job.steps, job.factor
    warmup, warmdown = min(40, max(1, steps // 10)), round(0.65 * steps)

    def rate(it: int) -> float:
        if it < warmup:
            return (it + 1) / warmup
        left = min(1.0, (steps - it) / warmdown)
        return left + (1 - left) * 0.05

    def momentum(it: int) -> float:
        if it < 400:
            return 0.85 + (0.97 - 0.85) * it / 400
        left = min(1.0, (steps - it) / warmdown)
        return 0.97 * left + 0.90 * (1 - left)

    def build() -> Contender:
        model = GPT(config)
        model.init_weights()
        model.to(job.device)
        optimizer = model.setup_optimizer(
            unembedding_lr=0.008 * f, embedding_lr=0.3 * f, scalar_lr=0.5 * f, matrix_lr=0.02 * f, weight_decay=0.28
        )
        forward = torch.compile(model, dynamic=False)

        def step(number: int, rows: Any) -> None:
            forward(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()).backward()
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate(number)
                if group["kind"] == "muon":
                    group["momentum"] = momentum(number)
                    group["weight_decay"] = 0.28 * 0.5 * (1 + math.cos(math.pi * number / steps))
            optimizer.step()
            model.zero_grad(set_to_none=True)

        return Contender(model, step, lambda rows: model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()))

    return build


class TheirLoop(Contender):
    """transformers' Trainer, which gets its rows as a data set and is looked at from a callback."""

    def __init__(self, model: Any, arguments: Any, folder: Any) -> None:
        super().__init__(model, lambda step, rows: None, self.their_loss)
        self.arguments, self.folder = arguments, folder  # the folder goes with it

    def their_loss(self, rows: Any) -> Any:
        """Return the mean loss; transformers shifts the targets by itself."""
        return self.model(input_ids=rows, labels=rows).loss

    def train(self, rows: Any, watch: Watch | Clock) -> None:
        """Let it train on the rows in their order."""
        import torch
        from transformers import Trainer, TrainerCallback

        class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
            def __len__(self) -> int:
                return len(rows)

            def __getitem__(self, index: int) -> Any:
                ids = torch.tensor(rows[index], dtype=torch.long)
                return {"input_ids": ids, "labels": ids}

        class InOrder(Trainer):  # type: ignore[misc]
            def _get_train_sampler(self, train_dataset: Any = None) -> Any:
                return torch.utils.data.SequentialSampler(self.train_dataset)

        model = self.model

        class Laps(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                model.eval()
                watch.lap()
                model.train()

        InOrder(model=model, args=self.arguments, train_dataset=Rows(), callbacks=[Laps()]).train()
        model.eval()


def transformers(job: Namespace) -> Build:
    try:
        import accelerate  # noqa: F401
        from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
    except ImportError as problem:
        raise Skipped(f"{problem}: pip install transformers accelerate") from None
    folder = tempfile.TemporaryDirectory(prefix="trainer-")
    config = LlamaConfig(
        vocab_size=job.vocab, hidden_size=job.dim, intermediate_size=4 * job.dim, num_hidden_layers=job.layers,
        num_attention_heads=job.heads, max_position_embeddings=job.block + 1, use_cache=False,
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=folder.name, max_steps=job.steps, per_device_train_batch_size=job.batch,
        learning_rate=1e-3 * job.factor,
        seed=job.seed, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        use_cpu=not job.device.startswith("cuda"), bf16=job.device.startswith("cuda"), dataloader_pin_memory=False,
    )  # fmt: skip

    def build() -> Contender:
        return TheirLoop(LlamaForCausalLM(config).to(job.device), arguments, folder)

    return build


def litgpt(job: Namespace) -> Build:
    import torch
    from litgpt import GPT, Config
    from litgpt.pretrain import get_lr, initialize_weights
    from litgpt.utils import chunked_cross_entropy

    config = Config(
        block_size=job.block, vocab_size=job.vocab, padded_vocab_size=job.vocab, n_layer=job.layers, n_head=job.heads,
        n_embd=job.dim, intermediate_size=4 * job.dim, rotary_percentage=1.0, parallel_residual=False, bias=False,
        norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP",
    )  # fmt: skip
    peak = 1e-3 * job.factor
    warmup = max(1, job.steps // 20)

    def build() -> Contender:
        model = GPT(config)
        initialize_weights(Namespace(strategy=None), model, n_layer=job.layers, n_embd=job.dim)
        model.to(job.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        forward = torch.compile(model)

        def step(number: int, rows: Any) -> None:
            for group in optimizer.param_groups:
                group["lr"] = get_lr(peak, number, warmup, job.steps, peak / 10)
            with low_precision(job):
                loss = chunked_cross_entropy(forward(rows[:, :-1].contiguous()), rows[:, 1:].contiguous())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        def loss(rows: Any) -> Any:
            scores = model(rows[:, :-1].contiguous())
            return torch.nn.functional.cross_entropy(scores.flatten(0, 1).float(), rows[:, 1:].flatten())

        return Contender(model, step, loss)

    return build


CONTENDERS: dict[str, Callable[[Namespace], Build]] = {
    "nanogpt": nanogpt,
    "nanochat": nanochat,
    "transformers": transformers,
    "litgpt": litgpt,
    "mini-llm": ours,
}

if __name__ == "__main__":
    try:
        tell(run(Namespace(**json.loads(sys.argv[1]))))
    except (Skipped, ImportError) as why:
        tell({"skipped": str(why)})
