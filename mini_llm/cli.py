"""The command line: one verb for each arrow of text -> tokenizer -> tokens -> training -> generation -> chat.

Here the verbs of `commands/` are put in the line's order. They import what they need when they run, so that
`mini-llm --help` starts without torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mini_llm import __version__, log, output
from mini_llm.commands import (
    cleaning,
    evaluation,
    exchange,
    laddering,
    preferring,
    serving,
    text,
    tour,
    training,
    tuning,
    writing,
)
from mini_llm.errors import Interrupted, UserError
from mini_llm.signals import end_at_once_while_importing
from mini_llm.terminal import visible
from mini_llm.user_files import reason, shown


class InOrder(TyperGroup):
    """Lists the verbs in the line's order, where typer puts groups of verbs last."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the verbs' names."""
        return sorted(super().list_commands(ctx), key=LINE.index)


app = typer.Typer(
    cls=InOrder,
    help="Build a language model from scratch: raw text in, a talking model out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: mini-llm demo",
)
tokenizer_app = typer.Typer(help="Train a tokenizer on your text, or compare some.", no_args_is_help=True)

LINE = [
    *("demo", "clean", "tokenizer", "prepare", "plan", "ladder", "train"),
    *("skills", "mix", "sft", "pairs", "dpo", "rl", "plot", "eval", "report"),
    *("generate", "chat", "serve", "export", "push", "pull", "import-seed"),
]
# The verbs of `mini-llm --help` in groups, in the order in which a user comes to them.
START, TEXT, TRAIN = "The whole line", "Text to tokens", "Tokens to a model"
WRITE, EXCHANGE = "A model to text", "Other programs"

app.command(rich_help_panel=START)(tour.demo)
app.command(rich_help_panel=TEXT)(cleaning.clean)
app.add_typer(tokenizer_app, name="tokenizer", rich_help_panel=TEXT)
tokenizer_app.command("train")(text.tokenizer_train)
tokenizer_app.command("report")(text.tokenizer_report)
app.command(rich_help_panel=TEXT)(text.prepare)
app.command(rich_help_panel=TRAIN)(training.plan)
app.command(rich_help_panel=TRAIN)(laddering.ladder)
app.command(rich_help_panel=TRAIN)(training.train)
app.command(rich_help_panel=TRAIN)(tuning.skills)
app.command(rich_help_panel=TRAIN)(tuning.mix)
app.command(rich_help_panel=TRAIN)(tuning.sft)
app.command(rich_help_panel=TRAIN)(preferring.pairs)
app.command(rich_help_panel=TRAIN)(preferring.dpo)
app.command(rich_help_panel=TRAIN)(tuning.rl)
app.command(rich_help_panel=TRAIN)(training.plot)
app.command("eval", rich_help_panel=TRAIN)(evaluation.evaluate)
app.command(rich_help_panel=TRAIN)(evaluation.report)
app.command(rich_help_panel=WRITE)(writing.generate)
app.command(rich_help_panel=WRITE)(writing.chat)
app.command(rich_help_panel=WRITE)(serving.serve)
app.command(rich_help_panel=EXCHANGE)(exchange.export)
app.command(rich_help_panel=EXCHANGE)(exchange.push)
app.command(rich_help_panel=EXCHANGE)(exchange.pull)
app.command(rich_help_panel=EXCHANGE)(exchange.import_seed)


def _show_version(wanted: bool) -> None:
    if wanted:
        output.line(f"mini-llm {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    # For GNU OpenMP, before torch loads it: a thread that waits for another soon gives its core away. By default it
    # spins 300,000 times, and beside another busy program a text came a third as fast (docs/LOG.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def main() -> None:
    """Run the command line, as `mini-llm` and `python -m mini_llm` do."""
    with exit_codes():
        run(sys.argv[1:])


def run(words: Sequence[str]) -> None:
    """Run one command; a wrong word ends with the command's usage and exit code 2.

    typer would print the word as it is, with the terminal's codes in it: it is made visible here first.

    Raises:
        UserError: the folder that this process is in is gone; MKL, which looks for its parts from there, would abort.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the folder that you are in was deleted", "go to another one: cd") from None
    if hasattr(signal, "SIGPIPE") and (not words or {"-h", "--help"} & {*words}):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # rich ends with 1 where the reader of a page has gone
    try:
        code = app(list(words), prog_name="mini-llm", standalone_mode=False)
    except typer.Abort:
        sys.exit(130)
    except typer.TyperException as problem:
        from typer.rich_utils import rich_format_error

        message = visible(problem.format_message())
        problem.format_message = lambda: message  # type: ignore[method-assign]
        with contextlib.suppress(OSError):  # a stderr that is full
            rich_format_error(problem)  # type: ignore[arg-type]
        sys.exit(problem.exit_code)
    if isinstance(code, int) and code:
        sys.exit(code)


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turn what goes wrong in the block into a message and an exit code.

    0 done, 1 it failed, 2 the command was wrong, 130 Ctrl-C, 141 the reader of a pipe has gone, 143 SIGTERM.
    """
    code: Any
    output.open_streams()
    try:
        with end_at_once_while_importing():
            yield
            output.flush()
    except UserError as problem:
        _say(log.error, problem.message, problem.hint)
        code = problem.exit_code
    except Interrupted as stop:
        if stop.message:
            _say(log.info, stop.message)
        code = stop.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # `mini-llm generate ... | head`
        code = 141
    except MemoryError:
        _say(
            log.error, "the memory of this machine is not enough for that", "a smaller file, model or batch needs less"
        )
        code = 1
    except (OSError, ValueError, RuntimeError) as problem:  # what a disk or a name can do where no verb expects it
        is_name = "null byte" in str(problem) or "ymlink loop" in str(problem)
        if not (isinstance(problem, OSError) or is_name):
            raise
        name = getattr(problem, "filename", None)
        _say(
            log.error,
            f"{shown(os.fsdecode(name))}: {reason(problem)}" if isinstance(name, str | bytes) else reason(problem),
        )
        code = 1
    except SystemExit as end:
        code = end.code
    else:
        code = None
    output.settle(quiet=code == 141)
    if code is not None:
        sys.exit(code)


def _say(how: Callable[..., None], *words: str | None) -> None:
    """Say it, if anybody hears."""
    with contextlib.suppress(Interrupted):
        how(*words)
