"""Every log-likelihood, score and error is lm-eval's, of its own tasks on the same rows with its hf backend."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval_client import LmEvalClient, local_tokenizer, remote_tokenizer

from mini_llm.eval.evaluate import TaskResult, ask, prepare_questions
from mini_llm.eval.language_model import LocalModel
from mini_llm.eval.task import find_tasks

# Task -> lm-eval's file and the rows: prompts are compared too, since each side reads its own.
THEIRS = {
    "hellaswag": "hellaswag/hellaswag.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "piqa": "piqa/piqa.yaml",
    "winogrande": "winogrande/default.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "sciq": "sciq/sciq.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "copa": "super_glue/copa/default.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
    "mmlu_anatomy": "mmlu/default/mmlu_anatomy.yaml",
    "blimp_anaphor_gender_agreement": "blimp/anaphor_gender_agreement.yaml",
}
FILES = {
    "lambada_openai": "lambada.jsonl",
    "mmlu_anatomy": "mmlu/mmlu_anatomy.jsonl",
    "blimp_anaphor_gender_agreement": "blimp/anaphor_gender_agreement.jsonl",
}
OWN_TASKS = {
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}} {{text}} {{text}}",  # longer than the context
        "metric_list": [
            {"metric": m, "aggregation": m.replace("word_", "weighted_").replace("byte_p", "weighted_p")}
            for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")
        ],
    },
    "writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{text[:3]}}",
        "generation_kwargs": {"until": ["\n", "th"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}


def data_of(path: Path) -> dict[str, Any]:
    return {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"validation": str(path)}},
        "training_split": None,
        "validation_split": "validation",
        "test_split": None,
        "fewshot_split": "validation",
        "metadata": {"version": 1.0},
    }


@pytest.fixture(scope="module")
def yaml_folder(tmp_path_factory: pytest.TempPathFactory, sets: Path) -> Path:
    """Return a folder with lm-eval's tasks on our rows, and two more tasks that both sides read."""
    import lm_eval

    folder, installed = tmp_path_factory.mktemp("tasks"), Path(lm_eval.__file__).parent / "tasks"
    for name, file in THEIRS.items():
        values = {"include": str(installed / file), "task": f"their_{name}", "tag": None}
        rows = sets / FILES.get(name, f"{name}.jsonl")
        (folder / f"their_{name}.yaml").write_text(yaml.safe_dump({**values, **data_of(rows)}))
    for name, values in OWN_TASKS.items():
        text = yaml.safe_dump({"task": name, **values, **data_of(sets / "lambada.jsonl")})
        (folder / f"{name}.yaml").write_text(text)
    return folder


def lm_eval_results(model: Any, names: list[str], folder: Path, shots: int | None = None) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    os.environ["DISABLE_MULTIPROC"] = "1"
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=model, tasks=names, task_manager=manager, num_fewshot=shots, bootstrap_iters=2, log_samples=True
    )
    assert found is not None
    return dict(found)


@pytest.fixture(scope="module")
def hf(model_folder: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(model_folder), dtype="float32", device="cpu", batch_size=16)


@pytest.fixture(scope="module")
def theirs(hf: Any, yaml_folder: Path) -> dict[str, Any]:
    return lm_eval_results(hf, [f"their_{name}" for name in THEIRS] + list(OWN_TASKS), yaml_folder)


def our_result(model: LocalModel, name: str, sets: Path, folder: Path, shots: int | None = None) -> TaskResult:
    (task,) = find_tasks([name], [folder])
    files = {task.task: sets / FILES.get(name, f"{name}.jsonl")}
    return ask(model, prepare_questions(task, [], files, shots=shots))


def check(result: TaskResult, found: dict[str, Any], name: str) -> int:
    """Compare every request and score of a task; return the number of requests."""
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(result.items)
    n_requests, same = 0, set()
    for sample, item, responses in zip(samples, result.items, result.responses, strict=True):
        asked = (
            [tuple(list(one.values())[:2]) for one in sample["arguments"].values()]
            if isinstance(sample["arguments"], dict)
            else [tuple(one) for one in sample["arguments"]]
        )
        if result.task.output_type in ("multiple_choice", "loglikelihood"):
            assert asked == item.requests
        for theirs, ours in zip(sample["filtered_resps"], responses, strict=True):
            n_requests += 1
            if isinstance(ours, str):
                if "\ufffd" not in theirs:  # they give up a whole run of bytes for one that is no UTF-8
                    assert theirs == ours
                    same.add(ours)
            elif isinstance(ours, float):
                assert float(theirs[0] if isinstance(theirs, (tuple, list)) else theirs) == pytest.approx(
                    ours, rel=1e-5
                )
            else:
                assert float(theirs[0]) == pytest.approx(ours[0], rel=1e-5)
                assert str(theirs[1]) == str(ours[1])
    for key, (value, error) in result.scores().items():
        if key.endswith(",BOS not predicted"):
            continue
        assert found["results"][name][key] == pytest.approx(value, rel=1e-5), key
        expected = found["results"][name].get(key.replace(",", "_stderr,"))
        if isinstance(expected, float) and error is not None and not key.startswith("perplexity"):  # theirs is drawn
            assert expected == pytest.approx(error, rel=1e-6)
    assert result.task.output_type != "generate_until" or len(same) > 3
    return n_requests


@pytest.mark.parametrize("name", [*THEIRS, *OWN_TASKS])
def test_scores_equal_lm_evals(
    name: str, theirs: dict[str, Any], local_model: LocalModel, sets: Path, yaml_folder: Path
) -> None:
    result = our_result(local_model, name, sets, yaml_folder)
    n = check(result, theirs, name if name in OWN_TASKS else f"their_{name}")
    assert n >= len(result.items) >= 10


@pytest.mark.parametrize("name", ["arc_easy", "winogrande"])
def test_examples_are_drawn_alike(
    name: str, hf: Any, local_model: LocalModel, sets: Path, yaml_folder: Path, tmp_path: Path
) -> None:
    found = lm_eval_results(hf, [f"their_{name}"], yaml_folder, shots=2)
    base = yaml.safe_load((Path(sys.modules["mini_llm.eval.task"].OUR_TASKS) / f"{name}.yaml").read_text())
    own = {**base, **data_of(sets / f"{name}.jsonl"), "task": f"own_{name}"}
    (tmp_path / f"own_{name}.yaml").write_text(yaml.safe_dump(own))
    check(our_result(local_model, f"own_{name}", sets, tmp_path, shots=2), found, f"their_{name}")


def test_local_completions_through_our_server(
    server_address: str, wide_folder: Path, sets: Path, yaml_folder: Path
) -> None:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    model = LocalCompletionsAPI(
        base_url=f"{server_address}/v1/completions", model=wide_folder.name, max_length=512, num_concurrent=4,
        max_retries=1, tokenizer=str(wide_folder), tokenizer_backend="huggingface", add_bos_token=True,
    )  # fmt: skip
    names = ["their_piqa", "their_lambada_openai", "writing"]
    found = lm_eval_results(model, names, yaml_folder)
    local = LocalModel.load(wide_folder, device="cpu", dtype="float32")
    for name in names:
        assert check(our_result(local, name.removeprefix("their_"), sets, yaml_folder), found, name) >= 20


@pytest.mark.parametrize("backend", ["huggingface", "auto"])  # auto: the remote tokenizer, because our server has one
def test_the_stand_in_sends_lm_evals_requests(backend: str, server_address: str, wide_folder: Path, sets: Path) -> None:
    """So that `test_lm_eval_requests.py` holds where lm-eval is not installed."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    sent: list[dict[str, Any]] = []

    class Recorded(LocalCompletionsAPI):  # type: ignore[misc, valid-type]
        def _create_payload(self, *words: Any, **named: Any) -> dict[str, Any]:
            sent.append(super()._create_payload(*words, **named))
            return sent[-1]

    local = {"tokenizer": str(wide_folder), "add_bos_token": True} if backend == "huggingface" else {}
    model = Recorded(
        base_url=f"{server_address}/v1/completions", model=wide_folder.name, max_length=512, num_concurrent=4,
        max_retries=1, tokenizer_backend=backend, **local,
    )  # fmt: skip
    encode = local_tokenizer(wide_folder, add_bos_token=True) if local else remote_tokenizer(server_address)
    client = LmEvalClient(server_address, wide_folder.name, encode)
    result = our_result(LocalModel.load(wide_folder, device="cpu"), "piqa", sets, wide_folder)
    requests = [("", " The people"), *(request for item in result.items for request in item.requests)]
    scored = model.loglikelihood([Instance("loglikelihood", {}, request, i) for i, request in enumerate(requests)])
    assert scored == [pytest.approx(pair, rel=1e-6) for pair in client.loglikelihood(requests)]
    how = {"until": ["\n", "th"], "max_gen_toks": 12, "do_sample": False}
    contexts = [context for context, _ in requests[1:20]]
    written = model.generate_until(
        [Instance("generate_until", {}, (context, how), i) for i, context in enumerate(contexts)]
    )
    assert written == client.generate_until(contexts, ["\n", "th"], 12)

    def plain(requests: list[dict[str, Any]]) -> list[str]:
        return sorted(json.dumps(request, sort_keys=True) for request in requests)

    assert plain(sent) == plain(client.sent)


def test_bos_counts_for_lm_eval_alone(local_model: LocalModel, sets: Path, yaml_folder: Path) -> None:
    scores = our_result(local_model, "rolling", sets, yaml_folder).scores()
    assert scores["bits_per_byte,none"][0] > scores["bits_per_byte,BOS not predicted"][0]


def test_the_plug_in_runs_in_lm_evals_own_command(
    model_folder: Path, yaml_folder: Path, tmp_path: Path, theirs: Any
) -> None:
    words = [
        "run",
        "--model",
        "mini-llm",
        "--model_args",
        f"pretrained={model_folder}",
        "--tasks",
        "their_piqa,writing",
    ]
    words += ["--include_path", str(yaml_folder), "--output_path", str(tmp_path / "out")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DISABLE_MULTIPROC": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "mini_llm.eval.lm_eval", *words],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    (path,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(path.read_text())["results"]
    for metric in ("acc,none", "acc_norm,none", "acc_stderr,none"):
        assert math.isclose(found["their_piqa"][metric], theirs["results"]["their_piqa"][metric], rel_tol=1e-6)
    assert found["writing"]["exact_match,none"] == theirs["results"]["writing"]["exact_match,none"]


def test_a_tokenizer_that_puts_a_space_before_every_text(
    model_folder: Path, yaml_folder: Path, sets: Path, tmp_path: Path
) -> None:
    """Llama 2's kind: a continuation's first piece depends on whether it is encoded alone or after its context."""
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path / "llama2"
    shutil.copytree(model_folder, folder)
    (folder / "tokenizer.model").unlink(missing_ok=True)
    (folder / "checksums.json").unlink()
    spec = json.loads((folder / "tokenizer.json").read_text())
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    spec["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
    spec["pre_tokenizer"] = None
    spec["decoder"]["decoders"][3:] = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    hf = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=16)
    model = LocalModel.load(folder, device="cpu")
    assert model.tokenizer.decode(model.tokenizer.encode("word")) == "word"
    assert model.tokenizer.encode("word") != LocalModel.load(model_folder, device="cpu").tokenizer.encode("word")
    names = ("hellaswag", "arc_easy", "winogrande", "lambada_openai", "blimp_anaphor_gender_agreement")
    found = lm_eval_results(hf, [f"their_{name}" for name in names], yaml_folder)
    for name in names:
        assert check(our_result(model, name, sets, yaml_folder), found, f"their_{name}") >= 20
