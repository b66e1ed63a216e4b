"""Milestones: the right steps, small, loadable, and training itself is not touched by them."""

from pathlib import Path

import pytest
import torch

from mini_llm.checkpoint import load_model, read_weights
from mini_llm.train.run.milestones import milestone_steps
from mini_llm.train.train import train


def test_the_steps_are_powers_of_two() -> None:
    assert milestone_steps(1) == {1}
    assert milestone_steps(10) == {1, 2, 4, 8}
    assert milestone_steps(1023) == {2**n for n in range(10)}
    assert milestone_steps(5000) == {2**n for n in range(3, 13)}


def test_a_run_keeps_them(make_config, tmp_path: Path) -> None:
    plain = train(make_config(tmp_path / "plain", keep_last=1))
    marked = train(make_config(tmp_path / "marked", keep_last=1, milestones=True))
    folders = sorted((marked / "milestones").iterdir())
    assert [folder.name for folder in folders] == [f"step-{step:08d}" for step in (1, 2, 4, 8)]
    for folder in folders:
        model = load_model(folder, device="cpu", dtype=torch.float32)
        assert model.config.vocab_size == 512
        assert all(weight.dtype == torch.bfloat16 for weight in read_weights(folder).values())
    ours, theirs = (read_weights(run / "checkpoints" / "step-00000010") for run in (plain, marked))
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert not (plain / "milestones").exists()


def disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize(("optimizer", "share"), [("adamw", 1 / 6), ("muon", 1 / 4)])
def test_their_disk_has_a_bound(make_config, tmp_path: Path, optimizer: str, share: float) -> None:
    """Ten of them, the most there are: 20 bytes a parameter, where a checkpoint has 12, or 8 at least with Muon."""
    shape = {"dim": 128, "n_layers": 4, "n_heads": 4, "vocab_size": 512}  # mostly matrices, which Muon takes
    run = train(make_config(tmp_path / "run", optimizer=optimizer, milestones=True, max_iters=4, model=shape))
    milestones = [disk(folder) for folder in (run / "milestones").iterdir()]
    (checkpoint,) = [disk(folder) for folder in (run / "checkpoints").iterdir()]
    assert len(milestones) == 3
    assert max(len(milestone_steps(n)) for n in (1, 1024, 10**6)) == 10
    assert 10 * max(milestones) < 2.6 * checkpoint
    assert max(milestones) < 1.1 * share * checkpoint
