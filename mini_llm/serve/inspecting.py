"""POST /inspect: one prediction taken apart, layer by layer and head by head."""

from __future__ import annotations

import asyncio
from typing import Any

import torch

from mini_llm.device import passing_threads
from mini_llm.inference.lens import Lens, look_inside
from mini_llm.serve import asking
from mini_llm.serve.catalog import Catalog, Served
from mini_llm.serve.problems import ApiError
from mini_llm.serve.shapes import TokenNames
from mini_llm.serve.wire import InspectBody

TOP = 5
_one_at_a_time = asyncio.Semaphore(1)  # a plain pass over a text takes the memory of all its layers


async def inspect(catalog: Catalog, body: InspectBody) -> dict[str, Any]:
    """Return what each layer would have said of the token at `position`, and where each head looked for it."""
    if (body.prompt is None) == (body.token_ids is None):
        raise ApiError(400, "give either prompt or token_ids", param="prompt")
    served = await catalog.get(body.model)
    ids = await asking.encode(served, body.prompt) if body.prompt is not None else list(body.token_ids or [])
    asking.check_prompt(served, ids, "token_ids")
    if len(ids) > served.context:
        raise ApiError(400, f"{len(ids)} tokens, and the context is {served.context}", param="token_ids")
    position = len(ids) if body.position is None else body.position
    if not 1 <= position <= len(ids):
        raise ApiError(400, f"position goes from 1 to {len(ids)}: the first has no past", param="position")
    chosen = ids[position] if position < len(ids) else None
    async with _one_at_a_time:
        return await asyncio.to_thread(
            _describe, served, ids[:position], chosen, body.top or TOP, attention=body.attention is not False
        )


@passing_threads()
def _describe(served: Served, ids: list[int], chosen: int | None, top: int, *, attention: bool) -> dict[str, Any]:
    lens, names = look_inside(served.generator.model, ids), TokenNames(served)
    layers = _layers(lens, names, chosen, top, served.vocab_size)
    return {
        "object": "inspection",
        "position": len(ids),
        "token_id": chosen,
        "token": None if chosen is None else names.name(chosen),
        "prompt_token_ids": ids,
        "prompt_tokens": [names.name(token_id) for token_id in ids],
        "layers": layers,
        "attention": _shares(lens) if attention else None,
    }


def _layers(lens: Lens, names: TokenNames, chosen: int | None, top: int, vocab_size: int) -> list[dict[str, Any]]:
    logprobs_LV = lens.logits[:, :vocab_size].log_softmax(-1)
    entropies = torch.special.entr(logprobs_LV.exp()).sum(-1).tolist()
    found = []
    for number, logprobs_V in enumerate(logprobs_LV):
        best = logprobs_V.topk(min(top, vocab_size))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        layer = {
            "layer": number + 1,
            "entropy": entropies[number],
            "top": [{"token_id": token_id, **names.entry(token_id, value)} for token_id, value in pairs],
        }
        if chosen is not None:
            value = float(logprobs_V[chosen])
            layer |= {"logprob": max(value, -9999.0), "rank": 1 + int((logprobs_V > value).sum())}
        found.append(layer)
    return found


def _shares(lens: Lens) -> list[list[list[float]]]:
    """Return [layer][head][place] with four digits: so many that sums are 1 within 1e-3, and no more to send."""
    return [[[float(f"{share:.4g}") for share in head] for head in layer] for layer in lens.attention.tolist()]
