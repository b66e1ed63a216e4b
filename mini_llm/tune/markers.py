"""The markers of a conversation: a base that read plain text alone has never seen them, and LoRA leaves their rows so.

Full tuning trains them with everything else. Beside LoRA their few rows of the embedding, and of the head, are trained
whole, where the base's record does not say that it has seen conversations.
"""

from __future__ import annotations

from pathlib import Path

from mini_llm.errors import UsageError, UserError
from mini_llm.pointers import is_adapter
from mini_llm.tokenizer.chat import Message, encode_chat
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.config import LoraConfig, is_tuned, settings_of

EXAMPLE = [Message("system", "a"), Message("user", "b"), Message("assistant", "c"), Message("user", "d")]


def marker_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the control tokens that a conversation has and a text has not, in order.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    try:
        ids = encode_chat(tokenizer, EXAMPLE)
    except UserError:  # some templates refuse a system message
        ids = encode_chat(tokenizer, EXAMPLE[1:])
    special = set(tokenizer.special_tokens.values()) - {tokenizer.bos_id, tokenizer.eos_id, *tokenizer.prefix_ids}
    return sorted(special & set(ids))


def rows_to_train(base: Path, tokenizer: Tokenizer, lora: LoraConfig, *, is_tied: bool) -> dict[str, list[int]]:
    """Return which rows of which table are trained beside LoRA; none where the base has seen conversations.

    Raises:
        UsageError: they are asked for, and the template has no markers.
    """
    wanted = lora.train_markers
    if wanted == "auto":
        pretraining = settings_of(base)
        wanted = not (is_tuned(base) or is_adapter(base) or (pretraining and pretraining.mix.data))
    ids = marker_ids(tokenizer) if wanted else []
    if lora.train_markers is True and not ids:
        raise UsageError("the chat template of the base has no markers to train", "leave out lora.train_markers")
    if not ids:
        return {}
    return {"embed_tokens": ids} if is_tied else {"embed_tokens": ids, "lm_head": ids}
