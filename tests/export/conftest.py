"""What the seed's two tests share: a tokenizer trained as the seed's was."""

import io
from pathlib import Path

import pytest
from sentencepiece import SentencePieceTrainer


@pytest.fixture(scope="session")
def spm_model(tmp_path_factory: pytest.TempPathFactory, sotu_texts: list[str]) -> Path:
    """Return a SentencePiece model trained with the seed's settings."""
    path = tmp_path_factory.mktemp("spm") / "spm.model"
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([text[:4000] for text in sotu_texts[:20]]),
        model_writer=model,
        vocab_size=600,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        user_defined_symbols=["<user>", "<assistant>", "<system>"],
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return path
