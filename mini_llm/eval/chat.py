"""`mini-llm eval --chat`: does it answer, stop, keep to what was asked, and has it forgotten what it knew?

Every number comes from a program: no model judges another. Greedy, seeds fixed, so that two models are asked the same.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mini_llm import log
from mini_llm.data.built_in import built_in_corpus, is_built_in
from mini_llm.data.remote import is_address
from mini_llm.data.sources import find_files, read_documents
from mini_llm.data.store_check import sound
from mini_llm.data.token_store import TokenStore
from mini_llm.errors import UsageError, UserError
from mini_llm.eval.chat_items import Item, distinct_2, is_repetitive, items
from mini_llm.eval.language_model import LocalModel
from mini_llm.eval.run import progress
from mini_llm.eval.text_loss import loss_of_store
from mini_llm.inference.generate import Generator
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.pointers import resolve_checkpoint
from mini_llm.tokenizer.chat import Message, encode_chat
from mini_llm.tune.answer_loss import answer_loss_sum
from mini_llm.tune.checks import CHECKS
from mini_llm.tune.conversations import SetBuilder
from mini_llm.tune.encode import shortened
from mini_llm.tune.formats import Conversation, read_conversations
from mini_llm.tune.packing import PackedRows
from mini_llm.tune.sft import AnswerEvaluator
from mini_llm.tune.skills import Material
from mini_llm.tune.skills.addresses import Address, read_addresses

MAX_NEW_TOKENS = 256
MOST_CORPUS_BYTES = 100_000_000  # of a store's sources that are read for words unasked
STORE_ROWS = 256


@dataclass(frozen=True)
class ChatWishes:
    """What the command line asks for."""

    model: str
    conversations: list[str] = field(default_factory=list)  # held out, for the loss of answers
    corpus: list[str] = field(default_factory=list)  # whose words and sentences to ask about
    store: Path | None = None
    base: str | None = None
    name: str = "Mini-LLM"
    n: int = 100
    out: Path | None = None
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class Answered:
    """An item with the model's answer, and whether it ended by itself."""

    item: Item
    answer: str
    stopped: bool

    @property
    def score(self) -> float:
        """What the check says; an answer that did not end is wrong."""
        exercise = self.item.exercise
        return CHECKS[exercise.check](self.answer, exercise.answer) if exercise and self.stopped else 0.0


def evaluate_chat(wishes: ChatWishes) -> tuple[dict[str, Any], list[Answered]]:
    """Return the results, and all answers.

    Raises:
        UserError: the model cannot chat; a file cannot be read.
        UsageError: the model is a server.
    """
    started = time.time()
    if wishes.model.startswith(("http://", "https://")):
        raise UsageError("eval --chat needs the model's folder", "name a run or a checkpoint")
    generator = Generator(wishes.model, device=wishes.device, dtype=wishes.dtype)
    generator.ready_to_chat()
    run = _run_of(generator.folder)
    store = _store(wishes, run)
    material = _material(wishes, store)
    losses: dict[str, Any] = {"answers": _of_answers(generator, wishes, material)}
    losses["forgetting"] = _forgetting(generator, wishes, store, run)
    answers = ask_all(generator, items(material, wishes.n, _addresses(wishes, store)))
    found = {
        **losses,
        **_form(answers),
        "groups": _groups(answers),
        "words": "of the corpus" if material.words else "made up",
        "model": wishes.model,
        "checkpoint": generator.folder.name,
        "seconds": round(time.time() - started, 1),
        "date": started,
    }
    return found, answers


def folder_of(wishes: ChatWishes) -> Path | None:
    """Return where to keep the results: where it was asked for, or in the run's folder; None where there is no run."""
    run = _run_of(resolve_checkpoint(wishes.model))
    return wishes.out or (run / "eval" if run else None)


def ask_all(generator: Generator, asked: Sequence[Item]) -> list[Answered]:
    """Let the model answer all items, many at once, each greedily and in at most 256 tokens.

    What is longer than its context is asked like the rest, so that two models are asked the same: it has no answer.
    """
    greedy, answers, context = SamplingParams(temperature=0), [], generator.model.config.max_seq_len
    texts = [
        generator.continue_ids(ids, sampling=greedy, max_new_tokens=MAX_NEW_TOKENS) if len(ids) < context else None
        for ids in (encode_chat(generator.tokenizer, item.messages) for item in asked)
    ]
    if too_long := texts.count(None):
        log.warn(f"{too_long:,} of {len(asked):,} questions do not fit into the model's context of {context:,} tokens")
    with progress("answering", len(asked)) as more:
        for item, text in zip(asked, texts, strict=True):
            answer = "".join(text or ())
            answers.append(Answered(item, answer, text is not None and text.finish_reason == "stop"))
            more(1)
    return answers


def _form(answers: Sequence[Answered]) -> dict[str, Any]:
    """Return how answers end and repeat: of all, and of the open questions alone."""
    found = {}
    for name, chosen in (("all", answers), ("prompts", [a for a in answers if a.item.group == "prompts"])):
        texts = [a.answer for a in chosen]
        found[name] = {
            "n": len(chosen),
            "stop_rate": _mean([float(a.stopped) for a in chosen]),
            "repetition": _mean([float(is_repetitive(text)) for text in texts]),
            "empty": _mean([float(not text.strip()) for text in texts]),
            "distinct_2": distinct_2(texts),
            "words": _mean([float(len(text.split())) for text in texts]),
        }
    return {"form": found}


def _groups(answers: Sequence[Answered]) -> dict[str, Any]:
    """Return the share of right answers of each group, and within IFEval-lite of each form."""
    found: dict[str, Any] = {}
    for group in dict.fromkeys(a.item.group for a in answers if a.item.exercise):
        chosen = [a for a in answers if a.item.group == group]
        found[group] = {"n": len(chosen), "right": _mean([a.score for a in chosen])}
        if group == "forms of IFEval-lite":
            forms = dict.fromkeys(a.item.exercise.check for a in chosen if a.item.exercise)
            found[group]["forms"] = {
                form: _mean([a.score for a in chosen if a.item.exercise and a.item.exercise.check == form])
                for form in forms
            }
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))


# --- losses ----------------------------------------------------------------------------------------------------------


def _of_answers(generator: Generator, wishes: ChatWishes, material: Material) -> dict[str, Any]:
    """Return the loss of right answers: of the conversations given, or of skills with new arguments."""
    builder = SetBuilder()
    config = generator.model.config
    left_out = 0
    for conversation in _conversations(wishes, material):
        fitting = shortened(generator.tokenizer, conversation, config.max_seq_len + 1)
        if fitting is None:
            left_out += 1
            continue
        builder.add(conversation, *fitting[:2])
    rows = PackedRows(builder.build(), block_size=config.max_seq_len, pad_id=generator.tokenizer.pad_id or 0, seed=0)
    if not rows.n_rows:
        what = f"conversation in {', '.join(wishes.conversations)}" if wishes.conversations else "question"
        raise UserError(
            f"no {what} fits into the model's context of {config.max_seq_len} tokens",
            "evaluate a model that was trained with a larger model.max_seq_len",
        )
    evaluator = AnswerEvaluator(rows, batch_size=4, eval_iters=rows.n_rows, text=None)
    dtype = generator.model.lm_head.weight.dtype
    loss = evaluator.run(lambda batch: answer_loss_sum(generator.model, batch, dtype), generator.device)
    return {
        "of": ", ".join(wishes.conversations) or "skills with new arguments",
        "n": rows.conversations.n,
        "left_out": left_out,
        "loss": loss.loss,
        "bits_per_byte": loss.bits_per_byte,
    }


def _conversations(wishes: ChatWishes, material: Material) -> list[Conversation]:
    if wishes.conversations:
        return [c for path in find_files(wishes.conversations) for c in read_conversations(path)]
    found = []
    for item in items(material, wishes.n):
        if item.exercise and item.group.endswith("new arguments"):
            messages = [*item.messages, Message("assistant", item.exercise.answer)]
            found.append(Conversation(messages, [*[False] * len(item.messages), True], item.group))
    return found


def _forgetting(
    generator: Generator, wishes: ChatWishes, store: TokenStore | None, run: Path | None
) -> dict[str, Any] | None:
    """Return bits per byte of held-out text before and after tuning, where base and text are known."""
    base = wishes.base or _base(run)
    if store is None or "val" not in store.manifest.splits or base is None:
        return None
    now = loss_of_store(LocalModel(generator.model, generator.tokenizer), store, STORE_ROWS)
    try:
        before = loss_of_store(LocalModel.load(base, device=wishes.device, dtype=wishes.dtype), store, STORE_ROWS)
    except UserError as problem:
        if wishes.base:
            raise
        log.warn(f"the base {base} cannot be read, so what was forgotten is not known: {problem.message}")
        return None
    change = now["bits_per_byte"] / before["bits_per_byte"] - 1
    return {"base": before["bits_per_byte"], "now": now["bits_per_byte"], "change": change, "text": now["text"]}


# --- what is known of the run ----------------------------------------------------------------------------------------


def _run_of(folder: Path) -> Path | None:
    run = folder.resolve().parent.parent
    return run if (run / "config.yaml").is_file() else None


def _setting(run: Path | None, key: str) -> str | None:
    """Return a setting of the run's record that is a text; None where there is none. Of a mixture: its first store."""
    if run is None:
        return None
    with suppress(OSError, yaml.YAMLError, ValueError, LookupError, TypeError, RecursionError):
        values = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        value = values.get(key) if isinstance(values, dict) else None
        value = value[0]["path"] if key == "data_dir" and isinstance(value, list) else value
        return value if isinstance(value, str) and value else None
    return None


def _base(run: Path | None) -> str | None:
    return _setting(run, "base")


def _store(wishes: ChatWishes, run: Path | None) -> TokenStore | None:
    """Return the store that is named, or that of the run, if it is still there."""
    if wishes.store:
        return sound(TokenStore.open(wishes.store))
    if folder := _setting(run, "data_dir"):
        try:
            store = TokenStore.open(folder)
        except UserError:
            return None
        try:
            return sound(store)
        except UserError as problem:
            log.warn(f"the run's text is left out: {problem.message}")
    return None


def _material(wishes: ChatWishes, store: TokenStore | None) -> Material:
    """Return the words to ask about: of the corpus named, of the store's own sources, or made up."""
    if wishes.corpus:
        return Material.of(read_documents(wishes.corpus, description="looking for words"), wishes.name)
    sources = [Path(source.path) for source in store.manifest.sources] if store else []
    here = sources and all(path.is_file() for path in sources)
    if here and sum(path.stat().st_size for path in sources) <= MOST_CORPUS_BYTES:
        return Material.of(read_documents(sources), wishes.name)
    log.note("the exercises' words are made up: name a text with --text to take its words")
    return Material(wishes.name)


def _addresses(wishes: ChatWishes, store: TokenStore | None) -> list[Address]:
    """Return the speeches that `make chat` teaches by heart, where the text is theirs; else none."""
    if wishes.corpus:
        here = not any(map(is_address, wishes.corpus))
        files = [(str(path), path.stat().st_size) for path in find_files(wishes.corpus)] if here else []
    else:
        files = [(source.path, source.bytes) for source in store.manifest.sources] if store else []
    return read_addresses(built_in_corpus()) if is_built_in(files) else []
