"""Pieces: a large file as several small ones, with checksums and the command that joins them again."""

from __future__ import annotations

import hashlib
from pathlib import Path

PIECE_BYTES = 15_500_000  # below the 16 MB that some ways out of a machine allow


def cut(file: Path, folder: Path, piece_bytes: int = PIECE_BYTES) -> list[Path]:
    """Write the pieces of `file` and SHA256SUMS into `folder`; return the pieces in order."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{file.name}.[0-9]*"):
        old.unlink()
    pieces, sums, whole = [], [], hashlib.sha256()
    with file.open("rb") as source:
        while data := source.read(piece_bytes):
            piece = folder / f"{file.name}.{len(pieces):03}"
            piece.write_bytes(data)
            whole.update(data)
            sums.append(f"{hashlib.sha256(data).hexdigest()}  {piece.name}")
            pieces.append(piece)
    sums.append(f"{whole.hexdigest()}  {file.name}")
    (folder / "SHA256SUMS").write_text("\n".join(sums) + "\n", encoding="ascii")
    return pieces


def join_command(name: str) -> str:
    """Return what joins the pieces of the file `name`, checks it and unpacks it, in the folder of the pieces."""
    return f"cat {name}.[0-9]* > {name} && sha256sum -c SHA256SUMS && tar -xf {name}"
