"""The reference: how probable the base holds each answer, computed once, before training, and kept in the run.

It comes from the same packed forward pass as training, so that the first loss is exactly that of two equal models; and
it needs no second model while training. A run that goes on reads it from its folder, where its file tells of which base
and which pairs it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mini_llm import log
from mini_llm.adapter import fingerprint
from mini_llm.checkpoint import load_model, write_tensors
from mini_llm.device import attention_kernels, pick_device, pick_dtype, use_fast_products
from mini_llm.errors import UserError
from mini_llm.files import new_file
from mini_llm.pointers import list_checkpoints
from mini_llm.tune.dpo_config import DpoConfig
from mini_llm.tune.log_probs import document_log_probs
from mini_llm.tune.packing import PackedRows
from mini_llm.tune.preference_loss import NO_REFERENCE

REFERENCE = "reference.safetensors"
Reference = tuple[Tensor, Tensor]  # log p of the conversations to learn from, and of those held out


def kept_reference(config: DpoConfig, base: Path, packed: Sequence[PackedRows]) -> Reference:
    """Return the reference that lies in the run folder; one that is missing, or of other pairs, is computed first.

    Raises:
        UserError: the run has learned already, and its base is another one now.
    """
    learned, held_out = packed
    if config.loss in NO_REFERENCE:
        return torch.zeros(learned.conversations.n), torch.zeros(held_out.conversations.n)
    path = Path(config.out_dir) / REFERENCE
    wanted = {
        "base": fingerprint(base),
        "pairs": learned.conversations.fingerprint(),
        "held_out": held_out.conversations.fingerprint(),
        "dtype": str(pick_dtype(config.dtype, pick_device(config.device))),
    }
    found = _read(path)
    if found is not None:
        said, reference = found
        if said == wanted:
            return reference
        if said.get("base") != wanted["base"] and list_checkpoints(path.parent):
            raise UserError(
                f"{path.parent} began from other weights than those in {base}",
                "name its own base, or begin anew: --no-resume moves the old run aside",
            )
        log.info(f"{path} is of other pairs or another precision: computed anew")
    learned_log_p, held_out_log_p = computed(config, base, packed, [range(rows.n_rows) for rows in packed])
    with new_file(path) as temporary:
        write_tensors({"learned": learned_log_p, "held_out": held_out_log_p}, temporary, metadata=wanted)
    return learned_log_p, held_out_log_p


@torch.no_grad()
def computed(config: DpoConfig, base: Path, packed: Sequence[PackedRows], places: Sequence[Sequence[int]]) -> Reference:
    """Return the log p of the conversations in the planned rows at `places` of each set; that of others is NaN."""
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    use_fast_products()  # as the training will, so that the first loss is of equal models
    model = load_model(base, device=device, dtype=torch.float32)
    results = [torch.full((rows.conversations.n,), torch.nan) for rows in packed]
    total, done = sum(map(len, places)), 0
    with (
        log.count_progress("how probable the base holds both answers", total, "rows") as update,
        attention_kernels(device, deterministic=config.deterministic),
    ):
        for rows, wanted, result in zip(packed, places, results, strict=True):
            for first in range(0, len(wanted), config.batch_size):
                part = list(wanted[first : first + config.batch_size])
                n_documents = max(len(rows.plan[place]) for place in part)
                log_p_RD, _ = document_log_probs(model, rows.in_order(part).to(device), dtype, n_documents)
                for place, log_p_D in zip(part, log_p_RD.cpu(), strict=True):
                    result[rows.plan[place]] = log_p_D[: len(rows.plan[place])]
                done += len(part)
                update(done)
    return results[0], results[1]


def _read(path: Path) -> tuple[dict[str, str], Reference] | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, (file.get_tensor("learned"), file.get_tensor("held_out"))
    except (SafetensorError, OSError, ValueError) as problem:
        log.warn(f"{path} is damaged ({problem}): computed anew")
        return None
