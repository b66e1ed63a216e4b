"""What these tests share: a tokenizer trained as the seed's was, and a run of a second."""

import io
from pathlib import Path

import pytest
from sentencepiece import SentencePieceTrainer

from mini_llm.config import load_config
from mini_llm.train.config import TrainConfig
from mini_llm.train.train import train


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


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_store: Path) -> Path:
    """Return a run of 40 steps, with everything in it that stays at home or goes along."""
    out = tmp_path_factory.mktemp("runs") / "mine"
    words = (
        f"data_dir={tiny_store} out_dir={out} batch_size=2 block_size=32 max_iters=40 eval_interval=20 eval_iters=1 "
    )
    words += "save_interval=40 sample_interval=20 device=cpu compile=false log_interval=1 warmup_iters=1 "
    words += "learning_rate=0.01 min_lr=0.001 "
    words += "model.dim=32 model.n_layers=1 model.n_heads=2 model.vocab_size=512 model.max_seq_len=64"
    return train(load_config(TrainConfig, None, words.split()))
