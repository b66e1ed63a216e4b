"""What looks back: penalties, biases and bans against plain NumPy, token by token."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mini_llm.errors import UsageError
from mini_llm.inference.sampling.history import History, check_ids
from mini_llm.inference.sampling.params import SamplingParams

V = 12
ids = st.integers(0, V - 1)


@given(
    st.lists(ids, min_size=1, max_size=5), st.lists(ids, max_size=8), st.floats(0.5, 2), st.floats(-1, 1),
    st.floats(-1, 1), st.dictionaries(ids, st.floats(-5, 5), max_size=3), st.sets(ids, max_size=3), st.integers(0, 99),
)  # fmt: skip
def test_scores_equal_numpys(
    prompt: list[int], written: list[int], repetition: float, presence: float, frequency: float,
    bias: dict[int, float], banned: set[int], seed: int,
) -> None:  # fmt: skip
    sampling = SamplingParams(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency,
        logit_bias=bias, banned_ids=banned,
    )  # fmt: skip
    history = History(sampling, prompt, V, torch.device("cpu"))
    for token_id in written:
        history.add(token_id)
    logits = np.random.default_rng(seed).normal(size=V) * 3
    expected = logits.copy()
    for token_id in {*prompt, *written}:
        expected[token_id] = logits[token_id] / repetition if logits[token_id] > 0 else logits[token_id] * repetition
    for token_id in set(written):  # the prompt is not what was written
        expected[token_id] -= presence + frequency * written.count(token_id)
    for token_id, number in bias.items():
        expected[token_id] += number
    expected[list(banned)] = -np.inf
    np.testing.assert_allclose(history.adjust(torch.tensor(logits)).numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logit_bias": {V: 1.0}}, "token id 12 does not exist"),
        ({"banned_ids": [-1]}, "token id -1 does not exist"),
        ({"banned_ids": range(V)}, "all tokens are banned"),
    ],
)
def test_ids_that_do_not_exist_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_ids(SamplingParams(**options), V)


def test_ids_of_a_prompt_that_are_never_chosen_do_not_count() -> None:
    history = History(SamplingParams(repetition_penalty=2), [1, V, V + 5], V, torch.device("cpu"))
    assert history.seen_V.nonzero().flatten().tolist() == [1]
