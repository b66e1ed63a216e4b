"""Text that lies elsewhere: `hf://datasets/USER/NAME`, `https://`, `s3://`, `gs://`; fetched file by file, pinned.

A data set of the hub is `hf://datasets/USER/NAME[@REV][/GLOB][?name=CONFIG&split=SPLIT&column=KEY]`: the files that its
page names for a configuration and split (train, where none is given), or those of a glob. The revision becomes the
commit that it means now, so that a run that goes on tomorrow reads the same bytes. Other addresses go through fsspec.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl

from mini_llm.data.formats import SUPPORTED, format_of
from mini_llm.errors import UsageError, UserError, did_you_mean
from mini_llm.hub import in_words
from mini_llm.temporary import temporary_folder

ADDRESS = re.compile(r"[a-z][a-z0-9+]*://")
DATASET = re.compile(
    r"hf://datasets/(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<glob>[^?]+))?(\?(?P<query>.*))?"
)
FORM = "hf://datasets/USER/NAME[@REV][/GLOB][?name=CONFIG&split=SPLIT&column=KEY]"
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp", "az": "adlfs"}
SILENT = 60.0  # seconds without a byte, after which a server is given up
OTHER_SPLITS = re.compile(r"(^|[/_.-])(test|valid|validation|val|dev)([/_.-]|$)")


@dataclass(frozen=True)
class RemoteFile:
    """A file elsewhere. `url` names its very bytes, `column` the text in it (None: as --text-column says)."""

    url: str
    bytes: int
    column: str | None
    download: Callable[[Path], Path]  # into a folder; returns where it lies

    @property
    def name(self) -> str:
        """Its address without the words after a question mark."""
        return self.url.partition("?")[0]

    def get(self, folder: Path) -> Path:
        """Fetch it into `folder`.

        Raises:
            UserError: it cannot be reached, or has another size than it should.
        """
        path = self.download(folder)
        if (size := path.stat().st_size) != self.bytes:
            raise UserError(f"{self.url} came with {size:,} bytes of {self.bytes:,}", "run the same command again")
        return path


File = Path | RemoteFile


def is_address(source: str) -> bool:
    """Tell whether a source lies elsewhere."""
    return ADDRESS.match(source) is not None


def size_of(file: File) -> int:
    """Return the bytes of a file as it lies where it lies."""
    return file.bytes if isinstance(file, RemoteFile) else file.stat().st_size


def name_of(file: File) -> str:
    """Return what a file is called in messages."""
    return file.name if isinstance(file, RemoteFile) else str(file)


@contextmanager
def at_hand(file: File) -> Iterator[Path]:
    """Yield where to read a file; one that lies elsewhere is fetched, and gone after the block.

    Raises:
        UserError: as `RemoteFile.get`.
    """
    if isinstance(file, Path):
        yield file
        return
    with temporary_folder() as folder:
        yield file.get(folder)


def find_remote(source: str) -> list[RemoteFile]:
    """Return the files of an address, in order.

    Raises:
        UsageError: it is no address that can be read.
        UserError: it cannot be reached, or holds no text file.
    """
    found = _hub_files(source) if source.startswith("hf://") else _fsspec_files(source)
    if not found:
        raise UserError(f"no text files in {source}", SUPPORTED)
    return found


# --- the hub ---------------------------------------------------------------------------------------------------------


def _hub_files(source: str) -> list[RemoteFile]:
    parsed = DATASET.fullmatch(source)
    if not parsed:
        raise UsageError(f"'{source}' is no data set of the hub", f"they look like {FORM}")
    query = dict(parse_qsl(parsed["query"] or ""))
    if unknown := sorted(query.keys() - {"name", "split", "column"}):
        raise UsageError(f"'{unknown[0]}' in {source} is unknown", f"they look like {FORM}")
    id = parsed["id"]
    with in_words(f"datasets/{id}", parsed["revision"]):
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        api = HfApi()
        info = api.dataset_info(id, revision=parsed["revision"])
        tree = api.list_repo_tree(id, revision=info.sha, recursive=True, repo_type="dataset")
        sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
    texts = sorted(path for path in sizes if format_of(Path(path)) and PurePosixPath(path).name != "README.md")
    if parsed["glob"]:
        chosen = [path for path in texts if fnmatch.fnmatchcase(path, parsed["glob"])]
    else:
        chosen = _of_split(texts, info.card_data, query.get("name"), query.get("split", "train"), source)
    return [_hub_file(id, str(info.sha), path, sizes[path], query.get("column")) for path in chosen]


def _of_split(texts: list[str], card: Any, name: str | None, split: str, source: str) -> list[str]:
    """Choose the files of a configuration's split, as the set's page says; without one, by their names."""
    configs = {config["config_name"]: config for config in (getattr(card, "configs", None) or [])}
    if name is not None and name not in configs:
        known = f"it has: {', '.join(configs) or 'none'}"
        raise UserError(f"{source}: no configuration '{name}'{did_you_mean(name, configs)}", known)
    chosen = configs.get(name) or next((c for c in configs.values() if c.get("default")), configs.get("default"))
    if chosen is None and len(configs) == 1:
        chosen = next(iter(configs.values()))
    if chosen is None and configs:
        raise UserError(f"{source} has several configurations: {', '.join(configs)}", f"choose one: {source}?name=...")
    if chosen is None:
        return [path for path in texts if split != "train" or not OTHER_SPLITS.search(path)]
    return [path for path in texts if any(_matches(path, pattern) for pattern in _patterns(chosen, split, source))]


def _patterns(config: dict[str, Any], split: str, source: str) -> list[str]:
    files = config.get("data_files")
    if isinstance(files, str):
        return [files]
    splits = {one.get("split"): one.get("path") for one in files or [] if isinstance(one, dict)}
    if not splits and isinstance(files, list):
        return [str(one) for one in files]
    if split not in splits:
        names = [str(one) for one in splits if one]
        raise UserError(f"{source}: no split '{split}'{did_you_mean(split, names)}", f"it has: {', '.join(names)}")
    found = splits[split]
    return [found] if isinstance(found, str) else [str(one) for one in found or []]


def _matches(path: str, pattern: str) -> bool:
    """Match as the hub does: `*` stays within a folder, `**` goes through them."""
    parts = re.split(r"(\*\*/?|\*|\?)", pattern)
    special = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.fullmatch("".join(special.get(part, re.escape(part)) for part in parts), path) is not None


def _hub_file(id: str, sha: str, path: str, size: int, column: str | None) -> RemoteFile:
    def download(folder: Path) -> Path:
        with in_words(f"datasets/{id}", sha):
            from huggingface_hub import hf_hub_download

            return Path(hf_hub_download(id, path, revision=sha, repo_type="dataset", local_dir=folder))

    return RemoteFile(f"hf://datasets/{id}@{sha}/{path}", size, column, download)


# --- everything else -------------------------------------------------------------------------------------------------


def _fsspec_files(source: str) -> list[RemoteFile]:
    scheme = source.partition(":")[0]
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise UserError(f"{source} needs the package fsspec", "pip install 'mini-llm[hf]'") from None
    with _in_words(source):
        try:
            system, place = url_to_fs(source, **_patience(scheme))
        except (ImportError, ValueError) as problem:
            package = PACKAGES.get(scheme)
            hint = f"pip install {package}" if package else "known: hf:// https:// s3:// gs://"
            raise UserError(f"cannot read {scheme}:// addresses: {problem}", hint) from None
        web = scheme in ("http", "https")
        if not web and any(c in place for c in "*?["):
            paths = sorted(system.glob(place))
        elif not web and system.isdir(place):
            paths = sorted(system.find(place))
        else:
            paths = [place]
        known = [path for path in paths if format_of(Path(path.partition("?")[0]))]
        return [_fsspec_file(system, scheme, path, int(system.info(path).get("size") or -1)) for path in known]


def _patience(scheme: str) -> dict[str, Any]:
    """Wait so long for a silent server, and as long as it takes for one that sends; aiohttp alone ends after 300 s."""
    if scheme not in ("http", "https"):
        return {}
    from aiohttp import ClientTimeout

    return {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=SILENT, sock_read=SILENT)}}


def _fsspec_file(system: Any, scheme: str, path: str, size: int) -> RemoteFile:
    url = path if ADDRESS.match(path) else f"{scheme}://{path.lstrip('/')}"
    if size < 0:
        raise UserError(f"{url} does not say how long it is", "fetch it first, and name the file")

    def download(folder: Path) -> Path:
        target = folder / PurePosixPath(path.partition("?")[0]).name
        with _in_words(url):
            system.get_file(path, str(target))
        return target

    return RemoteFile(url, size, None, download)


@contextmanager
def _in_words(url: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"nothing at {url}, or it cannot be reached") from None
    except PermissionError as problem:
        raise UserError(f"{url} may not be read: {problem}", "give this user the right, or its key") from None
    except Exception as problem:  # each library of fsspec has errors of its own
        what = f"{type(problem).__name__}: {str(problem)[:200]}"
        raise UserError(f"cannot read {url}: {what}", "run the same command again") from None
