"""Every setting of learning from preferences, beside those of supervised fine-tuning."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from mini_llm.config import PathText
from mini_llm.errors import UsageError
from mini_llm.pointers import resolve_checkpoint
from mini_llm.train.config import MOST_STEPS
from mini_llm.tune.config import SftConfig, is_tuned, with_base
from mini_llm.tune.preference_loss import BETAS, LossName, Preference

SLOWER = 50  # than supervised fine-tuning: SmolLM2 took 1/1000 of its rate, Tulu 3 1/10, zephyr 1/40; see docs/LOG.md


class DpoConfig(SftConfig):
    """What `mini-llm dpo --base RUN --data FILES --config FILE KEY=VALUE ...` reads."""

    verb: ClassVar[str] = "dpo"
    shipped: ClassVar[str] = "--config configs/dpo-50m.yaml"

    loss: LossName = "dpo_norm"  # dpo_norm: DPO per token; dpo: as published; ipo; simpo: without a reference
    beta: float | None = Field(None, gt=0, le=1e6)  # unset: dpo_norm 5, dpo 0.1, ipo 0.5, simpo 2
    simpo_gamma: float = Field(1.0, ge=0, le=1e6)  # simpo: by how much the chosen answer's reward must be higher
    sft_weight: float = Field(0.1, ge=0, le=1e6)  # of the chosen answer's own loss per token, beside the preference's

    out_dir: PathText = "runs/dpo"
    batch_size: int = Field(8, ge=1, le=2**20)  # rows in memory at once, each with room for the two answers of a pair
    epochs: float | None = Field(1.0, gt=0, le=MOST_STEPS)

    @property
    def preference(self) -> Preference:
        """The loss of a pair."""
        beta = BETAS[self.loss] if self.beta is None else self.beta
        return Preference(self.loss, beta, self.simpo_gamma if self.loss == "simpo" else 0.0)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one step, both answers and padding included."""
        return self.rows_per_step * (2 * (self.block_size + 1) - 1)


def with_chat_base(config: DpoConfig) -> DpoConfig:
    """Return the settings with what the base decides, as `with_base`, at a rate that is `SLOWER`.

    Raises:
        UsageError: no base or no data was named, or settings that pairs have no use for.
        UserError: the base is no model folder.
    """
    if not config.base:
        raise UsageError("no model to begin from", "name one: mini-llm dpo --base runs/chat --data pairs.jsonl")
    if not config.data:
        raise UsageError("no pairs to learn from", "name some: --data pairs.jsonl; `mini-llm pairs` makes some")
    if config.model.dropout:
        raise UsageError("model.dropout: the model could not be compared with its reference", "leave it out")
    if config.replay:
        raise UsageError("replay: pairs have no text beside them", "sft_weight=... holds the model to good answers")
    full = with_base(config)
    assert isinstance(full, DpoConfig)
    if "learning_rate" in config.model_fields_set:
        return full
    # `with_base` takes half the rate of the base's run; where that was fine-tuning, its own is meant. LoRA has one.
    is_own = not config.lora.rank and is_tuned(resolve_checkpoint(config.base))
    factor = (2 if is_own else 1) / SLOWER
    rates = {"learning_rate": full.learning_rate * factor}
    if "muon_learning_rate" not in config.model_fields_set:
        rates["muon_learning_rate"] = full.muon_learning_rate * factor
    return full.model_copy(update=rates)
