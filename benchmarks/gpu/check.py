"""What is there and what is missing: in seconds, before anything is spent.

Packages that this Python lacks are taken from luggage/wheels; a wheel is a zip file, so that no installer is needed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LUGGAGE = ROOT / "luggage"
SITE = ROOT / "build" / "gpu" / "site"

# Import name and distribution: what the package imports when it trains and writes, and what the steps need besides.
NEEDED = {
    "torch": "torch", "numpy": "numpy", "pydantic": "pydantic", "typer": "typer", "rich": "rich", "yaml": "pyyaml",
    "safetensors": "safetensors", "sentencepiece": "sentencepiece", "tokenizers": "tokenizers",
    "google.protobuf": "protobuf", "pytest": "pytest", "pytest_timeout": "pytest-timeout", "xdist": "pytest-xdist",
    "transformers": "transformers", "matplotlib": "matplotlib",
}  # fmt: skip


def missing() -> list[str]:
    """Return the distributions that this Python has not, or has too old for pyproject.toml."""
    return [name for module, name in NEEDED.items() if not _is_there(module, name)]


def _is_there(module: str, name: str) -> bool:
    try:
        if importlib.util.find_spec(module) is None:
            return False
    except ModuleNotFoundError:  # of a parent
        return False
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wanted = re.search(rf'"{re.escape(name)}>=([\d.]+)"', text)
    try:
        return wanted is None or _numbers(importlib.metadata.version(name)) >= _numbers(wanted[1])
    except importlib.metadata.PackageNotFoundError:  # a source tree: taken as it is
        return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.partition("+")[0])[:3])


def unpack_wheels() -> list[str]:
    """Put the wheels of luggage/wheels that are wanted onto this program's path; return their names.

    All of them or none: the versions of pydantic and its relatives must fit together.
    """
    shutil.rmtree(SITE, ignore_errors=True)
    wheels = sorted((LUGGAGE / "wheels").glob("*.whl"))
    if not missing() or not wheels:
        return []
    SITE.mkdir(parents=True)
    for wheel in wheels:
        zipfile.ZipFile(wheel).extractall(SITE)
    sys.path.insert(0, str(SITE))
    importlib.invalidate_caches()
    return [wheel.name.split("-")[0] for wheel in wheels]


def report(device: str) -> tuple[str, list[str]]:
    """Return what this machine has, in lines, and the reasons why nothing can run; an empty list: all is well."""
    unpacked, problems = unpack_wheels(), []
    if lacking := missing():
        problems.append(f"missing: {', '.join(lacking)}; on a machine with a network: make luggage, and bring luggage/")
        return f"Python {sys.version.split()[0]}", problems
    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "transformers", "triton"))
    lines = [
        f"Python {sys.version.split()[0]}, {versions}" + (f"; from wheels: {', '.join(unpacked)}" if unpacked else "")
    ]
    import torch

    if device == "cuda":
        if not torch.cuda.is_available():
            problems.append("no CUDA GPU that this torch can use; without one: make gpu REHEARSE=1")
        else:
            card = torch.cuda.get_device_properties(0)
            lines.append(f"{card.name}, {card.total_memory / 1e9:.0f} GB, capability {card.major}.{card.minor}")
            x = torch.ones(256, 256, device="cuda", dtype=torch.bfloat16)
            if (x @ x).float().mean().item() != 256:
                problems.append("a matrix product on the GPU is wrong")
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    header = Path(sysconfig.get_path("include")) / "Python.h"
    lines.append(f"C compiler: {compiler or 'none'}; Python.h: {'there' if header.is_file() else 'not there'}")
    if not (compiler and header.is_file()):
        lines.append("without a C compiler and Python.h torch.compile does not work, and training is slower")
    lines.append(f"{shutil.disk_usage(ROOT).free / 1e9:.0f} GB of disk are free")
    lines.append(f"text for the flagship: {'there' if has_text() else 'none: make luggage CORPUS=FILE brings it'}")
    return "\n".join(lines), problems


def has_text() -> bool:
    """Tell whether luggage/ holds a corpus and its tokenizer."""
    return (LUGGAGE / "tokenizer").is_dir() and any((LUGGAGE / "text").glob("*"))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def nvidia_smi() -> str:
    """Return the card's name, clocks and driver in one line, or why there is none."""
    fields = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
    try:
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as problem:
        return f"nvidia-smi: {problem}"
