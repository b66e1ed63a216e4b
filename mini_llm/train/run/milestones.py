"""Milestones: the weights alone, in bfloat16, at steps spaced by powers of two, kept for ever.

Learning goes by the logarithm of the steps, and checkpoints are pruned: without these there is nothing to look back at.
One takes 2 bytes a parameter, where a checkpoint takes 12 with AdamW's state, 8 to 12 with Muon's. There are ten at
most, so that all take less than two and a half checkpoints; the demo's take 120 MB, its two checkpoints 115. A tenth of
the disk of the checkpoints that stay would be one milestone there, and nothing to compare it with.
"""

from __future__ import annotations

from pathlib import Path

import torch

from mini_llm.checkpoint import CHECKPOINT_FOLDER, write_checksums
from mini_llm.files import new_folder
from mini_llm.model.config import ModelConfig
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.run.kept import Kept

MOST = 10


def milestone_steps(max_iters: int) -> set[int]:
    """Return the last ten powers of two up to `max_iters`; all of them where there are fewer."""
    return {2**n for n in range(max_iters.bit_length())[-MOST:]}


def save_milestone(
    run: Path, step: int, weights: dict[str, torch.Tensor], config: ModelConfig, tokenizer: Tokenizer, kept: Kept
) -> Path:
    """Write what is kept of the weights of `step`, bfloat16 on the CPU, as a model folder, whole or not at all.

    Raises:
        OSError: the disk is full.
    """
    folder = run / "milestones" / f"step-{step:08d}"
    with new_folder(folder, CHECKPOINT_FOLDER) as temporary:
        kept.write(temporary, weights, config, tokenizer)
        write_checksums(temporary)
    return folder
