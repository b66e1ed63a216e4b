"""Luggage: what a machine without a network must be brought, in one ignored folder of less than 64 MiB.

    python benchmarks/gpu/luggage.py [--corpus FILE]

`wheels/` gets the packages that a machine with torch, transformers and matplotlib may lack, for its Python; `text/`
gets the corpus as it is, compressed, `tokenizer/` a tokenizer of 32,000 pieces learned from it: text travels smaller
than tokens, and to make tokens of it takes many cores seconds.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from check import LUGGAGE, ROOT

# pydantic's relatives come along: their versions must fit together. The rest comes with transformers and pytest.
PACKAGES = ("pydantic", "pydantic-core", "annotated-types", "typing-extensions", "typing-inspection", "pytest-timeout")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")
MOST_BYTES = 64 * 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--corpus", type=Path, help="text to train the flagship on: .txt, .jsonl, .parquet, or .xz of them"
    )
    parser.add_argument("--python", default="3.12", help="the other machine's Python; default 3.12")
    parser.add_argument("--also", nargs="*", default=[], help="more packages that it lacks")
    options = parser.parse_args()
    fetch_wheels(options.python, [*PACKAGES, *options.also])
    if options.corpus:
        pack_text(options.corpus)
    tree = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in tree.split("\0") if name] + [f for f in LUGGAGE.rglob("*") if f.is_file()]
    total = sum(f.stat().st_size for f in files if f.is_file())
    print(f"{LUGGAGE}: with the work tree {total / 2**20:.1f} MiB" + (", more than 64" if total > MOST_BYTES else ""))


def fetch_wheels(python: str, packages: list[str]) -> None:
    """Download the pinned versions of `packages` for another Python on Linux, nothing that they need besides."""
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    folder = LUGGAGE / "wheels"
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, "--dest", str(folder)]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    subprocess.run([*command, *(f"{name}=={pins[name]}" if name in pins else name for name in packages)], check=True)


def pack_text(corpus: Path) -> None:
    """Copy the corpus and learn its tokenizer."""
    for name in ("text", "tokenizer"):
        shutil.rmtree(LUGGAGE / name, ignore_errors=True)
    (LUGGAGE / "text").mkdir(parents=True)
    copy = Path(shutil.copy(corpus, LUGGAGE / "text"))
    copy.chmod(0o644)
    command = [sys.executable, "-m", "mini_llm", "tokenizer", "train", str(copy), "--out", str(LUGGAGE / "tokenizer")]
    subprocess.run([*command, "--vocab-size", "32000"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
