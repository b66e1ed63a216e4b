"""The demo: from raw text to a model that writes, in minutes, in one command.

Each step is one that you could run by hand: tokenizer train, prepare, train, generate.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from mini_llm import log, output
from mini_llm.config import load_config, shipped_config
from mini_llm.data.built_in import built_in_corpus
from mini_llm.data.prepare import prepare
from mini_llm.data.reading import Reading
from mini_llm.data.sources import find_files, read_documents
from mini_llm.data.token_store import TokenStore
from mini_llm.device import pick_device
from mini_llm.errors import UsageError, UserError
from mini_llm.eval.while_training import task_probe
from mini_llm.inference.generate import Generator
from mini_llm.plot.curves import read_runs
from mini_llm.plot.figure import draw, have_matplotlib, picture_paths
from mini_llm.report.baselines import xz_bits_per_byte
from mini_llm.report.report import write_report
from mini_llm.tokenizer.train import WrongVocabSize, train_tokenizer
from mini_llm.train.config import TrainConfig
from mini_llm.train.run.metrics import read_metrics
from mini_llm.train.run.out_of_memory import fit_memory
from mini_llm.train.run.run_folder import read_settings
from mini_llm.train.speed import seconds_per_step
from mini_llm.train.train import train

PROMPTS = ("Fellow citizens, the state of our Union is", "The people of", "Our economy")
EVALUATIONS = 6  # in the course of training; each shows a sample
# A run of fewer tokens is taught otherwise: 0.05 bits per byte at 0.6 million tokens, docs/LOG.md.
FEW_TOKENS = 1_000_000
SOFT = 0.8  # of each target that others may have
HASTE = 1.5  # times the rates; at 3.4 million tokens they lose 0.01
GLANCE = 16  # batches of held-out text, a quarter: seven looks take 20 s of a slow machine instead of 90


def run_demo(*, corpus: list[str] | None, out: Path, minutes: float, seed: int) -> None:
    """Train a tokenizer and a model sized for this machine on `corpus` (or the built-in one), and show what it learned.

    Interrupted, the same command goes on; finished, it shows the result again.

    Raises:
        UserError: the corpus cannot be read, or `out` holds a demo of another corpus.
    """
    run = trained_base(corpus=corpus, out=out, minutes=minutes, seed=seed)
    show_results(run, TokenStore.open(out / "tokens"), _prompts(corpus), read_settings(run).seed)


def trained_base(*, corpus: list[str] | None, out: Path, minutes: float, seed: int) -> Path:
    """Train the demo's model, or finish what was begun in `out`, and return its run; raises as `run_demo`."""
    sources, prompt = corpus or [str(built_in_corpus())], _prompts(corpus)[0]
    run = out / "run"
    store = prepare_tokens(sources, out, seed)
    here = {"data_dir": str(out / "tokens"), "out_dir": str(run)}
    if (run / "config.yaml").exists():
        log.info(f"[3/4] going on with the run in {run}; for other --minutes or another --seed give another --out")
        config = load_config(TrainConfig, run / "config.yaml").model_copy(update=here)
    else:
        config = demo_config(store, minutes, {**here, "seed": seed, "sample_prompt": prompt})
        log.info(f"[3/4] training for about {minutes:g} minutes")

    return train(config, make_probe=task_probe)


def _prompts(corpus: list[str] | None) -> tuple[str, ...]:
    return PROMPTS if corpus is None else ("", "", "")


def prepare_tokens(sources: list[str], out: Path, seed: int) -> TokenStore:
    """Train the tokenizer and tokenize the corpus, or open what an earlier call has made of the same sources."""
    tokens = out / "tokens"
    if (tokens / "manifest.json").exists():
        store = TokenStore.open(tokens)
        if [source.bytes for source in store.manifest.sources] != [f.stat().st_size for f in find_files(sources)]:
            raise UsageError(f"{out} holds a demo of another corpus", "give another folder: --out runs/my-demo")
        return store
    log.info("[1/4] learning the pieces that the text is made of")
    try:
        learn_tokenizer(sources, out, demo_template().model.vocab_size, seed)
    except WrongVocabSize as wrong:  # a small corpus has fewer pieces
        learn_tokenizer(sources, out, wrong.size, seed)
    log.info("[2/4] turning the text into tokens")
    return prepare(sources, out / "tokenizer", tokens, val_fraction=0.05, workers=None)


def learn_tokenizer(sources: list[str], out: Path, vocab_size: int, seed: int) -> None:
    """Train the demo's tokenizer on at most 100 MB of the sources."""
    documents = read_documents(sources, description="reading")
    train_tokenizer(
        documents, out / "tokenizer", vocab_size=vocab_size, model_type="bpe", sample_bytes=10**8, seed=seed
    )


def demo_template() -> TrainConfig:
    """Return the settings for this machine: the 50M model on a GPU, a few million parameters elsewhere."""
    name = "demo-gpu.yaml" if pick_device("auto").type == "cuda" else "demo.yaml"
    return load_config(TrainConfig, shipped_config(name))


def demo_config(store: TokenStore, minutes: float, settings: dict[str, Any]) -> TrainConfig:
    """Return settings that take about `minutes` here: a few steps are timed, and the schedule is cut to fit.

    Raises:
        UserError: too little text for a row.
    """
    template = demo_template()
    for name in ("train", "val"):
        n_tokens = store.split(name).n_tokens
        if n_tokens <= template.block_size:
            problem = f"the corpus is too small: its {name} part has {n_tokens} tokens, a row {template.block_size + 1}"
            raise UserError(problem, "add text: --corpus may be given more than once; a megabyte is a good beginning")
    model = template.model.model_copy(update={"vocab_size": store.manifest.vocab_size})
    log.info("measuring this machine (compiling takes up to a minute) ...")
    log.note("a busy machine trains far slower: other programs that compute should rest meanwhile")

    def measure(config: TrainConfig) -> tuple[TrainConfig, float]:
        return config, seconds_per_step(config)

    fitting, seconds = fit_memory(template.model_copy(update={**settings, "model": model}), measure)
    interval = max(1, round(60 * minutes / seconds / EVALUATIONS))
    steps = EVALUATIONS * interval
    schedule: dict[str, Any] = {
        "max_iters": steps,
        "warmup_iters": min(template.warmup_iters, steps // 4),
        "eval_interval": interval,
        "save_interval": interval,
        "milestones": True,
        "sample_interval": interval,  # for the page's tab Learn
    }
    if steps * fitting.tokens_per_step < FEW_TOKENS:
        log.note(
            "time for few tokens: higher rates, and targets from what followed the same words elsewhere (soft_targets)"
        )
        schedule |= {"soft_targets": SOFT, "eval_iters": GLANCE}
        for rate in ("learning_rate", "muon_learning_rate"):
            schedule[rate] = round(HASTE * getattr(template, rate), 6)
    return fitting.model_copy(update=schedule)


def show_results(run: Path, store: TokenStore, prompts: tuple[str, ...], seed: int) -> None:
    """Print what was learned: the curve, bits per byte beside a compressor's, samples, and what to try next."""
    log.info("[4/4] results")
    held_out = [r for r in read_metrics(run) if "val_loss" in r]
    bits = held_out[-1]["val_bits_per_byte"]
    if have_matplotlib():
        pictures = picture_paths(run / "plots" / "curves")
        draw(read_runs([run]), pictures)
        log.info(f"loss curve: {pictures[0]}")
    else:
        log.info(f"loss curve: mini-llm plot {run}")
    log.info(
        f"held-out text, never trained on: {bits:.3f} bits per byte; xz -9 needs {xz_bits_per_byte(store):.2f} for it"
    )
    generator = Generator(run)
    for i, prompt in enumerate(prompts):
        output.line(f"\n--- sample {i + 1} ---")
        output.line(generator.generate(prompt, max_new_tokens=120, temperature=0.8, top_p=0.95, seed=seed + i))
    for path in write_report(run, samples=False):
        log.info(f"report: {path}")
    command = command_line()
    next_steps = {
        f"generate {run} --prompt 'We must'": "write on from your words",
        "demo --chat": "teach it to answer, and talk with it",
        "demo --corpus my.txt --out runs/mine": "learn your own text",
        "train --config configs/mini-50m.yaml": "the real thing",
    }
    log.info("\nTry next:")
    for words, what in next_steps.items():
        log.info(f"  {command} {words:<50} {what}")
    if read := store.manifest.reading:  # near the end, so that it is seen; also where an earlier call has read it
        log.info(f"\n{Reading(**read.model_dump()).line()}")
    log.info(f"\nSee why each token came, and how it learned, in your browser:\n  {command} serve {run}")


def command_line() -> str:
    """Return how this command is called: by its name, or where `make` put it and no environment is active, its path."""
    if shutil.which("mini-llm"):
        return "mini-llm"
    return os.path.relpath(Path(sys.executable).with_name("mini-llm"))
