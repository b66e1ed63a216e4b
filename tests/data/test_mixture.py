"""Mixtures of stores: weights become whole rows, names tell stores apart, one tokenizer is demanded."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_llm.config import load_config
from mini_llm.data.mixture import Mixture, short_names
from mini_llm.data.prepare import prepare
from mini_llm.data.store_shares import BLOCK, StoreShare, share_out
from mini_llm.data.token_store import TokenStore
from mini_llm.errors import UsageError, UserError
from mini_llm.tokenizer.train import train_tokenizer
from mini_llm.train.config import TrainConfig


@given(weights=st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=20), total=st.integers(1, 2000))
def test_parts_add_up_and_none_is_a_whole_row_off(weights: list[float], total: int) -> None:
    parts = share_out(weights, total)
    assert sum(parts) == total
    assert all(
        abs(part - total * weight / sum(weights)) < 1 + 1e-6 for part, weight in zip(parts, weights, strict=True)
    )


def test_the_largest_remainders_are_rounded_up_and_percents_come_out_exactly() -> None:
    assert share_out([1, 1, 1]) == [334, 333, 333]
    assert share_out([0.7, 0.2, 0.1]) == [700, 200, 100]
    assert share_out([3, 1]) == [750, 250]
    assert share_out([0.0155, 0.9845]) == [16, 984]


def test_names_are_the_shortest_ends_that_differ() -> None:
    assert short_names(["data/web", "data/books"]) == ["web", "books"]
    assert short_names(["data/web/tokens", "data/books/tokens"]) == ["web/tokens", "books/tokens"]
    assert short_names(["data/tokens"]) == ["tokens"]


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ("[]", "data_dir: Tuple should have at least 1 item"),
        ("[{path: a, weight: 0}]", "data_dir.0.weight: Input should be greater than 0 (given 0)"),
        ("[{path: a, weight: much}]", "data_dir.0.weight: Input should be a valid number"),
        ("[{path: a, wieght: 1}]", "data_dir.0.wieght: Extra inputs are not permitted"),
        ("[{weight: 1}]", "data_dir.0.path: Field required"),
        ("[a, b]", "data_dir.0: Input should be a valid dictionary"),
        ("[{path: a, weight: 1}, {path: ./a, weight: 2}]", "stands twice: add up its weights"),
        ("[{path: a, weight: 1}, {path: b, weight: 1e-4}]", "weight=0.0001 of b is no row in 1,000"),
        ("[{path: $NOT_SET_ANYWHERE, weight: 1}]", "data_dir.0.path: $NOT_SET_ANYWHERE is not set"),
        ("{path: a}", "unknown key 'data_dir.path'"),
        ("true", "data_dir: Input should be a valid string"),
    ],
)
def test_a_setting_that_is_no_mixture_is_refused_where_it_is_wrong(given_: str, says: str) -> None:
    with pytest.raises(UsageError) as problem:
        load_config(TrainConfig, None, [f"data_dir={given_}"])
    assert says in problem.value.message.replace(str(Path.cwd()) + "/", "")
    assert "(stores)" not in problem.value.message
    assert "(path)" not in problem.value.message


def test_a_list_of_one_is_the_path_alone(tiny_store: Path) -> None:
    share = StoreShare(path=str(tiny_store), weight=7)
    alone, listed = Mixture.open(str(tiny_store)), Mixture.open([share])
    assert alone.fingerprints == listed.fingerprints == TokenStore.open(tiny_store).fingerprints
    assert alone.counts == listed.counts == [BLOCK]


def test_another_weight_is_another_text_of_the_same_tokenizer(tiny_store: Path, second_store: Path) -> None:
    def of(*weights: float) -> dict[str, str]:
        paths = (tiny_store, second_store)
        return Mixture.open(
            [StoreShare(path=str(path), weight=w) for path, w in zip(paths, weights, strict=True)]
        ).fingerprints

    assert of(1, 1) == of(2, 2)
    assert of(1, 1)["text"] != of(1, 2)["text"]
    assert of(1, 1)["tokenizer"] == of(1, 2)["tokenizer"] == TokenStore.open(tiny_store).fingerprints["tokenizer"]


def test_a_store_of_another_tokenizer_is_refused_with_the_command(tiny_store: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A few words, and then a few words more. " * 50, encoding="utf-8")
    train_tokenizer([text.read_text()], tmp_path / "tok", vocab_size=300, model_type="bpe", sample_bytes=10**6, seed=0)
    prepare([text], tmp_path / "tok", tmp_path / "other", val_fraction=0.5, workers=1)
    shares = [StoreShare(path=str(path), weight=1) for path in (tiny_store, tmp_path / "other")]
    with pytest.raises(UserError, match="was written by another tokenizer than") as problem:
        Mixture.open(shares)
    assert f"--tokenizer {tiny_store / 'tokenizer'} --out {tmp_path / 'other'}" in (problem.value.hint or "")
