"""The seed's tokenizer as files that every library reads alike.

The seed's data went through its tokenizer.json, whose rules differ from its spm.model's: no Unicode normalisation, no
space put first. So tokenizer.json is taken where there is one, and spm.model's pieces get the same rules.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mini_llm import log
from mini_llm.errors import UserError
from mini_llm.temporary import temporary_folder
from mini_llm.tokenizer.convert import SPACE, bpe_model
from mini_llm.tokenizer.tokenizer import Tokenizer

# Not the seed's own tokenizer_config.json: its class LlamaTokenizer makes transformers 5 ignore tokenizer.json's rules.
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "clean_up_tokenization_spaces": False,
}


@contextmanager
def seed_tokenizer(source: Path | None, vocab_size: int) -> Iterator[Tokenizer | None]:
    """Yield the tokenizer of a folder (tokenizer.json, or else spm.model) or of a SentencePiece file; None for None.

    Raises:
        UserError: there is none, it is damaged, or it has more ids than the model.
    """
    if source is None:
        log.warn("no tokenizer: the folder takes and gives ids alone. Import again with --tokenizer DIR to have text")
        yield None
        return
    path = _find(source)
    with temporary_folder() as folder:
        (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
        if path.suffix == ".json":
            shutil.copyfile(path, folder / "tokenizer.json")
        else:
            _convert(path, folder)
        try:
            tokenizer = Tokenizer.load(folder)
        except UserError as problem:
            raise UserError(problem.message.replace(str(folder / "tokenizer.json"), str(path))) from None
        if tokenizer.vocab_size > vocab_size:
            raise UserError(f"{path} has {tokenizer.vocab_size:,} tokens, the model {vocab_size:,}")
        yield tokenizer


def _find(source: Path) -> Path:
    names = ("tokenizer.json", "spm.model", "tokenizer.model")
    folder = source if source.is_dir() else source.parent
    for candidate in (folder / names[0], source, *(folder / name for name in names[1:])):
        if candidate.is_file() and (source.is_dir() or source.is_file()):
            return candidate
    raise UserError(f"no tokenizer at {source}", f"give a folder with {' or '.join(names)}, or such a file")


def _convert(path: Path, folder: Path) -> None:
    import tokenizers
    from sentencepiece import SentencePieceProcessor
    from tokenizers import decoders, normalizers, processors

    try:
        model = path.read_bytes()
        if not model:  # SentencePiece would take it, and answer nonsense
            raise ValueError("it is empty")
        pieces = SentencePieceProcessor(model_proto=model)
        result = tokenizers.Tokenizer(bpe_model(pieces))
    except Exception as problem:  # SentencePiece raises bare RuntimeErrors
        raise UserError(f"{path} is not a SentencePiece model that can be read: {str(problem)[:200]}") from None
    result.normalizer = normalizers.Replace(" ", SPACE)
    result.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    markers = [pieces.id_to_piece(i) for i in range(pieces.unk_id(), len(pieces)) if _is_marker(pieces, i)]
    result.add_special_tokens([tokenizers.AddedToken(name, normalized=False) for name in markers])
    result.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", pieces.bos_id())])
    (folder / "tokenizer.json").write_text(result.to_str(pretty=True), encoding="utf-8")  # raises OSError where full


def _is_marker(pieces: Any, i: int) -> bool:
    name = pieces.id_to_piece(i)
    return pieces.is_control(i) or pieces.is_unknown(i) or name in ("<user>", "<assistant>", "<system>")
