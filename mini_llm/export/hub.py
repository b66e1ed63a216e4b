"""To the Hugging Face hub and back: a folder with its card goes up in one commit, and comes down whole or not at all.

What training needs to go on (the optimizer's tensors, three times the weights) stays at home. Checksums cover weights,
shape and tokenizer: the card is for people to edit.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from mini_llm import log
from mini_llm.checkpoint import CHECKSUMS, read_model_config, verify_checkpoint, write_checksums
from mini_llm.errors import UsageError
from mini_llm.export.gguf_file import check_kind, export_gguf
from mini_llm.export.hf_folder import export_hf, refuse_full
from mini_llm.export.model_card import model_card, read_record, run_of
from mini_llm.hub import TOKENIZER_FILES, fetch, in_words, parse_name
from mini_llm.pointers import is_adapter, resolve_checkpoint
from mini_llm.temporary import temporary_folder

LOGS = ("config.yaml", "metrics.jsonl", "timing.jsonl", "samples.jsonl")


def push(
    model: Path | str,
    name: str,
    *,
    private: bool = True,
    license: str | None = None,
    gguf: str | None = None,
    logs: bool = False,
) -> str:
    """Upload a run, checkpoint or folder as USER/NAME in one commit and return where it can be seen.

    `gguf` is the type of a GGUF file that goes along, `logs` sends the run's numbers. A commit appears whole or not at
    all; after an interruption the same call goes on, without the large files that had arrived already.

    Raises:
        UsageError: a name without a user, or with a revision; an unknown type.
        UserError: the folder is damaged, or the hub refuses: no token, no right, no network.
    """
    repository, revision = parse_name(name)
    if "/" not in repository or revision:
        raise UsageError(f"'{name}' must be USER/NAME", "for example: mini-llm push runs/demo alice/my-model")
    if gguf:
        check_kind(gguf)
    folder = resolve_checkpoint(model)
    verify_checkpoint(folder)
    with temporary_folder() as staged:
        stage(folder, staged, repository, license=license, gguf=gguf, logs=logs)
        total = sum(path.stat().st_size for path in staged.rglob("*") if path.is_file())
        log.info(f"sending {total / 1e6:,.1f} MB to {repository}")
        with in_words(repository):
            from huggingface_hub import HfApi

            api = HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repository, folder_path=staged, commit_message="Trained with Mini-LLM")
    return str(commit.commit_url)


def stage(
    folder: Path, staged: Path, name: str, *, license: str | None = None, gguf: str | None = None, logs: bool = False
) -> None:
    """Fill `staged` with what goes up: model, tokenizer, checksums of these, then the card and what else is wanted.

    An adapter goes up as the model that it makes of its base: others could not find the base.
    """
    if is_adapter(folder):
        export_hf(folder, staged)
    else:
        wanted = ["config.json", "generation_config.json", *TOKENIZER_FILES, "model.safetensors.index.json"]
        for path in [*(folder / file for file in wanted), *sorted(folder.glob("*.safetensors"))]:
            if path.is_file():
                shutil.copyfile(path, staged / path.name)
        write_checksums(staged)
    gguf_name = f"{name.rpartition('/')[2]}-{gguf}.gguf" if gguf else None
    if gguf and gguf_name:
        export_gguf(folder, staged / gguf_name, gguf, name=name.rpartition("/")[2])
    run = run_of(folder)
    if logs and run:
        (staged / "logs").mkdir()
        for path in (run / file for file in LOGS):
            if path.is_file():
                shutil.copyfile(path, staged / "logs" / path.name)
        for path in (run / "tensorboard").rglob("*tfevents*"):  # the hub shows those below runs/
            (staged / "runs").mkdir(exist_ok=True)
            shutil.copyfile(path, staged / "runs" / path.name)
    elif logs:
        log.warn(f"{folder} belongs to no run: there are no logs to send")
    card = model_card(name, read_model_config(folder), read_record(folder), license=license, gguf=gguf_name)
    (staged / "README.md").write_text(card, encoding="utf-8")


def pull(name: str, out: Path | None = None) -> Path:
    """Download USER/NAME[@REV] to the new folder `out` (default NAME, here) and return it.

    Half a download waits beside `out` and is gone on with; `out` appears when all of it is there and sound.

    Raises:
        UsageError: it is no name.
        UserError: `out` holds something, the hub refuses, or what came is damaged.
    """
    repository, _ = parse_name(name)
    out = out or Path(repository.rpartition("/")[2])
    refuse_full(out)
    partial = out.with_name(f".{out.name}.partial")
    fetch(name, into=partial)
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # huggingface_hub's notes on what has arrived
    read_model_config(partial)
    if (partial / CHECKSUMS).is_file():
        verify_checkpoint(partial)
    else:
        log.note(f"{repository} has no {CHECKSUMS}: its files are as the hub gave them")
    if out.exists():
        out.rmdir()
    partial.rename(out)
    return out
