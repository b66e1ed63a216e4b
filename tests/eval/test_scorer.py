"""Trees, windows and ids: the same log-likelihoods as each text alone gets, by plain arithmetic."""

import random
from pathlib import Path

import pytest
import torch

from mini_llm.eval.evaluate import rolling_loglikelihoods
from mini_llm.eval.language_model import LocalModel, pairs_of, rolling_pairs
from mini_llm.eval.scorer import score_pairs
from mini_llm.eval.trees import MOST_NODES, Pair, plant


def alone(model: LocalModel, pair: Pair) -> tuple[float, bool]:
    """Return the log-likelihood and greediness of one pair, from all scores of its text."""
    ids = (pair[0] + pair[1])[-(model.max_length + 1) :]
    logprobs = model.model(torch.tensor([ids[:-1]]))[0].double().log_softmax(-1)
    n = len(pair[1])
    own = logprobs[-n:]
    return float(own.gather(1, torch.tensor(ids[-n:])[:, None]).sum()), own.argmax(-1).tolist() == ids[-n:]


def some_pairs(n: int, longest: int = 80) -> list[Pair]:
    """Return pairs of which many begin alike, some are equal, and some are too long for the context."""
    draw = random.Random(0)
    beginnings = [[draw.randrange(8, 600) for _ in range(draw.randrange(1, longest))] for _ in range(n // 4)]
    ends = [[draw.randrange(8, 600) for _ in range(draw.randrange(1, 30))] for _ in range(n // 3)]
    pairs = [(draw.choice(beginnings), draw.choice(ends)[: draw.randrange(1, 30)]) for _ in range(n)]
    return [*pairs, pairs[0], (beginnings[0] + ends[0][:1], ends[0][1:] or [9])]


def test_trees_score_like_each_text_alone(local_model: LocalModel) -> None:
    pairs = some_pairs(60)
    assert len(plant(pairs, local_model.max_length)) < len(pairs) * 0.8  # something is shared
    for pair, score in zip(pairs, score_pairs(local_model.model, pairs), strict=True):
        expected, is_greedy = alone(local_model, pair)
        assert score.loglikelihood == pytest.approx(expected, rel=1e-5)
        assert score.is_greedy == is_greedy


def test_the_likeliest_continuation_is_greedy(local_model: LocalModel) -> None:
    ids = [5, 40, 77]
    for _ in range(4):
        ids.append(int(local_model.model(torch.tensor([ids]))[0, -1].argmax()))
    right, wrong = score_pairs(local_model.model, [(ids[:3], ids[3:]), (ids[:3], [*ids[3:6], ids[6] - 1])])
    assert (right.is_greedy, wrong.is_greedy) == (True, False)


def test_a_tree_does_not_grow_without_end() -> None:
    stem = list(range(100))
    trees = plant([(stem + [i] * 60, [1]) for i in range(200)], max_length=10_000)
    assert max(len(tree.ids) for tree in trees) <= MOST_NODES
    assert sum(len(tree.asked) for tree in trees) == 200


def test_scoring_leaves_no_trace(local_model: LocalModel) -> None:
    model = local_model.model.train()
    before = torch.get_rng_state()
    score_pairs(model, some_pairs(8))
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    model.eval()


def test_space_belongs_to_the_continuation_and_an_empty_context_is_bos(local_model: LocalModel) -> None:
    encode, bos = local_model.tokenizer.encode, local_model.first_id
    made = pairs_of(local_model, [("The end  ", "is near"), ("", " The end"), ("The", " cat")])
    before, after = made.pairs[0]
    assert before == [bos, *encode("The end")]
    assert before + after == [bos, *encode("The end  is near")]
    assert made.pairs[1] == ([bos], encode(" The end"))


def test_what_cannot_be_asked_is_told(local_model: LocalModel) -> None:
    made = pairs_of(local_model, [("The", ""), ("The", " cat" * 200), ("The", " cat")])
    assert made.numbers == [2]
    assert sorted(made.unfit) == [0, 1]
    assert "the context 96" in made.unfit[1]


def test_windows_foretell_each_token_once(local_model: LocalModel) -> None:
    ids = list(range(10, 10 + 96 * 2 + 30))
    pairs = rolling_pairs(local_model, ids, predict_prefix=False)
    assert [token for _, targets in pairs for token in targets] == ids
    assert [len(context) + len(targets) for context, targets in pairs] == [97, 97, 97]


def test_bos_is_foretold_on_wish_only(local_model: LocalModel) -> None:
    text = "Fellow citizens of the Senate"
    (honest,) = rolling_loglikelihoods(local_model, [text], predict_prefix=False)
    (theirs,) = rolling_loglikelihoods(local_model, [text], predict_prefix=True)
    bos = local_model.first_id
    ids = [bos, bos, *local_model.tokenizer.encode(text)]
    assert theirs == pytest.approx(alone(local_model, (ids[:1], ids[1:]))[0], rel=1e-5)
    assert honest == pytest.approx(alone(local_model, ([bos], ids[2:]))[0], rel=1e-5)
    assert theirs != honest


def test_damaged_weights_are_no_score(model_folder: Path, sets: Path) -> None:
    from mini_llm.errors import UserError
    from mini_llm.eval.evaluate import ask, prepare_questions
    from mini_llm.eval.task import find_tasks

    model = LocalModel.load(model_folder, device="cpu")
    model.model.lm_head.weight[:] = float("nan")
    with pytest.raises(UserError, match="the weights are damaged"):
        ask(model, prepare_questions(find_tasks(["piqa"], [])[0], [sets], {}))
