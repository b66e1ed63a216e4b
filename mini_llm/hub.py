"""Names on the Hugging Face hub: `hf://USER/NAME[@REV]` becomes a folder on this machine, fetched once.

What can go wrong there is said in words: no network, no such name, a name that asks for a licence, no token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from mini_llm.errors import UsageError, UserError

# Only what a model folder needs: weights as safetensors, never a pickle.
MODEL_FILES = ("*.json", "*.safetensors", "tokenizer.model", "*.jinja", "README.md")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja")
SCHEME = re.compile(r"hf:/+")  # Path("hf://a/b") is hf:/a/b
NAME = re.compile(r"(?P<id>[\w][\w.-]*(/[\w][\w.-]*)?)(@(?P<revision>[\w][\w./-]*))?")


class Unreachable(UserError):
    """The hub cannot be reached, and what is wanted of it is not on this machine."""


class HubName(NamedTuple):
    """A repository on the hub, and the branch, tag or commit of it; None: the newest."""

    id: str
    revision: str | None = None


def is_hub_name(path: Path | str) -> bool:
    """Tell whether this is `hf://...` and no path."""
    return SCHEME.match(_text(path)) is not None


def parse_name(text: Path | str) -> HubName:
    """Read `USER/NAME`, `USER/NAME@REV`, with or without `hf://`.

    Raises:
        UsageError: it is no such name.
    """
    found = NAME.fullmatch(SCHEME.sub("", _text(text), count=1))
    if not found or ".." in found["id"]:
        raise UsageError(
            f"'{_text(text)}' is no name on the hub", "names look like hf://USER/NAME or hf://USER/NAME@REV"
        )
    return HubName(found["id"], found["revision"])


def fetch(
    name: Path | str,
    files: Sequence[str] = MODEL_FILES,
    into: Path | None = None,
    *,
    repo_type: Literal["model", "dataset"] = "model",
    only_here: bool = False,
) -> Path:
    """Return the folder of a name's files, downloaded where the hub's cache lacks them, or to the folder `into`.

    Raises:
        UsageError: it is no name.
        UserError: it does not exist or is not open to this user.
        Unreachable: it is not on this machine, and the hub cannot be reached or is not to be asked (`only_here`).
    """
    id, revision = parse_name(name)
    with in_words(id if repo_type == "model" else f"datasets/{id}", revision):
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            id,
            repo_type=repo_type,
            revision=revision,
            allow_patterns=list(files),
            local_dir=into,
            local_files_only=only_here,
        )
    return Path(folder)


@contextmanager
def in_words(id: str, revision: str | None = None) -> Iterator[None]:
    """Turn what huggingface_hub raises inside the block into a UserError; `id` as in the repository's address."""
    try:
        import huggingface_hub.errors as hub
    except ImportError:
        raise UserError("the hub needs the huggingface-hub package", "pip install 'mini-llm[hf]'") from None
    try:
        yield
    except hub.GatedRepoError:
        raise UserError(
            f"{id} is gated: its owner asks you to accept a licence first",
            f"accept it at https://huggingface.co/{id}, then: hf auth login",
        ) from None
    except hub.RevisionNotFoundError:
        raise UserError(f"{id} has no revision '{revision}' on the hub") from None
    except hub.RepositoryNotFoundError:
        raise UserError(
            f"no {id} on the hub, or it is private and this user may not see it",
            "check the name; for a private one: hf auth login, or set HF_TOKEN",
        ) from None
    except (hub.LocalTokenNotFoundError, hub.HFValidationError) as problem:
        is_token = isinstance(problem, hub.LocalTokenNotFoundError)
        hint = "hf auth login, or set HF_TOKEN to a token of yours that may write" if is_token else None
        raise UserError(
            "no token for the hub" if is_token else f"the hub refuses {id}: {_line(problem)}", hint
        ) from None
    except (hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError) as problem:
        raise Unreachable(
            f"{id} is not on this machine, and the hub cannot be reached ({_line(problem)})",
            "connect, and unset HF_HUB_OFFLINE; or give a folder",
        ) from None
    except hub.HfHubHTTPError as problem:
        status = getattr(problem.response, "status_code", None)
        if status in (401, 403):
            raise UserError(
                f"the hub refuses {id}: this token is missing, expired or may not do that (HTTP {status})",
                "hf auth login, or set HF_TOKEN to a token of yours that may write",
            ) from None
        raise UserError(f"the hub failed on {id}: {_line(problem)}", "the same command goes on") from None
    except (OSError, RuntimeError, ValueError) as problem:  # the network's own errors are OSErrors or Exceptions
        raise UserError(f"the hub failed on {id}: {_line(problem)}", "the same command goes on") from None
    except Exception as problem:
        if type(problem).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2", "requests"):
            raise
        raise Unreachable(f"the hub cannot be reached: {_line(problem)}", "the same command goes on") from None


def _line(problem: BaseException) -> str:
    text = next((line for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
    return "".join(c if c.isprintable() else "?" for c in text.partition(". ")[0])[:200]


def _text(path: Path | str) -> str:
    return path.as_posix() if isinstance(path, Path) else path
