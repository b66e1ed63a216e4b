"""Tasks while training: a fixed draw of items of each, asked between two steps.

The same items each time, so that a curve shows the model and not the draw. No random state is touched, and a run with
tasks ends with the same bits as one without.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mini_llm.device import pick_dtype
from mini_llm.eval.evaluate import Questions, ask, prepare_all
from mini_llm.eval.language_model import LocalModel
from mini_llm.eval.metrics import PROPORTIONS
from mini_llm.eval.results import lines, mean_centred
from mini_llm.eval.sets import parse_data
from mini_llm.eval.task import Task, find_tasks
from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.config import TrainConfig


def task_probe(config: TrainConfig, tokenizer: Tokenizer) -> TaskProbe | None:
    """Return what a run asks by `eval_tasks`; None: nothing.

    Raises:
        UserError: a task or its rows are not there. Better before the first step than after a night.
    """
    return TaskProbe(config, tokenizer) if config.eval_tasks else None


class TaskProbe:
    """Asks the model `eval_tasks_items` items of each of `eval_tasks`."""

    def __init__(self, config: TrainConfig, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.before_batch: Callable[[], None] = lambda: None
        folders, files = parse_data(config.eval_tasks_data)
        tasks = find_tasks(config.eval_tasks, [])
        self.questions: list[Questions] = []
        for group in dict.fromkeys(task.group or task.task for task in tasks):
            members = [task for task in tasks if (task.group or task.task) == group]
            self.questions += prepare_all(members, folders, files, draw=self._share(members), seed=config.seed)

    def _share(self, members: list[Task]) -> int:
        """Return how many items of each member of a family make the wanted number of all."""
        return -(-self.config.eval_tasks_items // len(members))

    def run(self, model: Transformer) -> dict[str, float]:
        """Return each share and perplexity with its standard error."""
        inner = LocalModel(model, self.tokenizer)
        inner.before_batch = self.before_batch
        device = model.lm_head.weight.device
        dtype = pick_dtype(self.config.dtype, device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            table = lines([ask(inner, questions) for questions in self.questions])
        found: dict[str, float] = {}
        for line in table:
            if line["filter"] == "none":
                key = f"tasks/{line['task']}/{line['metric']}"
                found[key] = line["value"]
                if line["stderr"] is not None:
                    found[f"{key}_stderr"] = line["stderr"]
        if (mean := mean_centred(table)) is not None:
            found["tasks/mean_centred"] = mean
        return found

    def describe(self, found: dict[str, float]) -> str:
        """Return the shares with their errors: acc_norm where a task has it."""
        best: dict[str, str] = {}
        for key, value in found.items():
            _, task, *metric = key.split("/")
            if metric and metric[0] in PROPORTIONS and (task not in best or metric[0] == "acc_norm"):
                best[task] = f"{task} {100 * value:.1f} ± {100 * found.get(f'{key}_stderr', 0.0):.1f} %"
        return ", ".join(best.values())
