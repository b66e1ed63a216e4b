"""Where to listen, who may ask, and how much: every limit of the server in one place."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mini_llm.adapter import fingerprint, stack_of
from mini_llm.errors import UsageError, UserError
from mini_llm.pointers import resolve_checkpoint

KEY_VARIABLE = "MINI_LLM_API_KEY"
LONGEST_KEY = 4096  # characters
LOOPBACK = ("127.0.0.1", "::1", "localhost")
# What a request may ask for at most.
MOST_CHOICES, MOST_PROMPTS, MOST_MESSAGES = 8, 128, 1000
MOST_STOPS, LONGEST_STOP, MOST_BIASES, MOST_LIKELIEST = 16, 64, 1024, 20


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How one server behaves."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: a free one
    key: str | None = None  # what clients must send; None: nothing
    allowed_hosts: tuple[str, ...] = ()  # names besides localhost and addresses that a browser may call us by
    cors_origins: tuple[str, ...] = ()  # pages of other origins that may call us
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"
    name: str | None = None  # of the model; default: the run's
    max_slots: int = 32  # texts that are computed at once
    max_queue: int = 128  # texts that wait
    max_models: int = 4  # checkpoints in memory
    adapters: tuple[tuple[str, Path], ...] = ()  # further models: their names, and where what LoRA learned lies
    drain_seconds: float = 10.0  # for texts that run when SIGTERM comes
    log_texts: bool = False
    body_bytes: int = 2**20
    header_bytes: int = 2**14
    whole_request_seconds: float = 10.0  # from a request's first byte to its last
    request_seconds: float = 600.0  # from then to the answer's last
    max_connections: int = 256
    unread_ids: int = 256  # computed and not taken: then the text is cancelled
    stall_seconds: float = 30.0  # the same, for a reader that takes nothing
    heartbeat_seconds: float = 5.0

    @property
    def capacity(self) -> int:
        """How many texts run or wait at most."""
        return self.max_slots + self.max_queue


def parse_adapters(words: Sequence[str], model: Path, name: str) -> tuple[tuple[str, Path], ...]:
    """Return names and places of NAME=DIR words, for adapters of `model`, which is called `name`.

    Raises:
        UsageError: a word of another form, or a name twice.
        UserError: there is no adapter, or it is one of another model.
    """
    found: dict[str, Path] = {}
    base, _ = stack_of(resolve_checkpoint(model))
    for word in words:
        key, _, place = word.partition("=")
        if not re.fullmatch(r"[\w.-]+", key) or not place:
            raise UsageError(f"--adapter {word!r} is not NAME=DIR", "for example: --adapter pirate=runs/pirate")
        if key in found or key == name:
            raise UsageError(f"--adapter {word!r}: another model is called {key} already", "give it another name")
        folder = resolve_checkpoint(place)
        below, adapters = stack_of(folder)
        if not adapters:
            raise UserError(f"{place} is a whole model, and no adapter", f"serve it by itself: mini-llm serve {place}")
        if fingerprint(below) != fingerprint(base):
            raise UserError(
                f"the adapter {place} is for another model than {model}", f"serve it by itself: mini-llm serve {place}"
            )
        found[key] = Path(place)
    return tuple(found.items())


def read_key(file: Path | None) -> str | None:
    """Return the key of the environment, or of a file that its owner alone may read; None: there is none.

    Raises:
        UserError: the file is missing, empty or open to others.
    """
    if file is None:
        return os.environ.get(KEY_VARIABLE, "").strip() or None
    try:
        mode = file.stat().st_mode
        with file.open(encoding="utf-8") as opened:
            key = opened.read(LONGEST_KEY + 1).strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"cannot read the key in {file}: {getattr(problem, 'strerror', None) or problem}") from None
    if os.name != "nt" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(f"{file} holds the key and others may read it", f"chmod 600 {file}")
    if not key:
        raise UserError(f"{file} is empty", "write the key into it, in one line")
    if not (key.isascii() and key.isprintable() and len(key) <= LONGEST_KEY):
        raise UserError(f"{file} holds no key: it has several lines, or letters beyond ASCII", "write one line into it")
    return key


def check_names(allowed_hosts: Sequence[str], cors_origins: Sequence[str]) -> None:
    """Refuse what no browser ever sends, and what would let nobody in without a word.

    Raises:
        UsageError: a host with a scheme, port or path; an origin with a path, or a pattern.
    """
    for name in allowed_hosts:
        if not re.fullmatch(r"[A-Za-z0-9._-]+|[0-9a-fA-F:]+|\[[0-9a-fA-F:]+\]", name):
            raise UsageError(f"--allowed-host {name!r} is no name alone", "for example: --allowed-host models.example")
    for origin in cors_origins:
        if not re.fullmatch(r"https?://([a-z0-9._-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?", origin):
            raise UsageError(
                f"--cors-origin {origin!r} is no page's origin",
                "one whole origin each: --cors-origin https://notes.example",
            )


def check_exposure(host: str, key: str | None, *, no_key: bool) -> None:
    """Refuse to listen to other machines without a key, unless that is said aloud.

    Raises:
        UsageError: `host` is no loopback address, and there is neither a key nor `--no-key`.
    """
    if host not in LOOPBACK and key is None and not no_key:
        raise UsageError(
            f"--host {host} lets other machines in, and no key is set",
            f"set {KEY_VARIABLE} or give --api-key-file FILE; --no-key lets everyone in",
        )
