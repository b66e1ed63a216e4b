"""Settings: default < file < override; whatever is wrong is refused by name, and nothing in a file is ever run."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, ValidationError

from mini_llm.config import Config, dump_config, load_config
from mini_llm.errors import UsageError, UserError
from mini_llm.model.accounting import count_parameters
from mini_llm.train.config import TrainConfig
from mini_llm.tune.config import SftConfig
from mini_llm.tune.dpo_config import DpoConfig
from mini_llm.tune.rl_config import RlConfig

CONFIGS = Path(__file__).parents[1] / "configs"
SHIPPED = sorted(path for path in CONFIGS.glob("*.yaml") if not path.name.startswith("clean-"))
MIXTURES = ("chat-mix.yaml",)  # of conversations: tests/tune/test_mix.py


class Inner(Config):
    dim: int = Field(8, ge=1)
    scale: float = 1.0


class Outer(Config):
    rate: float = Field(0.1, gt=0)
    steps: int = Field(10, ge=1)
    name: str | None = None
    resume: bool = True
    dtype: Literal["auto", "float32"] = "auto"
    betas: tuple[float, ...] = (0.9, 0.95)
    model: Inner = Inner()
    draft: Inner | None = None


@pytest.fixture
def write(tmp_path):
    def make(content: str | bytes) -> Path:
        path = tmp_path / "settings.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def test_default_then_file_then_override(write) -> None:
    path = write("rate: 0.2\nsteps: 20\nmodel:\n  dim: 16\n  scale: 2.0\n")
    config = load_config(Outer, path, ["steps=30", "model.scale=3"])
    assert (config.rate, config.steps, config.resume) == (0.2, 30, True)
    assert (config.model.dim, config.model.scale) == (16, 3.0)
    assert load_config(Outer) == Outer()
    assert load_config(Outer, None, ["steps=1", "steps=2"]).steps == 2  # the last one wins


def test_an_override_reaches_a_section_that_is_unset(write) -> None:
    assert load_config(Outer, None, ["draft.dim=4"]).draft == Inner(dim=4)
    assert load_config(Outer, write("draft: null"), ["draft.dim=4"]).draft == Inner(dim=4)
    assert load_config(Outer, write("draft: {dim: 4}"), ["draft=null"]).draft is None
    assert load_config(Outer, None, ["model={dim: 4, scale: 1e1}"]).model == Inner(dim=4, scale=10)


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", ".001", "0.001", "+1e-3", "10e-4"])
def test_numbers_in_every_spelling(text, write) -> None:
    assert load_config(Outer, None, [f"rate={text}"]).rate == 0.001
    assert load_config(Outer, write(f"rate: {text}")).rate == 0.001


@pytest.mark.parametrize(
    ("text", "steps"), [("1e4", 10_000), ("1_000", 1000), ("0123", 123), ("4.0", 4), ("0x10", None)]
)
def test_integers_mean_what_they_say(text, steps) -> None:
    if steps is None:
        with pytest.raises(UsageError, match="steps"):
            load_config(Outer, None, [f"steps={text}"])
    else:
        assert load_config(Outer, None, [f"steps={text}"]).steps == steps


@pytest.mark.parametrize(
    "text", ["on", "no", "2026-11-22", "1:30", "run 7: 2", "[", "日本語", "2024", "0123", "~x", "'1e5'"]
)
def test_a_name_stays_the_text_that_was_written(text) -> None:
    override = f"name='{text}'" if ": " in text else f"name={text}"
    config = load_config(Outer, None, [override])
    assert config.name == text.strip("'")


@pytest.mark.parametrize("text", ["name=", "name=null", "name=~"])
def test_null_unsets(text) -> None:
    assert load_config(Outer, None, [text]).name is None


@pytest.mark.parametrize("text", ["true", "True", "on", "yes", "1"])
def test_true_in_every_spelling(text) -> None:
    assert load_config(Outer, None, [f"resume={text}"]).resume is True


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("rate=fast", "rate: .*number.*'fast'"),
        ("rate=0", "rate: .*greater than 0"),
        ("rate=-1", "rate: .*greater than 0"),
        ("rate=nan", "rate: .*finite"),
        ("rate=inf", "rate: .*finite"),
        ("rate=1e999", "rate: .*finite"),
        ("rate=", "rate: "),
        ("rate=[1]", "rate: "),
        ("rate=true", "rate must be float, not true"),
        ("rate=!!python/object/apply:os.getcwd []", "rate: "),
        ("steps=1.5", "steps: .*fraction"),
        ("steps=true", "steps must be int"),
        ("steps=" + "9" * 5000, "steps: "),
        ("steps=" + "[" * 5000, "steps: "),
        ("resume=maybe", "resume: "),
        ("dtype=fp8", "dtype: .*'auto' or 'float32'"),
        ("betas=0.9", "betas: "),
        ("model=3", "model: "),
        ("model=null", "model: "),
        ("model.dim=0", r"model\.dim: .*greater than or equal to 1"),
    ],
)
def test_a_wrong_value_is_refused_by_name(override, what) -> None:
    with pytest.raises(UsageError, match=what):
        load_config(Outer, None, [override])


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("stepz=3", "unknown key 'stepz', did you mean 'steps'"),
        ("dim=3", r"did you mean '(model|draft)\.dim'"),
        ("model.dimm=3", "did you mean 'model.dim'"),
        ("model={dimm: 3}", "did you mean 'model.dim'"),
        ("model.dim.x=3", "unknown key 'model.dim.x'"),
        ("xyzzy=3", "unknown key 'xyzzy'$"),
        ("model.=3", "unknown key"),
        (".=3", "unknown key"),
        ("steps", "not a setting"),
        ("=3", "not a setting"),
        ("", "not a setting"),
    ],
)
def test_an_unknown_key_gets_a_suggestion(override, suggestion) -> None:
    with pytest.raises(UsageError, match=suggestion):
        load_config(Outer, None, [override])


def test_a_file_with_an_unknown_key_is_named(write) -> None:
    path = write("model:\n  dimm: 3\n")
    with pytest.raises(UsageError, match=r"settings\.yaml: unknown key 'model\.dimm', did you mean 'model\.dim'"):
        load_config(Outer, path)


def test_all_wrong_values_are_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        load_config(Outer, None, ["rate=-1", "steps=0", "model.dim=x"])
    assert all(name in caught.value.message for name in ("rate", "steps", "model.dim"))


BOMB = "a: &a [x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("steps", "must hold `key: value` lines"),
        ("- steps: 3", "must hold `key: value` lines"),
        ("steps: 1\nsteps: 2", "line 2: the key 'steps' stands twice"),
        ("model:\n  dim: 1\n  dim: 2", "line 3: the key 'dim' stands twice"),
        ("steps: [", "not valid YAML"),
        ("steps: 1\n\trate: 2", "not valid YAML"),
        ("? [a]\n: 3", "not valid YAML"),
        ("steps: 1\n---\nsteps: 2", "not valid YAML"),
        (BOMB, "line 2: aliases"),
        ("model: &m {dim: *m}", "aliases"),
        ("!!python/object/apply:os.system ['touch hacked']", "not valid YAML"),
        ("steps: !!python/name:os.system", "not valid YAML"),
        ("{a: " * 3000, "nested too deeply"),
        ("name: " + "x" * 10_000_000, "longer than"),
        (b"\x80\x02}q\x00.", "not a text file"),
        (b"\x00" * 100, "not valid YAML"),
        ("steps: 3".encode("utf-16"), "not a text file"),
    ],
)
def test_a_broken_file_is_refused_by_name(content, what, write, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=what) as caught:
        load_config(Outer, write(content))
    assert "settings.yaml" in caught.value.message
    assert not (tmp_path / "hacked").exists()


def test_a_file_that_is_not_there(tmp_path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path / "none" / "x.yaml"):
        with pytest.raises(UserError, match="no config file at") as caught:
            load_config(Outer, path)
        assert "configs/" in (caught.value.hint or "")
    with pytest.raises(UserError, match="is a folder, not a config file"):
        load_config(Outer, tmp_path)


@pytest.mark.parametrize(
    "content", ["steps: 3\r\nrate: 1\r\n", "\ufeffsteps: 3\nrate: 1", "{steps: 3, rate: 1}", "---\nsteps: 3\nrate: 1"]
)
def test_other_editors_files_are_read(content, write) -> None:
    assert load_config(Outer, write(content)) == Outer(steps=3, rate=1)


@pytest.mark.parametrize(
    "name", [None, "", "x", "1e5", "0123", "on", "null", "a: b", "# c", "'", "日本語 🔥", "line\nline", "2026-11-22"]
)
def test_what_is_written_is_read_back(name, write) -> None:
    config = Outer(rate=1e-7, name=name, resume=False, betas=(0.5,), draft=Inner(scale=1e20))
    assert load_config(Outer, write(dump_config(config))) == config


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Outer().steps = 3  # type: ignore[misc]


@pytest.mark.parametrize("path", [p for p in SHIPPED if p.name not in MIXTURES], ids=lambda path: path.name)
def test_a_shipped_config_is_valid_and_says_which_machine(path, write) -> None:
    kinds = {
        "demo-chat.yaml": SftConfig,
        "sft-50m.yaml": SftConfig,
        "dpo-50m.yaml": DpoConfig,
        "rl-spelling.yaml": RlConfig,
    }
    kind = kinds.get(path.name, TrainConfig)
    config = load_config(kind, path)
    assert load_config(kind, write(dump_config(config))) == config
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert config.min_lr <= config.learning_rate


def test_mini_50m_has_the_seeds_shape_to_the_parameter() -> None:
    model = load_config(TrainConfig, SHIPPED[0].with_name("mini-50m.yaml")).model
    shape = (model.n_layers, model.dim, model.n_heads, model.n_kv_heads, model.hidden_dim, model.vocab_size)
    assert shape == (16, 384, 6, 6, 1536, 32000)
    assert count_parameters(model) == 50_049_408
