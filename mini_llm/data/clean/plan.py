"""The plan of a cleaning: which files make which task, what depends on what, what disk and memory it needs.

It is written down beside the work, so that every process, on this machine or another, does the same.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from mini_llm.data.clean.config import CleanConfig
from mini_llm.data.clean.stages import Stage, stages
from mini_llm.data.parts import groups, part_bytes
from mini_llm.data.sources import read_documents
from mini_llm.errors import UserError
from mini_llm.memory import cpu_memory
from mini_llm.units import size
from mini_llm.user_files import read_file

PACKED = 3.5  # bytes of text in one byte of a packed file; English in xz: 3.8, in gzip: 2.6
KEPT = 0.4  # bytes on the disk for one of text, packed by gzip
SAMPLE = 200  # documents that say how long one is
# Bytes of memory: of the two processes that wait, of each that works (docs/text.md), of a document in a pair of two.
MEMORY, MEMORY_EACH, JOINED = 170e6, 300e6, 170


@dataclass(frozen=True)
class Plan:
    """All that a process needs to do its share."""

    settings: dict[str, object]  # of CleanConfig
    groups: list[list[str]]
    text_column: str
    work: str
    decontaminates: bool

    def save(self) -> None:
        """Write it down."""
        Path(self.work, "plan.json").write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, work: Path) -> Plan:
        """Read what was written down."""
        return cls(**json.loads(read_file(work / "plan.json")))

    def stages(self) -> list[Stage]:
        """Return the stages."""
        grams = Path(self.work, "grams") if self.decontaminates else None
        config = CleanConfig.model_validate(self.settings)
        return stages(config, self.groups, self.text_column, Path(self.work), grams)

    def logs(self, number: int) -> Path:
        """Return where stage `number` keeps what it has done."""
        return Path(self.work, "logs", f"{number}")


def group(files: list[Path]) -> list[list[str]]:
    """Put files together until a group has some megabytes: by the files alone, whoever works on them."""
    target = part_bytes(sum(path.stat().st_size for path in files))
    return [[str(path) for path in group] for group in groups(files, target, lambda _: False)]


def key(config: CleanConfig, files: list[Path], text_column: str, items: list[str]) -> str:
    """Name all that the result depends on, in a few letters: what was done under another name is not taken."""
    import datatrove

    version = getattr(datatrove, "__version__", "")
    identities = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    everything = json.dumps([config.model_dump(mode="json"), identities, text_column, items, version])
    return hashlib.sha256(everything.encode("utf-8", "surrogateescape")).hexdigest()[:12]


@dataclass(frozen=True)
class Needs:
    """About how many bytes the work takes: of text, of disk meanwhile, of memory; and of memory at most, to join near
    duplicates, were every document one.
    """

    text: float
    disk: float
    memory: float
    joining: float
    workers: int


def needs(config: CleanConfig, files: list[Path], text_column: str, workers: int = 1) -> Needs:
    """Return what cleaning these files by so many processes here takes."""
    text = sum(p.stat().st_size * (PACKED if p.suffix in (".gz", ".xz", ".zst", ".parquet") else 1) for p in files)
    sample = [len(t.encode()) for t in itertools.islice(read_documents(files, text_column=text_column), SAMPLE)]
    documents = text / (sum(sample) / len(sample))
    signature = config.minhash.buckets * (8 * config.minhash.hashes + 4) if config.minhash else 0
    copies = 1 + config.exact_duplicates + (config.minhash is not None)
    disk = text * KEPT * copies + documents * (signature + 14 * config.exact_duplicates)
    return Needs(text, disk, MEMORY + workers * MEMORY_EACH, JOINED * documents if config.minhash else 0, workers)


def check_room(folder: Path, needed: Needs, *, works_here: bool) -> None:
    """Refuse to begin what the disk, or this machine's memory, cannot hold.

    Raises:
        UserError: it says what is needed and what is there.
    """
    _check_disk(folder, needed.disk)
    if works_here:
        _check_memory(needed)


def _check_memory(needed: Needs) -> None:
    there = cpu_memory()
    if there is not None and needed.memory > there:
        what = f"{needed.workers} workers need about {size(needed.memory)} of memory"
        raise UserError(
            f"{what}, and this machine has {size(there)}",
            f"give fewer: --workers {max(1, int((there - MEMORY) / MEMORY_EACH))}",
        )


def _check_disk(folder: Path, needed: float) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"cleaning needs about {size(needed)} beside {folder}, and {size(free)} are free",
            "make room, choose another --out, or clean the files in several turns",
        )
