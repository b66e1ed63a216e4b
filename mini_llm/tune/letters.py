"""Letters in the rows: what a token hides is written into its vectors, before the first step of fine-tuning.

What letters a piece is made of, and the way from a piece read to the same piece said, a model learns for each piece by
itself: thousands of lessons that have nothing in common. Here the row of a piece in the embedding gets a code of its
letters, the sum of a random direction for each letter at its place and for each pair of neighbours, and its row in the
head gets the same code, turned. What is then learned of reading one code holds for all, also for pieces that no
exercise shows. Subwords in vectors: arXiv 1607.04606. Each code lies where the base keeps least: in the directions in
which its embedding, and its last hidden states, vary least, so that it forgets little.
Letters: V vocabulary, D width, K directions of a code, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.skills.pieces import texts_of

DIRECTIONS = 2 / 3  # of the width are for the codes
OF_HEAD = 0.5  # times the embedding's share is the head's: with 1.5 spelling gains, form and text lose (docs/LOG.md)
MOST_LETTERS = 16  # of a piece that have a place
BESIDE = 0.5  # of a letter at its place: what pairs, the length and the space count; with 1, places blur


@torch.no_grad()
def write_letters(model: Transformer, tokenizer: Tokenizer, share: float, ids_RT: Tensor, seed: int) -> None:
    """Add codes of letters to a model's embedding and head.

    Args:
        model: the base, whole, in float32.
        tokenizer: its own.
        share: how long a code is, as a share of a row's mean length.
        ids_RT: rows of tokens to look at the last hidden states of.
        seed: of the directions.
    """
    embedding_VD, head_VD = model.model.embed_tokens.weight, model.lm_head.weight
    D = embedding_VD.shape[1]
    generator = torch.Generator().manual_seed(seed)
    texts = texts_of(tokenizer)
    code_VK = codes([texts.get(i, "") for i in range(len(embedding_VD))], max(1, round(DIRECTIONS * D)), generator)
    K = code_VK.shape[1]
    if not model.config.tie_embeddings:
        turn_KK = torch.linalg.qr(torch.randn(K, K, generator=generator))[0]
        hidden_ND = model.model(ids_RT).flatten(0, 1).float()
        length = OF_HEAD * share * head_VD.norm(dim=1).mean()
        head_VD += length * (code_VK @ turn_KK) @ quiet(hidden_ND, K)
    length = share * embedding_VD.norm(dim=1).mean()
    embedding_VD += length * code_VK @ quiet(embedding_VD.float(), K)


def quiet(vectors_ND: Tensor, n: int) -> Tensor:
    """Return the n directions (n, D) in which vectors are shortest, the longest of them last."""
    return torch.linalg.eigh(vectors_ND.T.double() @ vectors_ND.double())[1].T[:n].to(vectors_ND.dtype)


def codes(texts: Sequence[str], n_directions: int, generator: torch.Generator) -> Tensor:
    """Return a code (V, K) of length 1 for each text; of no text, zeros."""
    directions = dict[str, Tensor]()
    code_VK = torch.zeros(len(texts), n_directions)
    for code_K, text in zip(code_VK, texts, strict=True):
        for name, weight in features(text).items():
            if name not in directions:
                directions[name] = torch.randn(n_directions, generator=generator)
            code_K += weight * directions[name]
    return code_VK / code_VK.norm(dim=1, keepdim=True).clamp(min=1e-6)


def features(text: str) -> dict[str, float]:
    """Return what a code is the sum of: " of" has o first, f second; beside them ^o, of, f$, its length and a space."""
    letters = text.strip(" ")
    if not text or "\ufffd" in text:  # a byte that is no letter alone
        return {}
    places = {f"{place} {letter}": 1.0 for place, letter in enumerate(letters[:MOST_LETTERS])}
    pairs = [a + b for a, b in zip("^" + letters, letters + "$", strict=True)]
    return places | dict.fromkeys([*pairs, f"{len(letters)}", "space" if text[0] == " " else "none"], BESIDE)
