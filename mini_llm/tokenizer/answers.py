"""Which ids of a conversation the assistant wrote: what tuning learns from, and nothing else.

Our own form knows it; a template may say it with `{% generation %}`; of any other one it is found by rendering the
conversation up to each answer, once without and once with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mini_llm.errors import UserError
from mini_llm.tokenizer.chat import PROBE, AnyMessage, foreign_template, own_ids, plain_message, render_chat
from mini_llm.tokenizer.template import ChatTemplate
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tokenizer.typed_text import Span, encode_rendered

SAYS_ITSELF = re.compile(r"\{%-?\s*generation\s*-?%\}")


def encode_answers(
    tokenizer: Tokenizer,
    messages: Sequence[AnyMessage],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **options: Any,
) -> tuple[list[int], list[bool]]:
    """Return the ids of a whole conversation, and which of them the assistant wrote, its end tokens included.

    Raises:
        UserError: as `encode_chat`; or an answer cannot be told from the rest.
    """
    said = [plain_message(message) for message in messages]
    template = foreign_template(tokenizer, tools=bool(tools))
    if template is None:
        return own_ids(tokenizer, said, add_generation_prompt=False)
    rendered = render_chat(tokenizer, template, said, tools, **options)
    answers = rendered.answers
    if not SAYS_ITSELF.search(template.source):
        answers = [
            _span(tokenizer, template, said, place, rendered.text, tools, options)
            for place, message in enumerate(said)
            if message["role"] == "assistant"
        ]
    ids, spans = encode_rendered(tokenizer, rendered)
    return ids, [any(a < end and b > start for start, end in answers) for a, b in spans]


def _span(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    said: list[dict[str, Any]],
    place: int,
    whole: str,
    tools: Sequence[Mapping[str, Any]] | None,
    options: Mapping[str, Any],
) -> Span:
    """Return where answer number `place` stands in the whole conversation's text."""

    def text_of(messages: list[dict[str, Any]], ask: bool = False) -> str:
        return render_chat(tokenizer, template, messages, tools, add_generation_prompt=ask, **options).text

    other = [*said[:place], {"role": "assistant", "content": PROBE}, *said[place + 1 :]]
    before = text_of(said[:place], ask=True) if place else None
    after = text_of(said[: place + 1])
    if before is not None and whole.startswith(before):
        start = len(before)
    else:
        start = _in_common(whole, text_of(other))
    if whole.startswith(after):
        end = len(after)
    else:  # a template that shortens earlier answers: up to where another answer makes no difference any more
        end = len(whole) - _in_common(whole[::-1], text_of(other)[::-1])
        follows = [name for name in tokenizer.special_tokens if whole.startswith(name, end)]
        end += len(max(follows, key=len, default=""))
    ends = [
        found.end() for name in tokenizer.special_tokens for found in re.finditer(re.escape(name), whole[start:end])
    ]
    if end <= start:
        raise UserError(
            f"the chat template in {template.folder} does not show where an answer begins and ends",
            "put {% generation %} and {% endgeneration %} around answers in it",
        )
    return start, start + max(ends) if ends else end


def _in_common(text: str, other: str) -> int:
    """Return with how many characters both begin."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(text), len(other)))
