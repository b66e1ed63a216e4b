"""Is there text enough for one row? If not, the message says how to get there."""

from mini_llm.data.token_store import TokenSplit
from mini_llm.errors import UserError


def check_length(split: TokenSplit, block_size: int, name: str) -> None:
    """Refuse a split that has no room for one row.

    Raises:
        UserError: with both numbers.
    """
    needed = block_size + 1
    if split.n_tokens >= needed:
        return
    hint = f"prepare more text, or train with block_size={max(1, split.n_tokens - 1)} or less"
    if name == "val":  # rows so short would teach nothing, and the text is there: it was not held out
        times = -(-needed // max(1, split.n_tokens))
        hint = f"prepare again with --val-fraction {times} times as large, or with {times} times as much text"
    raise UserError(f"the {name} split has {split.n_tokens:,} tokens, one row needs block_size + 1 = {needed:,}", hint)
