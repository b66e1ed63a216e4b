"""POST /tokenize, /detokenize, GET /tokenizer_info: how texts are cut, for clients that count and for lm-eval.

Source: vLLM's shapes. Here the names of special tokens are read as such, as llama.cpp does; in chats they never are.
"""

from __future__ import annotations

import asyncio
from typing import Any

from mini_llm.serve import asking
from mini_llm.serve.catalog import Catalog
from mini_llm.serve.problems import ApiError
from mini_llm.serve.shapes import TokenNames
from mini_llm.serve.wire import DetokenizeBody, TokenizeBody
from mini_llm.tokenizer.template import default_source


async def tokenize(catalog: Catalog, body: TokenizeBody) -> dict[str, Any]:
    """Return a text's ids, and each token's text and bytes."""
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give either prompt or messages", param="prompt")
    served = await catalog.get(body.model)
    tokenizer = served.generator.tokenizer
    if body.messages is not None:
        ids = await asking.encode_messages(served, body.messages)
    else:
        text = body.prompt or ""
        encode = tokenizer.encode if body.parse_special is False else tokenizer.encode_with_markers
        ids = await asyncio.to_thread(encode, text)
        ids = [*([] if body.add_special_tokens is False else tokenizer.prefix_ids), *ids]
    names = TokenNames(served)
    answer: dict[str, Any] = {"count": len(ids), "max_model_len": served.context, "tokens": ids, "token_strs": None}
    if body.return_token_strs:
        answer["token_strs"] = [names.name(token_id) for token_id in ids]
        answer["token_bytes"] = [list(names.bytes_of(token_id)) for token_id in ids]
    return answer


async def detokenize(catalog: Catalog, body: DetokenizeBody) -> dict[str, Any]:
    """Return the text of ids."""
    served = await catalog.get(body.model)
    if body.tokens and max(body.tokens) >= served.generator.tokenizer.vocab_size:
        raise ApiError(400, f"ids go from 0 to {served.generator.tokenizer.vocab_size - 1}", param="tokens")
    return {"prompt": served.generator.tokenizer.decode(body.tokens)}


async def tokenizer_info(catalog: Catalog) -> dict[str, Any]:
    """Return what lm-eval asks of a tokenizer."""
    served = await catalog.get()
    tokenizer = served.generator.tokenizer

    def name(token_id: int | None) -> str | None:
        return None if token_id is None else tokenizer.name_of(token_id)

    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": name(tokenizer.bos_id),
        "eos_token": name(tokenizer.eos_id),
        "pad_token": name(tokenizer.pad_id),
        "add_bos_token": tokenizer.bos_id is not None and tokenizer.prefix_ids[:1] == [tokenizer.bos_id],
        "chat_template": default_source(tokenizer.folder, tokenizer.config),
        "vocab_size": tokenizer.vocab_size,
        "model_max_length": served.context,
    }
