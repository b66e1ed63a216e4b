"""Pairs made by program: the model answers several times, checks choose the best and the worst answer.

They are on-policy, so that learning from them changes what this model does, not what others do. An answer is a pure
function of (weights, seed, question, number): no other text in the batch, and no stop in between, changes it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mini_llm import __version__, log
from mini_llm.adapter import fingerprint
from mini_llm.errors import UserError
from mini_llm.files import check_replaceable_lines, new_file
from mini_llm.inference.continuation import Continuation
from mini_llm.inference.generate import Generator
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.tokenizer.chat import Message, encode_chat
from mini_llm.tune.asked import Asked
from mini_llm.tune.judge import Judged, best_and_worst, judged
from mini_llm.user_files import behind_link, refuse_special, writing_to

WRITTEN_AT_ONCE = 64  # answers; more would only wait


@dataclass(frozen=True)
class Sampling:
    """How often, how freely and how long the model answers."""

    samples: int = 8
    temperature: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0


def write_pairs(
    model: Path | str, out: Path, asked: Sequence[Asked], how: Sampling, *, device: str, dtype: str, backend: str
) -> int:
    """Write the pairs and return how many there are. Stopped anywhere, the same call goes on behind the last question.

    Raises:
        UserError: the place is taken by another file or process, no question gives a pair, or as `Generator`.
    """
    check_replaceable_lines(out, lambda first: "mini_llm" in str(first.get("made_by")), "file of pairs")
    generator = Generator(model, device=device, dtype=dtype, backend=backend, max_slots=WRITTEN_AT_ONCE)
    generator.ready_to_chat()
    out = behind_link(out)
    partial = Partial(out, described(generator, asked, how, f"{generator.device.type} {dtype} {backend}"))
    with (
        writing_to(out),
        _alone(partial.path, out),
        log.count_progress(f"answers of {model}", len(asked), "questions") as update,
    ):
        lines = partial.read()[: len(asked)]
        if lines:
            log.info(f"{out}: going on behind question {len(lines):,} of {len(asked):,}")
        at_once = max(1, WRITTEN_AT_ONCE // how.samples)
        for first in range(len(lines), len(asked), at_once):
            some = list(enumerate(asked))[first : first + at_once]
            answers = _answers(generator, some, how)
            lines += partial.add(
                [_line(one, mine, how, str(model)) for (_, one), mine in zip(some, answers, strict=True)]
            )
            update(len(lines))
        return _finish(out, partial, lines)


def described(generator: Generator, asked: Sequence[Asked], how: Sampling, kind: str) -> dict[str, Any]:
    """Return all that the pairs depend on."""
    return {"weights": fingerprint(generator.folder), "asked": _hash(asked), "kind": kind, **asdict(how)}


def _answers(generator: Generator, some: Sequence[tuple[int, Asked]], how: Sampling) -> list[list[Judged]]:
    """Return all answers to each of these questions, judged; none to one that leaves no room."""
    sampling = SamplingParams(temperature=how.temperature, top_p=1.0)
    texts: list[list[Continuation]] = []
    for number, one in some:
        ids = encode_chat(generator.tokenizer, one.messages)
        fits = len(ids) < generator.model.config.max_seq_len
        seeds = [_seed(how.seed, number, n) for n in range(how.samples)] if fits else []
        options: dict[str, Any] = {"max_new_tokens": how.max_new_tokens, "sampling": sampling}
        texts.append([generator.continue_ids(ids, seed=seed, **options) for seed in seeds])
    return [
        [
            judged("".join(text), stopped=text.finish_reason == "stop", check=one.check, reference=one.answer)
            for text in answers
        ]
        for (_, one), answers in zip(some, texts, strict=True)
    ]


def _line(one: Asked, answers: list[Judged], how: Sampling, model: str) -> dict[str, Any]:
    """Return a pair with where it is from, or why there is none."""
    found = best_and_worst(answers) if answers else "the question fills the context"
    if isinstance(found, str):
        return {"left_out": found}
    sides = {
        side: [{"role": "assistant", "content": answer.text, **({} if answer.stopped else {"stopped": False})}]
        for side, answer in zip(("chosen", "rejected"), found, strict=True)
    }
    return {
        "prompt": [_turn(message) for message in one.messages],
        **sides,
        "chosen_score": found[0].right,
        "rejected_score": found[1].right if found[1].stopped else 0.0,
        "answer": one.answer,
        "check": one.check,
        "from": one.source,
        "share_right": sum(answer.rank[0] for answer in answers) / len(answers),
        "source": "synthetic",
        "made_by": {"model": model, "mini_llm": __version__, **asdict(how)},
    }


def _turn(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}


def _finish(out: Path, partial: Partial, lines: list[dict[str, Any]]) -> int:
    """Write the pairs, whole or not at all, and say what became of the questions."""
    pairs = [line for line in lines if "left_out" not in line]
    reasons = Counter(line["left_out"] for line in lines if "left_out" in line)
    counts = "".join(f", {n:,} left out: {reason}" for reason, n in reasons.most_common())
    if not pairs:
        raise UserError(f"no pair in {len(lines):,} questions{counts}", "ask what the model gets right now and then")
    with new_file(out) as temporary:
        temporary.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")
    partial.path.unlink(missing_ok=True)
    wrong = sum(pair["share_right"] == 0 for pair in pairs)
    of_wrong = f" ({wrong:,} of two wrong answers, of which one ended or did not repeat)" if wrong else ""
    log.info(f"{out}: {len(pairs):,} pairs{of_wrong} from {len(lines):,} questions{counts}")
    return len(pairs)


class Partial:
    """What is written while answers come: a first line that says of what, then a line a question."""

    def __init__(self, out: Path, of: dict[str, Any]) -> None:
        self.path = out.with_name(f".{out.name}.part")
        self.head = json.dumps(of, sort_keys=True)

    def read(self) -> list[dict[str, Any]]:
        """Return the lines of an earlier call with the same questions, settings and weights; begin a new file else."""
        rows: list[dict[str, Any]] = []
        if self.path.is_file():
            head, *lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
            if head == self.head:
                for line in lines[:-1]:  # behind the last line break stands nothing, or what a kill has cut
                    try:
                        rows.append(_row(line))
                    except (ValueError, RecursionError):  # damaged: from there on it is asked again
                        break
        self.path.write_text("".join(f"{line}\n" for line in [self.head, *map(_json, rows)]), encoding="utf-8")
        return rows

    def add(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Write more lines, and return them."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{_json(row)}\n" for row in rows))
        return rows


def _row(line: str) -> dict[str, Any]:
    row = json.loads(line)
    if not (isinstance(row, dict) and (isinstance(row.get("left_out"), str) or "chosen" in row)):
        raise ValueError
    return row


@contextmanager
def _alone(path: Path, out: Path) -> Iterator[None]:
    """Hold the file at `path` while the block runs; without effect where the system or the disk knows no locks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    refuse_special(path)
    with path.open("a") as file:
        with suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process is making {out}", "wait for it, or give another --out") from None
            except OSError:
                pass
        yield


def _json(row: dict[str, Any]) -> str:
    return json.dumps(row)  # one line, whatever the text holds: all but ASCII is escaped


def _seed(*numbers: int) -> int:
    """Return a seed below 2^63 that is a hash of `numbers`."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big") >> 1


def _hash(asked: Sequence[Asked]) -> str:
    digest = hashlib.sha256()
    for one in asked:
        digest.update(repr((one.messages, one.answer, one.check)).encode("utf-8", "replace"))
    return digest.hexdigest()
