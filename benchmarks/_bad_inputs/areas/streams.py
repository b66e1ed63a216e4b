"""Standard streams: closed, full, broken, without end; for every verb, in new interpreters where it matters."""

from __future__ import annotations

import random

from _bad_inputs.case import Case, Outcome
from _bad_inputs.world import Verb, World

ENDS = ("closed", "full", "left")


def cases(world: World, dice: random.Random) -> list[Case]:
    """Return the area's cases."""
    found: list[Case] = []
    for verb in world.verbs.values():
        if verb.seconds > 5:
            continue
        same = world.same(verb.name)
        writes = verb.says or verb.name in ("tokenizer report", "train --dry-run", "eval")
        fresh = dice.random() < 0.3

        def add(name: str, verb: Verb = verb, fresh: bool = fresh, **more: object) -> None:
            for is_fresh in (False, True) if fresh else (False,):
                more.setdefault("stdin", verb.stdin)
                found.append(
                    Case(
                        "streams",
                        f"{verb.name}: {name}",
                        verb.words,
                        world.make(verb),
                        fresh=is_fresh,
                        changes=verb.changes,
                        **more,
                    )
                )  # type: ignore[arg-type]

        for stdin in ("closed", "null", "waiting", "endless"):
            if verb.reads_stdin:
                add(
                    f"stdin {stdin}",
                    stdin=stdin,
                    deadline=20,
                    **({} if stdin not in ("waiting", "endless") else {"kill": (2, 3.0), "codes": (130,)}),
                    accept=stdin != "closed",
                )
            else:
                add(f"stdin {stdin}", stdin=stdin, refuse=False, check=same)
        for stdout in ENDS:
            codes = (141,) if stdout == "left" else ()
            if writes:
                add(f"stdout {stdout}", stdout=stdout, accept=False, codes=codes)
            else:
                add(f"stdout {stdout}", stdout=stdout, refuse=False, check=_files(world, verb), codes=codes)
        for stderr in ENDS:
            codes = (141,) if stderr == "left" else ()
            add(f"stderr {stderr}", stderr=stderr, refuse=False, check=same, codes=codes)
        add("all closed", stdin="closed", stdout="closed", stderr="closed", codes=(141,), check=_files(world, verb))
        add("all full", stdout="full", stderr="full", check=_files(world, verb))
        add("stdout and stderr left", stdout="left", stderr="left", codes=(141,))
        add("on a terminal", stdout="terminal", refuse=False)
        for env in (
            {"TERM": "dumb"},
            {"COLUMNS": "1"},
            {"COLUMNS": "0"},
            {"COLUMNS": "abc"},
            {"COLUMNS": "-5"},
            {"LANG": "C", "LC_ALL": "C"},
            {"PYTHONIOENCODING": "ascii"},
            {"FORCE_COLOR": "1"},
            {"OMP_NUM_THREADS": "abc"},
            {"HOME": "/proc/no-home"},
        ):
            add(f"environment {env}", env=env, refuse=False, check=None, fresh=False)
    wrong = [
        ("nowhere", ["generate", "nowhere", "--prompt", "x"]),
        ("unknown key", ["train", "no_such=1"]),
        ("usage", ["generate"]),
    ]
    for name, words in wrong:  # an error that nobody can hear is still an exit code
        for stderr in (*ENDS, "file"):
            for stdout in ("file", *ENDS):
                found.append(
                    Case(
                        "streams",
                        f"{name}: stdout {stdout}, stderr {stderr}",
                        words,
                        lambda _: None,
                        accept=False,
                        stdout=stdout,
                        stderr=stderr,
                        codes=(141,),
                    )
                )
    for words in (["--help"], ["--version"], ["train", "--help"], []):
        for stdout in ENDS:
            found.append(
                Case(
                    "streams",
                    f"{' '.join(words) or 'nothing'}: stdout {stdout}",
                    words,
                    lambda _: None,
                    stdout=stdout,
                    accept=False,
                    codes=(141,),
                )
            )
    for data in (
        b"\xff\xfe\x00",
        b"\x00" * 1000,
        b"\xc3",
        b"x" * 100_000,
        b"/system\n/reset\n/nope\n/help\n",
        b"\x1b]0;PWN\x1b\\\n",
        b"/" + b"\x1b]0;PWN\x07" + b"\n",
        b"\r\r\n",
        b"<|user|></s>\n",
        b"",
    ):
        for name in ("generate -", "chat"):
            verb = world.verbs[name]
            make = world.make(verb, lambda folder, d=data: (folder / "typed").write_bytes(d))
            for stdout in ("file", "terminal"):
                found.append(
                    Case(
                        "streams",
                        f"{name}: {data[:12]!r} is typed, to a {stdout}",
                        verb.words,
                        make,
                        stdin="typed",
                        stdout=stdout,
                    )
                )
    return found


def _files(world: World, verb: Verb):  # type: ignore[no-untyped-def]
    """The files must be right; of results on a closed stream nothing can be said."""
    same = world.same(verb.name)

    def check(outcome: Outcome) -> str | None:
        return None if verb.says else same(outcome)

    check.verb = verb.name  # type: ignore[attr-defined]
    return check
