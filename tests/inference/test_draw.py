"""A draw is explained as it was done: the plain rules' probabilities, and the dart inside the chosen token's piece."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mini_llm.inference.engine.draw import look_at_draw
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.inference.sampling.row_sampling import pick_each
from mini_llm.inference.sampling.sampling import shape_logits

KNOBS = {
    "temperature": st.sampled_from([0.3, 0.8, 3.0]),
    "top_p": st.sampled_from([0.05, 0.95, 1.0]),
    "top_k": st.sampled_from([0, 0, 7, 300]),
    "min_p": st.sampled_from([0.0, 0.03]),
    "typical_p": st.sampled_from([1.0, 0.9]),
}


@settings(max_examples=80, deadline=None)
@given(
    st.fixed_dictionaries(KNOBS), st.integers(0, 2**32), st.sampled_from([3, 50, 5000]), st.sampled_from([0.1, 3.0]),
    st.floats(0, 1, exclude_max=True), st.booleans(),
)  # fmt: skip
def test_a_draw_is_what_the_plain_rules_say(
    knobs: dict[str, float], seed: int, n: int, sharpness: float, dart: float, banned: bool
) -> None:
    logits = torch.randn(n, generator=torch.Generator().manual_seed(seed)) * sharpness
    adjusted = logits.clone()
    if banned:
        adjusted[logits.argsort()[n // 2 :]] = -torch.inf
    params = SamplingParams(**knobs)
    chosen = pick_each(adjusted[None], [params], [dart])[0]
    found = look_at_draw(chosen, logits, adjusted, params, dart, 10)
    model, sampled = logits.double().log_softmax(-1), shape_logits(adjusted, params).double().softmax(-1)
    before = sampled.cumsum(-1) - sampled
    # What is lost in a sum with 1 has no room on the line, and at the nucleus's edge sums of another order may round to
    # another token.
    least, most = int((sampled > 1e-12).sum()), int((sampled > 0).sum())
    assert least - 1 <= found.n_kept <= most + 1
    assume(least <= found.n_kept <= most)
    assert len(found.candidates) == min(10, n)
    for one in (found.chosen, *found.candidates):
        assert one.logprob == pytest.approx(float(model[one.token_id]), abs=1e-4)
        assert one.p_sampled == pytest.approx(float(sampled[one.token_id]), abs=1e-6)
        assert one.start == pytest.approx(float(before[one.token_id]), abs=1e-6)
    assert found.chosen.start <= dart + 1e-12
    assert dart < found.chosen.start + found.chosen.p_sampled + 1e-12
    assert found.rank == 1 + int((logits > logits[chosen]).sum())


def test_a_greedy_token_has_the_whole_line() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0])
    found = look_at_draw(1, logits, logits, SamplingParams(temperature=0), 0.5, 3)
    assert (found.chosen.p_sampled, found.dart, found.n_kept) == (1.0, None, 1)
    assert [one.p_sampled for one in found.candidates] == [1.0, 0.0, 0.0]


def test_what_is_ruled_out_is_not_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorting all of a vocabulary for each token took 7 ms of a step of 2."""
    logits = torch.randn(32_000, generator=torch.Generator().manual_seed(0)) * 4
    monkeypatch.setattr(torch.Tensor, "sort", lambda *_, **__: pytest.fail("all tokens are sorted"))
    found = look_at_draw(5, logits, logits, SamplingParams(temperature=0.8, top_p=0.95), 0.3, 10)
    assert 10 < found.n_kept < 32_000
