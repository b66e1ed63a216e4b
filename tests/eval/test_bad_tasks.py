"""A task's YAML of any kind is followed or refused in words, by its key or row, before it does harm."""

import json
from pathlib import Path

import pytest

from mini_llm.errors import UserError
from mini_llm.eval import items
from mini_llm.eval.evaluate import ask, prepare_questions
from mini_llm.eval.language_model import LocalModel
from mini_llm.eval.metrics import filtered
from mini_llm.eval.task import load_tasks

CHOICE = {
    "task": "mine",
    "output_type": "multiple_choice",
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{a}}",
}
WRITING = {**CHOICE, "output_type": "generate_until", "metric_list": [{"metric": "exact_match"}]}
ROWS = [{"q": "The people", "choices": ["a cat", "the dog"], "a": 0}, {"q": "In", "choices": ["x y", "z w"], "a": 1}]


def task_file(folder: Path, values: dict, rows: list | None = None, more: str = "") -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows or ROWS))
    values = {"dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}, **values}
    path = folder / "mine.yaml"
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()) + more)
    return path


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({**CHOICE, "task": "../../mine"}, "task: it must be a file's name"),
        ({**CHOICE, "task": "\x1b[31mmine"}, "task: it must be a file's name"),
        ({**CHOICE, "members": 5}, "members must be a list of 1 to 1,000 names"),
        ({**CHOICE, "members": ["a"] * 2_000}, "members must be a list of 1 to 1,000 names"),
        ({**CHOICE, "members": ["a", {"b": 1}]}, "each of members must be a name of its own"),
        ({**CHOICE, "num_fewshot": -1}, "num_fewshot: Input should be greater than or equal to 0"),
        ({**CHOICE, "metric_list": [{"metric": ["acc"]}]}, "each entry must name its metric"),
        ({**WRITING, "generation_kwargs": {"max_gen_toks": "many"}}, "max_gen_toks must be a whole number"),
        ({**WRITING, "generation_kwargs": {"max_gen_toks": -4}}, "max_gen_toks must be a whole number"),
        ({**WRITING, "generation_kwargs": {"temperature": "warm"}}, "temperature must be a number"),
        ({**WRITING, "generation_kwargs": {"until": 5}}, "until must be a text or a list of texts"),
        ({**WRITING, "filter_list": [{"name": "f", "filter": 5}]}, "filter must be a list of steps"),
        (
            {**WRITING, "filter_list": [{"filter": [{"function": "regex", "regex_pattern": "("}]}]},
            "'(' is no regular expression",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_task_can_say_is_refused_by_its_key(values: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as problem:
        load_tasks(task_file(tmp_path, values))
    assert said in problem.value.message
    assert "mine.yaml" in problem.value.message


def test_a_date_that_is_none_is_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not valid YAML: month must be in"):
        load_tasks(task_file(tmp_path, CHOICE, more="metadata: {made: 2026-99-99}\n"))


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}a{% endfor %}{% endfor %}",
        "{{ ('a'*40) | regex_replace('(a+)+$b', '') }}",
    ],
)
def test_a_template_that_never_ends_is_stopped(template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "SECONDS", 0.5)
    (task,) = load_tasks(task_file(tmp_path, {**CHOICE, "doc_to_text": template}))
    with pytest.raises(UserError, match=r"row 1 does not fit the task mine: it takes longer than 0\.5 seconds"):
        prepare_questions(task, [], {})


def test_a_field_may_have_any_name(tmp_path: Path) -> None:
    (task,) = load_tasks(task_file(tmp_path, CHOICE, [{"self": 1, "": 2, "a b": 3, **ROWS[0]}]))
    assert prepare_questions(task, [], {}).items[0].requests == [("The people", " a cat"), ("The people", " the dog")]


@pytest.mark.parametrize(
    ("key", "said"),
    [("process_docs", "its process_docs fails"), ("process_results", "its process_results fails at row 1")],
)
def test_own_code_that_ends_the_program_does_not(key: str, said: str, tmp_path: Path, local_model: LocalModel) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "own.py").write_text("import sys\ndef leave(*_):\n    sys.exit(0)\nnumber = 5\n")
    path = task_file(tmp_path, CHOICE, more=f"{key}: !function own.leave\n")
    (task,) = load_tasks(path, run_code=True)
    with pytest.raises(UserError, match=said):
        ask(local_model, prepare_questions(task, [], {}))
    path.write_text(path.read_text().replace("own.leave", "own.number"))
    with pytest.raises(UserError, match="number is no function"):
        load_tasks(path, run_code=True)


def test_a_group_that_is_not_there_is_the_fallback() -> None:
    steps = [{"function": "regex", "regex_pattern": "[0-9]", "group_select": 3, "fallback": "none"}]
    assert filtered("1 2", steps) == "none"
    assert filtered("1 2 3 4", steps) == "4"


def test_a_task_cannot_leave_the_table(run_cli, model_folder: Path, tmp_path: Path) -> None:
    path = task_file(tmp_path, {**CHOICE, "task_alias": "a|\x1b[31m\nb", "metadata": {"version": "\x1b|"}})
    result = run_cli("eval", model_folder, "--tasks", path)
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert all(line.startswith("|") for line in result.stdout.splitlines()[:4])
    assert "|a\\| [31m b|" in result.stdout


def test_damaged_weights_have_no_loss(run_cli, model_folder: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "checksums.json").unlink()
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors")
    (tmp_path / "text.txt").write_text("The people of the United States")
    result = run_cli("eval", folder, "--text", tmp_path / "text.txt")
    assert (result.returncode, result.stdout) == (1, "")
    assert "its loss is not a number: the weights are damaged" in result.stderr
