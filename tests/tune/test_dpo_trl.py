"""Losses of preference equal TRL's trainers' on the same pairs and the same two models."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mini_llm.checkpoint import load_model, save_model
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.dpo import Preferences, prepared
from mini_llm.tune.dpo_config import DpoConfig
from mini_llm.tune.log_probs import document_log_probs

trl = pytest.importorskip("trl", reason="needs trl")
THEIRS = {"dpo_norm": "sigmoid_norm", "dpo": "sigmoid", "ipo": "ipo"}


@pytest.fixture(scope="module")
def policy(base: Path, chat_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base after some training: every weight a little elsewhere."""
    model = load_model(base, device="cpu", dtype=torch.float32)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=draw)
    folder = tmp_path_factory.mktemp("policy") / "model"
    save_model(folder, model, chat_tokenizer)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {"prompt": f"Spell {n} cat.", "chosen": f"c a t {n}", "rejected": "cat dog " * (1 + n % 4)} for n in range(9)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ours(base: Path, data: Path, out: Path, **changes: Any) -> Preferences:
    """All pairs in one step."""
    values = {"base": str(base), "data": [str(data)], "out_dir": str(out), "block_size": 63, "val_fraction": 0.2}
    config = DpoConfig.model_validate({**values, "device": "cpu", "dtype": "float32", "epochs": None, **changes})
    config, packed = prepared(config)
    config = config.model_copy(update={"batch_size": packed[0].n_rows})
    out.mkdir(exist_ok=True)
    return Preferences(config, packed)


def batch_of(objective: Preferences) -> dict[str, torch.Tensor]:
    """The step's pairs as TRL has them: all chosen answers, then all rejected ones, padded on the right."""
    found = objective.train_rows.conversations
    parts = [slice(a, b) for a, b in zip(found.starts[:-1], found.starts[1:], strict=True)]
    shape = (len(parts), int(found.lengths.max()))
    batch = {name: torch.zeros(shape, dtype=torch.int64) for name in ("input_ids", "attention_mask", "completion_mask")}
    for row, part in enumerate([*parts[::2], *parts[1::2]]):
        n = part.stop - part.start
        batch["input_ids"][row, :n] = torch.from_numpy(found.ids[part].astype("int64"))
        batch["attention_mask"][row, :n] = 1
        batch["completion_mask"][row, :n] = torch.from_numpy(found.learned[part].astype("int64"))
    return batch


def trainer(base: Path, policy: Path, out: Path, **changes: Any) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    args = trl.DPOConfig(output_dir=str(out), use_cpu=True, bf16=False, report_to=[], disable_dropout=True, **changes)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = "<|user|>"  # some other token than the one that ends: it is masked
    rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    model, reference = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (policy, base))
    made = trl.DPOTrainer(model, reference, args, train_dataset=rows, processing_class=tokenizer)
    made.model.eval()
    return made


@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("loss", THEIRS)
def test_the_loss_is_that_of_trl(loss: str, beta: float, base: Path, policy: Path, data: Path, tmp_path: Path) -> None:
    objective = ours(base, data, tmp_path, loss=loss, beta=beta, sft_weight=0.0)
    model = load_model(policy, device="cpu", dtype=torch.float32)
    rows = objective.rows(0)
    mine = objective.loss_sum(model, rows, torch.float32).item() / objective.targets(rows)
    theirs = trainer(base, policy, tmp_path / "trl", loss_type=[THEIRS[loss]], beta=beta)
    expected = theirs.compute_loss(theirs.model, batch_of(objective)).item()
    assert mine == pytest.approx(expected, abs=1e-5, rel=1e-5)
    assert objective.means()["preference_loss"] == pytest.approx(mine)


def test_the_term_of_sft_is_that_of_trl_a_pair(base: Path, policy: Path, data: Path, tmp_path: Path) -> None:
    """TRL takes the mean over the tokens of a batch, we over pairs: a long answer counts as much as a short one."""
    objective = ours(base, data, tmp_path, loss="dpo", beta=0.1, sft_weight=0.5)
    model = load_model(policy, device="cpu", dtype=torch.float32)
    rows = objective.rows(0)
    mine = objective.loss_sum(model, rows, torch.float32).item()
    theirs = trainer(base, policy, tmp_path / "trl", loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5], beta=0.1)
    whole = batch_of(objective)
    n = len(whole["input_ids"]) // 2
    alone = [{name: values[[i, n + i]] for name, values in whole.items()} for i in range(n)]
    expected = sum(theirs.compute_loss(theirs.model, pair).item() for pair in alone)
    assert mine == pytest.approx(expected, abs=1e-4, rel=1e-5)


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 1.0), (2.5, 0.0)])
def test_simpo_is_that_of_trl(beta: float, gamma: float, base: Path, policy: Path, data: Path, tmp_path: Path) -> None:
    cpo = pytest.importorskip("trl.experimental.cpo.cpo_trainer", reason="TRL has moved its CPOTrainer")
    objective = ours(base, data, tmp_path, loss="simpo", beta=beta, simpo_gamma=gamma, sft_weight=0.0)
    model = load_model(policy, device="cpu", dtype=torch.float32)
    rows = objective.rows(0)
    mine = objective.loss_sum(model, rows, torch.float32).item()
    log_p, lengths = document_log_probs(model, rows.rows, torch.float32, 2 * objective.n_pairs)
    per_token = (log_p / lengths).view(-1, 2)[lengths.view(-1, 2)[:, 0] > 0]
    settings = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"), loss_type="simpo", beta=beta, simpo_gamma=gamma, label_smoothing=0,
        alpha=0.0,
    )  # fmt: skip
    losses, *_ = cpo.CPOTrainer.cpo_loss(settings, per_token[:, 0], per_token[:, 1])
    assert mine == pytest.approx(losses.sum().item(), rel=1e-5)
    assert not (tmp_path / "reference.safetensors").exists(), "it needs no reference"
