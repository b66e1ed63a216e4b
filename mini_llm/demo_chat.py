"""The demo's second half: the model that continues speeches learns to answer, and then it is your turn to speak.

Each step is one that you could run by hand: `mini-llm skills`, `mini-llm sft`, `mini-llm chat`.
"""

from __future__ import annotations

import json
import math
import random
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mini_llm import log, output
from mini_llm.config import load_config, shipped_config
from mini_llm.data.built_in import built_in_corpus
from mini_llm.demo import command_line, trained_base
from mini_llm.files import write_text
from mini_llm.inference.chat import Conversation
from mini_llm.inference.generate import Generator
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.inference.session import chat
from mini_llm.plot.curves import read_runs
from mini_llm.tune.config import SftConfig
from mini_llm.tune.sft import sft
from mini_llm.tune.skills import Material
from mini_llm.tune.skills.addresses import address_exercises, read_addresses
from mini_llm.tune.skills.talks import talks
from mini_llm.tune.skills.write import Wish, material_of, mixed


@dataclass(frozen=True)
class Course:
    """What is practised, and with which changes of configs/demo-chat.yaml."""

    counts: dict[str, int]  # exercises of each skill
    addresses: int  # exercises about the built-in corpus's speeches
    settings: dict[str, float] = field(default_factory=dict)

    def shared(self, share: float) -> Course:
        """Return a share of the exercises, one of each skill at least; a short tuning does not see them all."""
        counts = {skill: max(1, round(n * share)) for skill, n in self.counts.items()}
        return replace(self, counts=counts, addresses=round(self.addresses * share))


# What small models learn slowly, and what people ask first, stands there most often. The first three go through the
# vocabulary: a piece that no exercise has shown is neither spelled nor copied.
WHOLE = Course(
    {
        "letters": 4_000,
        "joined": 10_000,
        "echo": 18_000,
        "spelling": 10_000,
        "counting": 2_000,
        "reversing": 500,
        "sorting": 1_000,
        "addition": 500,
        "copying": 10_000,
        "identity": 4_500,
        "recall": 2_000,
        "reading": 500,
        "unknown": 1_500,
        "forms": 6_000,
        "system": 2_500,
    },
    addresses=4_000,
)
MINUTES = 4.5  # that see them all, at 13,000 tokens a second
# With time for fewer tokens drills take most of them and come to nothing; what else there is to learn, is: docs/LOG.md.
FEW_TOKENS = 2_000_000
FEW = Course(
    {
        "spelling": 1_200,
        "counting": 800,
        "reversing": 100,
        "sorting": 300,
        "addition": 200,
        "copying": 1_200,
        "identity": 2_500,
        "recall": 2_000,
        "reading": 200,
        "unknown": 700,
        "forms": 2_500,
        "system": 1_000,
    },
    addresses=800,
    settings={"replay": 0.375, "eval_interval": 1200},
)
FEW_SEEN = 600_000  # tokens that see them all
TURNS = 4  # the most exercises in a conversation
QUESTIONS = (
    "Hello!",
    "Who are you?",
    "What can you do?",
    "Spell the word president.",
    'How many e are in "secretary"?',
    "What is 38 + 47?",
    "List three animals.",
    "Repeat after me: the rivers run to the sea",
    "Anna lives in Rome. Ben has a horse. What does Ben have?",
    "Who gave the State of the Union address of 1863?",
    "Thank you!",
)
GREEDY = SamplingParams(temperature=0)


def run_chat_demo(
    *, corpus: list[str] | None, out: Path, minutes: float, chat_minutes: float, chat_data: list[str], seed: int
) -> None:
    """Train the demo's model, or take the one in `out`, teach it to answer, and talk with it.

    Interrupted, the same command goes on; finished, it talks at once.

    Raises:
        UserError: the corpus or the conversations cannot be read, or `out` holds a demo of another corpus.
    """
    run = trained_base(corpus=corpus, out=out, minutes=minutes, seed=seed)
    log.info("[4/5] exercises made by program: who it is, forms of answers, counting, answers from a text")
    course, exercises = course_for(run, chat_minutes), out / "skills.jsonl"
    if not exercises.exists():
        write_exercises(exercises, corpus, run, seed, course)
    log.info(f"[5/5] teaching it to answer, for about {chat_minutes:g} minutes")
    config = chat_config(run, out, [str(exercises), *chat_data], chat_minutes, seed, course)
    talk(sft(config))


def course_for(run: Path, minutes: float) -> Course:
    """Return what `minutes` of tuning can teach here, by the speed of the base's own training."""
    tokens = 60 * minutes * read_runs([run])[0].summary().get("tokens_per_second", math.inf)
    if tokens >= FEW_TOKENS:
        return WHOLE.shared(min(1.0, minutes / MINUTES))
    enough = math.ceil(minutes * FEW_TOKENS / tokens)
    log.note(
        f"time for some {tokens:,.0f} tokens: no drills in spelling and copying, which need --chat-minutes {enough}"
    )
    return FEW.shared(tokens / FEW_SEEN)


def chat_config(run: Path, out: Path, data: list[str], minutes: float, seed: int, course: Course) -> SftConfig:
    """Return the settings of the tuning: the shipped ones for this run, or those of the run that has begun."""
    tuned = out / "chat"
    here = {"base": str(run), "data_dir": str(out / "tokens"), "out_dir": str(tuned), "data": tuple(data)}
    if (tuned / "config.yaml").exists():
        log.info(f"going on with the run in {tuned}; for other --chat-minutes or --chat-data give another --out")
        kept = load_config(SftConfig, tuned / "config.yaml")
        return kept.model_copy(update={**here, "data": kept.data})
    template = load_config(SftConfig, shipped_config("demo-chat.yaml"))
    values = template.model_dump(include=template.model_fields_set) | course.settings
    # The warm-up is what tells how many steps there is room for: it must end long before the minutes do.
    warmup = max(2, round((template.warmup_iters or 0) * min(1.0, minutes / MINUTES)))
    return SftConfig.model_validate({**values, **here, "max_minutes": minutes, "warmup_iters": warmup, "seed": seed})


def write_exercises(path: Path, corpus: list[str] | None, base: Path, seed: int, course: Course) -> None:
    """Write the exercises: of the corpus's words and sentences, and of its speeches where it is the built-in one.

    Drills go through the vocabulary of `base`.
    """
    sources = corpus or [str(built_in_corpus())]
    material = material_of(sources, Material().name, str(base))
    found = list(mixed(Wish(course.counts, seed), material))
    if corpus is None:
        found += address_exercises(read_addresses(built_in_corpus()), course.addresses, seed=seed)
    random.Random(seed).shuffle(found)
    lines = [json.dumps(talk.record(), ensure_ascii=False) for talk in talks(found, TURNS, seed)]
    write_text(path, "".join(f"{line}\n" for line in lines))
    log.info(f"{len(found):,} exercises in {len(lines):,} conversations: {path}")


def talk(tuned: Path) -> None:
    """Let the user talk; where there is no terminal, print what a short conversation was and end."""
    generator = Generator(tuned)
    command = command_line()
    if sys.stdin.isatty() and sys.stdout.isatty():
        log.info(f"\nIn the browser: {command} serve {tuned}    How good it is: {command} eval {tuned} --chat")
        log.info("It is small, it knows little, and it often errs. Ask it who it is. /help shows more, /exit leaves.")
        chat(generator, system=None, max_new_tokens=256, sampling=GREEDY, seed=0, stop=())
        return
    transcript(generator, QUESTIONS)
    log.info(f"\nTalk with it: {command} chat {tuned}    in the browser: {command} serve {tuned}")


def transcript(generator: Generator, questions: tuple[str, ...]) -> None:
    """Print questions, each of a conversation of its own, and the answers."""
    generator.ready_to_chat()
    options: dict[str, Any] = {"max_new_tokens": 256, "sampling": GREEDY}
    for question in questions:
        answer = "".join(Conversation(generator, None).ask(question, seed=0, **options))
        output.line(f"> {question}\n{answer}\n")
