"""What of a model a checkpoint holds: all its weights, or, where most are frozen, only those that the run changes."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor

from mini_llm.checkpoint import model_weights, write_model_files
from mini_llm.model.accounting import count_parameters
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.weights import read_weights


def count_trained(model: Transformer) -> int:
    """Return how many numbers are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def parameters_in_words(model: Transformer) -> str:
    """Return how many parameters a model has, and how many are trained where that is not all of them."""
    whole, trained = count_parameters(model.config), count_trained(model)
    beside = "" if trained == whole else f", frozen, and {trained:,} beside them that are trained"
    return f"{whole:,} parameters ({model.config.n_layers} layers x {model.config.dim}){beside}"


class Kept(Protocol):
    """How the weights of a run are written and read."""

    def weights(self, model: Transformer) -> dict[str, Tensor]:
        """Return what is written, by the names in the file; nothing is copied."""

    def write(self, folder: Path, weights: dict[str, Tensor], config: ModelConfig, tokenizer: Tokenizer) -> None:
        """Fill an existing `folder` with all files of a model folder but the checksums."""

    def load(self, folder: Path, model: Transformer) -> None:
        """Give `model` what a checkpoint of this run holds.

        Raises:
            UserError: it belongs to another base.
            DamagedCheckpoint: a file is damaged.
            RuntimeError, KeyError: it does not fit `model`.
        """


class WholeModel:
    """All weights, as a folder that every program reads."""

    def weights(self, model: Transformer) -> dict[str, Tensor]:
        """Return all weights."""
        return model_weights(model)

    def write(self, folder: Path, weights: dict[str, Tensor], config: ModelConfig, tokenizer: Tokenizer) -> None:
        """Fill `folder` with a model folder."""
        write_model_files(folder, weights, config, tokenizer)

    def load(self, folder: Path, model: Transformer) -> None:
        """Give `model` the folder's weights."""
        weights = read_weights(folder)
        if model.config.tie_embeddings:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        model.load_state_dict(weights)
