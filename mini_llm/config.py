"""One way in for every setting: a YAML file, then `key=value` words, checked against a frozen pydantic model.

Precedence: default < file < override. A key that nobody knows is an error with a suggestion, never ignored.
"""

from __future__ import annotations

import os
import re
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from mini_llm.errors import UsageError, UserError, did_you_mean
from mini_llm.user_files import above, reason, refuse_special


class UnknownKey(UsageError):
    """A key that no setting has: a typing error, or of a newer version."""


class Config(BaseModel):
    """Base of every configuration: frozen, and it refuses unknown keys and `true` where a number belongs."""

    instead_of: ClassVar[dict[str, str]] = {}  # who overrides the first key wants nothing of the second any more
    shipped: ClassVar[str] = "--config configs/mini-50m.yaml"  # such a file that comes along, and how it is given

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_bool_as_number(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and bool not in _plain_types(field):
                raise ValueError(f"{name} must be {_plain_types(field)[0].__name__}, not {str(value).lower()}")
        return values


ConfigT = TypeVar("ConfigT", bound=Config)

MAX_FILE_CHARS = 100_000  # the shipped files have 2,000; PyYAML needs seconds for a megabyte
MAX_PATH, MAX_NAME = 4095, 255  # Linux's limits; others have the same or less
_FLOAT = re.compile(r"(?=.*[.eE])[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")


class _Loader(yaml.SafeLoader):
    """YAML without its traps: 1e-3 is a number, 0123 is not 83, `on` is text, a key stands once, no anchors or tags."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        line = f"line {event.start_mark.line + 1}"
        if self.check_event(yaml.AliasEvent):  # nine lines of aliases to aliases unfold to gigabytes
            raise yaml.YAMLError(f"{line}: aliases are not supported")
        if tag := getattr(
            event, "tag", None
        ):  # PyYAML lets pass what a tag's function raises, and !!int makes any size
            raise yaml.YAMLError(f"{line}: tags ({tag[:40]!r}) are not supported: write the value alone")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: the key '{key.value}' stands twice")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would take for a number."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", re.compile(r"(null|~|)\Z"), ["n", "~", ""]),
    ("bool", re.compile(r"(true|false)\Z"), list("tf")),
    ("int", re.compile(r"[-+]?(0|[1-9][0-9_]{0,30})\Z"), list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def load_config(
    cls: type[ConfigT],
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    more_keys: bool = False,
) -> ConfigT:
    """Read `path` (YAML), apply `overrides` such as `model.n_layers=4`, and return a validated `cls`.

    With `more_keys` the file may be of a larger kind of settings; what `cls` lacks is left out.

    Raises:
        UserError: the file is missing or is not YAML.
        UsageError: an unknown key (with the nearest known one), a value of the wrong type or out of range.
    """
    values = _read_yaml(Path(path), cls.shipped) if path is not None else {}
    if more_keys:
        values = {key: value for key, value in values.items() if key in cls.model_fields}
    for key in _flatten(values):
        _check_key(cls, key, source=str(path))
    overridden = set()
    for override in overrides:
        key, value = _parse_override(override)
        overridden.add(key)
        for part in _flatten({key: value}):
            _check_key(cls, part, source=override)
        _set(values, key, value, source=override)
    values |= {old: None for new, old in cls.instead_of.items() if new in overridden and old not in overridden}
    try:
        return cls.model_validate(values)
    except ValidationError as problem:
        raise UsageError(explain(problem, source=str(path) if path else "settings")) from None


def dump_config(config: Config) -> str:
    """Return `config` as YAML text that `load_config` reads back to an equal value."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path, shipped: str) -> dict[str, Any]:
    refuse_special(path)
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_FILE_CHARS + 1)
        if len(text) > MAX_FILE_CHARS:
            raise UserError(f"{path} is no config file: it is longer than {MAX_FILE_CHARS:,} characters")
        values = yaml.load(text, Loader=_Loader)  # a SafeLoader: it makes only plain values
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        if path.is_dir() or path.is_symlink():
            what = "a folder" if path.is_dir() else "a link that leads to nothing"
            raise UserError(f"{path} is {what}, not a config file") from None
        hint = f"the shipped ones are in configs/, e.g. {shipped}"
        raise UserError(f"no config file at {path}", above(path, hint)) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file") from None
    except OSError as problem:
        raise UserError(f"cannot read {path}: {reason(problem)}") from None
    except yaml.YAMLError as problem:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(problem).split())}") from None
    except RecursionError:
        raise UserError(f"{path} is no config file: it is nested too deeply") from None
    if values is None:
        raise UserError(f"{path} is empty", "settings look like `learning_rate: 1e-3`, one a line")
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold `key: value` lines, not {type(values).__name__}")
    return values


def _parse_override(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    key = key.strip().lstrip("-")
    if not separator or not key:
        raise UsageError(f"'{text}' is not a setting", "settings look like learning_rate=1e-3 or model.n_layers=4")
    try:
        return key, yaml.load(value, Loader=_Loader)
    except (yaml.YAMLError, RecursionError):
        return key, value


def expand_path(text: str) -> str:
    """Return a path with `~` and `$VARIABLES` replaced, as a shell does.

    Raises:
        ValueError: a variable that is not set, an unknown user, a NUL, or longer than any file system takes.
    """
    path = os.path.expanduser(os.path.expandvars(text))
    if unset := re.search(r"\$(\w+|\{[^}]*\})", path):
        raise ValueError(f"{unset[0]} is not set in the environment")
    if path.startswith("~"):
        raise ValueError("there is no such user; a folder of that name is written ./~NAME")
    if "\0" in path:
        raise ValueError("a path cannot hold a NUL")
    if len(os.fsencode(path)) > MAX_PATH or any(len(os.fsencode(part)) > MAX_NAME for part in Path(path).parts):
        raise ValueError(f"a path has at most {MAX_PATH:,} bytes, and {MAX_NAME} between two slashes")
    return path


PathText = Annotated[str, AfterValidator(expand_path)]  # a path in a setting


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        yield key
        if isinstance(value, dict):
            yield from _flatten(value, f"{key}.")


def _section(field: FieldInfo) -> type[Config] | None:
    """Return the nested Config class of a field, looking inside `X | None`."""
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Config):
            return candidate
    return None


def _plain_types(field: FieldInfo) -> tuple[type, ...]:
    annotation = field.annotation
    union = get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return tuple(a for a in union if isinstance(a, type) and a is not type(None)) or (bool,)


def _all_keys(cls: type[Config], prefix: str = "") -> Iterator[str]:
    for name, field in cls.model_fields.items():
        yield f"{prefix}{name}"
        if section := _section(field):
            yield from _all_keys(section, f"{prefix}{name}.")


def _check_key(cls: type[Config], key: str, source: str) -> None:
    known = list(_all_keys(cls))
    if key not in known:
        # A bare `n_layers` gets `model.n_layers`: the last part alone is compared too.
        tail = {name.rpartition(".")[2]: name for name in known}
        suggestion = f", did you mean '{tail[key]}'?" if key in tail else did_you_mean(key, known)
        raise UnknownKey(f"{source}: unknown key '{key}'{suggestion}")


def _set(values: dict[str, Any], key: str, value: Any, source: str) -> None:
    *sections, name = key.split(".")
    for section in sections:
        inner = values.get(section)
        if inner is None:
            inner = values[section] = {}
        elif not isinstance(inner, dict):
            raise UsageError(f"{source}: '{section}' holds a single value, so it has no '{name}'")
        values = inner
    values[name] = value


def explain(problem: ValidationError, source: str) -> str:
    """Return what pydantic found wrong, one line a field: source, key, rule and the value given."""
    lines = []
    for item in problem.errors():
        where = ".".join(str(part) for part in item["loc"] if not str(part).startswith("("))  # kinds of a value
        what = item["msg"].removeprefix("Value error, ")
        given = f" (given {_shortened(item['input'])})" if where and not isinstance(item["input"], dict) else ""
        lines.append(f"{source}: {where + ': ' if where else ''}{what}{given}")
    return "\n".join(lines)


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]} ... of {len(text):,} characters"


def shipped_config(name: str) -> Path:
    """Return the path of a file of configs/, which lies beside the package in a clone and inside it when installed."""
    package = Path(__file__).parent
    return next(p for p in (package / "configs" / name, package.parent / "configs" / name) if p.exists())
