"""Milestones: the right steps, small, loadable, and training itself is not touched by them."""

from pathlib import Path

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
    size = sum(f.stat().st_size for f in folders[0].glob("model.safetensors"))
    kept = sum(f.stat().st_size for f in (marked / "checkpoints").rglob("*.safetensors"))
    assert size < 0.2 * kept  # of one checkpoint; a run keeps several
    assert 10 * size < 2 * kept  # all ten: less than two checkpoints
    ours, theirs = (read_weights(run / "checkpoints" / "step-00000010") for run in (plain, marked))
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert not (plain / "milestones").exists()
