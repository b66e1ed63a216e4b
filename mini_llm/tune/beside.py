"""What reinforcement learning must not unlearn: conversations that are read beside the rewarded answers.

Answers to one kind of question move weights that all kinds use. Rows of what was learned before hold them.
"""

from __future__ import annotations

from mini_llm import log
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.midtraining import mixed_rows
from mini_llm.tune.packing import PackedRows
from mini_llm.tune.rl_config import RlConfig


def conversations_beside(config: RlConfig, tokenizer: Tokenizer) -> PackedRows | None:
    """Return rows of the conversations of `mix.data`, of which `config.rows_beside` join each step; None without any.

    What fine-tuning would hold out of them is not read.

    Raises:
        UserError: as `mixed_rows`.
    """
    if not config.mix.data:
        return None
    rows = mixed_rows(config, tokenizer, val_fraction=config.val_fraction, merge_turns=config.merge_turns)
    epochs = config.max_iters * config.rows_beside / rows.n_rows
    log.info(f"beside the answers {config.rows_beside} rows of conversations a step, {epochs:.2g} epochs")
    return rows
