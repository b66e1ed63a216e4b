"""What `plan` says of many GPUs is what their processes would hold: built on fake tensors, counted, a step traced."""

import json

import pytest

from mini_llm.config import load_config, shipped_config
from mini_llm.errors import UsageError
from mini_llm.model.accounting import count_parameters
from mini_llm.plan import prove as module
from mini_llm.plan.prove import prove
from mini_llm.plan.report import as_asked, make_plan
from mini_llm.train.config import TrainConfig
from mini_llm.train.parallel.settings import ParallelConfig

SMALL = [
    *("model.dim=64", "model.n_layers=2", "model.n_heads=4", "model.n_kv_heads=4", "model.hidden_dim=256"),
    *("model.vocab_size=512", "batch_size=8", "gradient_accumulation_steps=1", "optimizer=adamw", "max_iters=10"),
]


def small(*words: str) -> TrainConfig:
    return load_config(TrainConfig, None, [*SMALL, *words])


def test_two_layers_of_80b_over_1024_gpus_are_as_planned(run_cli) -> None:
    result = run_cli("plan", "--config", "configs/80b.yaml", "--gpus", "1024", "--prove", "--json", "model.n_layers=2")
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    proof = plan["proof"]
    assert (proof["holds"], proof["whole"], proof["processes"]) == (True, True, 1024)
    assert proof["planned"]["weights"] == plan["memory_bytes"]["+ both"]["weights"] == 4 * plan["parameters"] // 1024
    assert proof["counted"]["gradients"] == proof["counted"]["weights"]


@pytest.mark.slow
def test_all_layers_of_80b_over_1024_gpus_are_as_planned(run_cli) -> None:
    result = run_cli("plan", "--config", "configs/80b.yaml", "--gpus", "1024", "--prove", "--json", timeout=1800)
    assert result.returncode == 0, result.stderr
    proof = json.loads(result.stdout)["proof"]
    assert (proof["holds"], proof["whole"], proof["processes"]) == (True, True, 1024)
    assert proof["counted"]["weights"] == 312_456_960  # as docs/scaling.md says


def test_hybrid_shares_within_a_machine_also_in_the_plan() -> None:
    config = load_config(TrainConfig, shipped_config("8b.yaml"), ["parallel.shard=hybrid"])
    plan = make_plan(config, gpu="h100", gpus=64)
    full = make_plan(config.model_copy(update={"parallel": ParallelConfig(shard="full")}), gpu="h100", gpus=8)
    assert plan.memory["+ sharding over 8"].weights == full.memory["+ sharding over 8"].weights
    assert as_asked(config, plan.memory) is plan.memory["+ both"]


@pytest.mark.parametrize(
    ("words", "gpus", "holders"),
    [
        (["parallel.shard=ddp"], 4, 1),
        (["parallel.shard=full"], 4, 4),
        (["parallel.shard=full", "optimizer=muon"], 4, 4),
        (["parallel.shard=hybrid", "batch_size=16"], 16, 8),
        (["parallel.shard=full", "parallel.tensor=2", "model.tie_embeddings=false", "sample_interval=null"], 8, 8),
    ],
    ids=str,
)
def test_each_process_holds_its_share(words, gpus, holders) -> None:
    proof = prove(small(*words), gpus)
    assert proof.whole
    assert proof.counted["weights"] == pytest.approx(4 * count_parameters(small(*words).model) / holders, rel=0.01)
    assert proof.counted["optimizer"] == pytest.approx(proof.planned["optimizer"], rel=0.01)
    assert proof.holds


def test_a_person_reads_counted_beside_planned(run_cli) -> None:
    result = run_cli("plan", "--gpus", "4", "--prove", "parallel.shard=full", *SMALL)
    assert result.returncode == 0, result.stderr
    for text in ("counted", "planned", "first of 4 processes", "Proved"):
        assert text in result.stdout


def test_a_wrong_plan_is_told(monkeypatch) -> None:
    true_plan = module.predict_memory
    monkeypatch.setattr(
        module, "predict_memory", lambda c, *more, **names: true_plan(small("model.dim=72"), *more, **names)
    )
    assert not prove(small("parallel.shard=full"), 4).holds


def test_what_cannot_be_spread_is_refused() -> None:
    with pytest.raises(UsageError, match="several processes"):
        prove(small(), 1)
    with pytest.raises(UsageError, match="of their own"):
        prove(small(), 4)
    config = load_config(TrainConfig, shipped_config("80b.yaml"))
    with pytest.raises(UsageError, match="cannot be dealt out"):
        prove(config, 1000)
