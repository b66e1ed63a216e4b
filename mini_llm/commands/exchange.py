"""From and to other programs: `import-seed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mini_llm import log


def import_seed(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="ckpt.pt of the published seed, or its model.safetensors.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the model to.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="The seed's tokenizer: a folder (Tokenizer/BPE), tokenizer.json or spm.model.")
    ] = None,
) -> None:
    """Turn a checkpoint of the published 50M seed into a model folder, and prove that its logits stay the same."""
    from mini_llm.export.seed import import_seed as run

    run(checkpoint, out, tokenizer)
    if tokenizer:
        log.info(f"next: mini-llm generate {out} --prompt 'Once upon a time'")
