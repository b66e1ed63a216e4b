"""Steps or epochs: what is typed takes the place of what a recipe says."""

from pathlib import Path

import pytest

from mini_llm.config import load_config
from mini_llm.tune.config import SftConfig, with_steps
from mini_llm.tune.dpo_config import DpoConfig
from mini_llm.tune.rl_config import RlConfig

RECIPES = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("words", "steps"),
    [((), 20), (("max_iters=3",), 3), (("epochs=1",), 10), (("max_iters=3", "epochs=1"), 10), (("epochs=null",), 5000)],
)
def test_what_is_typed_takes_the_place_of_what_the_recipe_says(
    words: tuple[str, ...], steps: int, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("epochs: 2\nmax_iters: 5000\nbatch_size: 8\n", encoding="utf-8")
    assert with_steps(load_config(SftConfig, recipe, words), n_rows=80).max_iters == steps


@pytest.mark.parametrize(
    ("recipe", "kind"), [("sft-50m", SftConfig), ("dpo-50m", DpoConfig), ("rl-spelling", RlConfig)]
)
def test_the_shipped_recipes_take_a_number_of_steps(recipe: str, kind: type[SftConfig]) -> None:
    config = load_config(kind, RECIPES / f"{recipe}.yaml", ["max_iters=2"])
    assert with_steps(config, n_rows=1000).max_iters == 2
