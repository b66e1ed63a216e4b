"""A task: one YAML file in lm-eval's format says where the items are, how they are asked and what counts.

The files in `task_files/` are read by lm-eval too. A *family* (MMLU's subjects, BLiMP's paradigms) is one such file
with a list of members; `{member}` stands for each.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from mini_llm.config import explain
from mini_llm.errors import UsageError, UserError, did_you_mean
from mini_llm.eval.task_checks import check_filters, check_generation, check_measures, check_members, check_name

OUR_TASKS = Path(__file__).parent / "task_files"
ALIASES = {"lambada": "lambada_openai", "arc": "arc_easy"}
MAX_FILE_CHARS = 100_000
OutputType = Literal["multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until"]
METRICS: dict[str, set[str]] = {
    "multiple_choice": {"acc", "acc_norm", "acc_bytes", "exact_match", "brier_score", "mcc", "f1"},
    "loglikelihood": {"acc", "perplexity"},
    "loglikelihood_rolling": {"word_perplexity", "byte_perplexity", "bits_per_byte"},
    "generate_until": {"exact_match"},
}


@dataclass(frozen=True)
class Function:
    """`!function module.name`: Python beside the YAML file."""

    folder: Path
    path: str


class Task(BaseModel):
    """The keys of lm-eval's YAML that we follow; the rest is refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    task: Annotated[str, AfterValidator(check_name)]
    task_alias: str | None = None
    tag: Any = None
    dataset_path: str | None = None
    dataset_name: str | None = None
    dataset_kwargs: dict[str, Any] | None = None
    training_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    fewshot_split: str | None = None
    process_docs: Any = None
    doc_to_text: Any = ""
    doc_to_target: Any = None
    doc_to_choice: Any = None
    process_results: Any = None
    description: str = ""
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    fewshot_config: dict[str, Any] | None = None
    num_fewshot: int = Field(0, ge=0)
    output_type: OutputType = "generate_until"
    generation_kwargs: Annotated[dict[str, Any], AfterValidator(check_generation)] = {}
    repeats: Literal[1] = 1
    filter_list: Annotated[list[dict[str, Any]] | None, AfterValidator(check_filters)] = None
    metric_list: Annotated[list[dict[str, Any]] | None, AfterValidator(check_measures)] = None
    should_decontaminate: bool = False
    doc_to_decontamination_query: Any = None
    gen_prefix: str | None = None
    metadata: dict[str, Any] = {}
    family: str | None = None  # whose member it is
    group: str | None = None  # the same, where the whole family is evaluated

    @property
    def split(self) -> str:
        """The split to evaluate on: test where there is one, else validation."""
        return self.test_split or self.validation_split or "test"

    @property
    def metrics(self) -> list[str]:
        """The names of what is measured, in the file's order."""
        if self.metric_list is None:
            usual = {"multiple_choice": ["acc", "acc_norm"], "loglikelihood": ["perplexity", "acc"]}
            return usual.get(self.output_type) or sorted(METRICS[self.output_type])
        return [str(entry.get("metric")) for entry in self.metric_list]


def find_tasks(names: list[str], include: list[Path], *, run_code: bool = False) -> list[Task]:
    """Return the tasks of `names`: our own, of the folders `include`, or paths of YAML files; families unfold.

    Raises:
        UsageError: no such task.
        UserError: a file is no task, or holds Python and `run_code` is not set.
    """
    found: dict[str, Task] = {}
    for name in names:
        for task in _find(ALIASES.get(name, name), include, run_code):
            found.setdefault(task.task, task)
    return list(found.values())


def _find(name: str, include: list[Path], run_code: bool) -> list[Task]:
    if name.endswith((".yaml", ".yml")):
        return load_tasks(Path(name), run_code=run_code)
    files = [path for folder in [*include, OUR_TASKS] for path in sorted(folder.rglob("*.yaml"))]
    own = next((path for path in files if path.stem == name), None)
    if own is not None:
        return load_tasks(own, run_code=run_code)
    for path in files:  # a member of a family (mmlu_anatomy), or a file whose name is not its task's
        for task in _load_if_task(path, name, run_code):
            if name == task.task:
                return [task.model_copy(update={"group": None})]
    known = [path.stem for path in files]
    for folder in include:
        if not folder.is_dir():
            raise UsageError(f"--include {folder} is no folder")
    raise UsageError(
        f"no task '{name}'{did_you_mean(name, [*known, *ALIASES])}",
        f"there are: {', '.join(sorted({*known}))}; any other by the path of its YAML file",
    )


def _load_if_task(path: Path, name: str, run_code: bool) -> list[Task]:
    text = path.read_text(encoding="utf-8", errors="replace")
    is_family = name.partition("_")[0] in text and "\nmembers:" in text
    return load_tasks(path, run_code=run_code) if is_family or f"task: {name}\n" in text else []


def load_tasks(path: Path, *, run_code: bool = False) -> list[Task]:
    """Return the task of a YAML file, or the members of a family.

    Raises:
        UserError: the file is missing, no YAML, or no task that can be evaluated; the key is named.
    """
    values = read_yaml(path)
    members = values.pop("members", None)
    if members is None:
        return [_task(values, path, run_code)]
    try:
        names = check_members(members)
    except ValueError as problem:
        raise UserError(f"{path}: {problem}") from None
    group = values.get("task")
    tasks = []
    for member in names:
        marks = {"{member}": member, "{member in words}": " ".join(member.split("_"))}
        tasks.append(
            _task(
                {**_fill(values, marks), "task": f"{group}_{member}", "group": group, "family": group}, path, run_code
            )
        )
    return tasks


def _fill(value: Any, marks: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _fill(inner, marks) for key, inner in value.items()}
    if isinstance(value, str):
        for mark, text in marks.items():
            value = value.replace(mark, text)
    return value


def read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the keys of a YAML file and of the one that it includes.

    Raises:
        UserError: it is missing or not such a file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8"
        raise UserError(f"cannot read the task {path}: {reason}") from None
    if len(text) > MAX_FILE_CHARS:
        raise UserError(f"{path} is no task: it is longer than {MAX_FILE_CHARS:,} characters")
    loader = _loader_for(path.parent)
    try:
        values = yaml.load(text, Loader=loader)  # a SafeLoader: it makes only plain values, and names of functions
    except (yaml.YAMLError, ValueError) as problem:  # a date of a month 99 is the second
        raise UserError(f"{path} is not valid YAML: {' '.join(str(problem).split())}") from None
    except RecursionError:
        raise UserError(f"{path} is no task: it is nested too deeply") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is no task: it must hold `key: value` lines")
    if included := values.pop("include", None):
        base = path.parent / str(included)
        if base in seen:
            raise UserError(f"{path} includes itself")
        values = {**read_yaml(base, (*seen, path)), **values}
    return values


def _loader_for(folder: Path) -> type[yaml.SafeLoader]:
    class Loader(yaml.SafeLoader):
        """Knows `!function`, and refuses aliases: nine lines of them unfold to gigabytes."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases are not supported")
            return super().compose_node(parent, index)

    Loader.add_constructor("!function", lambda loader, node: Function(folder, str(node.value)))
    return Loader


def _task(values: dict[str, Any], path: Path, run_code: bool) -> Task:
    if isinstance(values.get("task"), list):
        raise UserError(f"{path} is a group of tasks", "name the tasks themselves, separated by commas")
    try:
        task = Task.model_validate({**values, "metadata": values.get("metadata") or {}})
    except ValidationError as problem:
        raise UserError(explain(problem, source=str(path)), "docs/evaluation.md says which keys are followed") from None
    if task.process_results is None:
        unknown = [name for name in task.metrics if name not in METRICS[task.output_type]]
        if unknown:
            known = ", ".join(sorted(METRICS[task.output_type]))
            raise UserError(f"{path}: the metric '{unknown[0]}' is not known for {task.output_type}", f"known: {known}")
    functions = {key: value for key, value in task if isinstance(value, Function)}
    if not functions:
        return task
    if not run_code:
        first = next(iter(functions.values()))
        raise UserError(
            f"{path} runs Python of its own: {first.path} in {first.folder}",
            "read it; eval runs it by --run-task-code",
        )
    return task.model_copy(update={key: _import(function) for key, function in functions.items()})


def _import(function: Function) -> Callable[..., Any]:
    module_name, _, name = function.path.rpartition(".")
    path = function.folder / f"{module_name}.py"
    spec = importlib.util.spec_from_file_location(f"mini_llm_task_{module_name}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"{path} is missing, and the task wants its function {name}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        found = getattr(module, name)
    except (Exception, SystemExit) as problem:
        raise UserError(f"{path}: {type(problem).__name__}: {problem}") from None
    if not callable(found):
        raise UserError(f"{path}: {name} is no function, and the task wants to call it")
    return found
