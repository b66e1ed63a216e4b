"""Conversations as tokens: a marker for the speaker, what was said, a marker for the end.

`<s><|user|>Hello<|end|><|assistant|>` asks the model to answer. Nothing stands between markers and contents, so that
contents are kept to the letter. The markers are control tokens: text can name them but never become them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mini_llm.errors import UserError
from mini_llm.tokenizer.markers import END_MARKER, ROLE_MARKERS
from mini_llm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `role` is system, user or assistant."""

    role: str
    content: str


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
    """Return the ids of a conversation, ending with the assistant's marker if it is the assistant's turn to speak.

    Raises:
        UserError: the tokenizer has no chat markers, or a role is unknown.
    """
    names = [*ROLE_MARKERS.values(), END_MARKER]
    marker_ids = {name: i for name in names if (i := tokenizer.special_id(name)) is not None}
    if len(marker_ids) < len(names):
        raise UserError(
            f"the tokenizer in {tokenizer.folder} has no chat markers ({' '.join(names)})",
            "use a model whose tokenizer was made by `mini-llm tokenizer train`",
        )
    ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for message in messages:
        if message.role not in ROLE_MARKERS:
            raise UserError(f"a role must be {', '.join(ROLE_MARKERS)}, not '{message.role}'")
        ids += [marker_ids[ROLE_MARKERS[message.role]], *tokenizer.encode(message.content), marker_ids[END_MARKER]]
    return [*ids, marker_ids[ROLE_MARKERS["assistant"]]] if add_generation_prompt else ids
