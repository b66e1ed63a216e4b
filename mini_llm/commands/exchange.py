"""From and to other programs: `export`, `push`, `pull`, `import-seed`."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mini_llm import log
from mini_llm.commands.arguments import RunArgument
from mini_llm.errors import UsageError


class Target(StrEnum):
    """What a model folder can become."""

    gguf = "gguf"
    ollama = "ollama"
    hf = "hf"


def export(
    model: RunArgument,
    to: Annotated[
        Target | None,
        typer.Option(help="gguf: for llama.cpp; ollama: that and a Modelfile; hf: a Hugging Face folder."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="An adapter (LoRA) becomes a plain folder; the same as --to hf.")
    ] = False,
    kind: Annotated[
        str | None,
        typer.Option("--type", help="Of a GGUF file's weights: f32, f16, bf16, q8_0 or q4_0. [default: f16]"),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of a folder's weights: float32, bfloat16 or float16; default: as they are.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File or folder to write. [default: the model's name, here]")] = None,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="ollama: prompts are conversations; default: if there are markers."),
    ] = None,
    whole: Annotated[
        bool,
        typer.Option("--consolidate", help="Make one Hugging Face folder of a checkpoint that many processes wrote."),
    ] = False,
) -> None:
    """Write a model for other programs: a GGUF file for llama.cpp, an Ollama model, a folder in fewer bits.

    An adapter is written as the model that it makes of its base.
    """
    from mini_llm.checkpoint import read_model_config
    from mini_llm.export.gguf_file import export_gguf, rows_for_k_quants
    from mini_llm.export.hf_folder import export_hf
    from mini_llm.export.ollama import export_ollama
    from mini_llm.pointers import resolve_checkpoint

    if to is None and not (merge or whole):
        raise UsageError("export to what?", "--to gguf, ollama or hf; --merge for an adapter's model as a plain folder")
    _check_options(to or Target.hf, kind, dtype, chat)
    folder, name = resolve_checkpoint(model), model_name(model)
    if whole:
        from mini_llm.export.consolidate import consolidate

        if to not in (None, Target.hf):
            raise UsageError(f"--consolidate makes a Hugging Face folder, not {to}", f"export that one --to {to} then")
        out = out or Path(f"{name}-hf")
        log.info(f"{out}: {str(consolidate(folder, out, dtype)).removeprefix('torch.')}")
        return
    to = to or Target.hf
    if to == Target.hf:
        out = out or Path(f"{name}-hf")
        log.info(f"{out}: {str(export_hf(folder, out, dtype)).removeprefix('torch.')}")
        return
    kind = kind or "f16"
    if to == Target.ollama:
        out = out or Path(f"{name}-ollama")
        export_ollama(folder, out, kind, name=name, chat=chat)
        log.info(f"next: ollama create {name} -f {out / 'Modelfile'} && ollama run {name}")
        return
    out = out or Path(f"{name}-{kind}.gguf")
    export_gguf(folder, out, kind, name=name)
    log.info(f"{out}: {out.stat().st_size / 1e6:,.1f} MB, {kind}")
    log.info(f'next: llama-cli -m {out} -p "Once upon a time"')
    if not kind.startswith("q"):
        log.note(f"smaller: llama-quantize {out} {name}-q4_k_m.gguf Q4_K_M")
        if warning := rows_for_k_quants(read_model_config(folder)):
            log.note(warning)


def _check_options(to: Target, kind: str | None, dtype: str | None, chat: bool | None) -> None:
    """Raise UsageError where an option would be passed over in silence."""
    if kind is not None and to == Target.hf:
        raise UsageError("--type is of a GGUF file", "a folder's weights: --to hf --dtype bfloat16")
    if dtype is not None and to != Target.hf:
        raise UsageError("--dtype is of a folder's weights", f"a GGUF file's: --to {to} --type bf16")
    if chat is not None and to != Target.ollama:
        raise UsageError("--chat and --no-chat are of Ollama's Modelfile", "--to ollama")


def push(
    model: RunArgument,
    name: Annotated[str, typer.Argument(metavar="USER/NAME", help="What it shall be called on the hub.")],
    private: Annotated[bool, typer.Option("--private/--public", help="Who may see it.")] = True,
    license: Annotated[str | None, typer.Option(help="For the card, for example mit or cc-by-4.0.")] = None,
    with_gguf: Annotated[
        bool, typer.Option("--with-gguf", help="Send a GGUF file for llama.cpp too; --type says which.")
    ] = False,
    kind: Annotated[str, typer.Option("--type", help="Of the GGUF file: f32, f16, bf16, q8_0 or q4_0.")] = "q8_0",
    with_logs: Annotated[bool, typer.Option("--with-logs", help="Send the run's settings and numbers too.")] = False,
) -> None:
    """Send a model to the Hugging Face hub, with a card made from its run and without the optimizer."""
    from mini_llm.export.hub import push as run

    log.info(
        f"sent: {run(model, name, private=private, license=license, gguf=kind if with_gguf else None, logs=with_logs)}"
    )
    log.info(f'next: mini-llm generate hf://{name} --prompt "Once upon a time"')


def pull(
    name: Annotated[str, typer.Argument(metavar="USER/NAME[@REV]", help="A model on the hub.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write. [default: NAME, here]")] = None,
) -> None:
    """Fetch a model from the Hugging Face hub into a folder."""
    from mini_llm.export.hub import pull as run

    log.info(f'next: mini-llm generate {run(name, out)} --prompt "Once upon a time"')


def model_name(model: Path) -> str:
    """Return what a model is called by where it is: runs/demo/run/latest is demo, hf://USER/NAME@REV is NAME."""
    parts = [part.partition("@")[0] for part in (Path.cwd() / model).parts]
    usual = re.compile(r"latest|best|run|checkpoints|milestones|step-\d+|/")
    return next((part for part in reversed(parts) if not usual.fullmatch(part)), "model")


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
