"""What Ollama wants: a GGUF file, and a Modelfile that says how a conversation becomes text and where it ends."""

from __future__ import annotations

from pathlib import Path

from mini_llm.checkpoint import read_model_config
from mini_llm.errors import UserError
from mini_llm.export.gguf_file import check_kind, export_gguf
from mini_llm.export.hf_folder import refuse_full
from mini_llm.files import new_folder
from mini_llm.tokenizer.folder import has_tokenizer
from mini_llm.tokenizer.markers import END_MARKER, ROLE_MARKERS
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.user_files import writing_to

# The rule of markers.py in Go's template language. Ollama puts <s> before it, as the GGUF file says.
CHAT = "{{- range .Messages }}<|{{ .Role }}|>{{ .Content }}<|end|>{{ end }}<|assistant|>"
PLAIN = "{{ .Prompt }}"


def export_ollama(folder: Path, out: Path, kind: str, *, name: str, chat: bool | None = None) -> None:
    """Write `out`/model.gguf and `out`/Modelfile. `chat`: prompts are conversations; None: if there are markers.

    Raises:
        UsageError, UserError: as `export_gguf`; or `out` holds something already.
    """
    check_kind(kind)
    refuse_full(out)
    if not has_tokenizer(folder):
        raise UserError(f"{folder} holds no tokenizer, and Ollama takes text alone")
    text = modelfile(Tokenizer.load(folder), read_model_config(folder).max_seq_len, chat=chat)
    with writing_to(out), new_folder(out) as temporary:
        export_gguf(folder, temporary / "model.gguf", kind, name=name)
        (temporary / "Modelfile").write_text(text, encoding="utf-8")


def modelfile(tokenizer: Tokenizer, n_ctx: int, *, chat: bool | None = None) -> str:
    """Return the Modelfile of a model with this tokenizer and context."""
    has_markers = all(tokenizer.special_id(name) is not None for name in (*ROLE_MARKERS.values(), END_MARKER))
    lines = ["FROM ./model.gguf"]
    if has_markers and chat is not False:
        lines += [f'TEMPLATE """{CHAT}"""', f'PARAMETER stop "{END_MARKER}"']
    elif not chat:
        lines.append(f'TEMPLATE "{PLAIN}"')
    # else: a template of someone else's, which Ollama finds in the GGUF file if it knows it
    return "\n".join([*lines, f"PARAMETER num_ctx {n_ctx}"]) + "\n"
