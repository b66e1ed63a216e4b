"""A signal raises once, cleaning up is not disturbed, and afterwards everything is as before."""

import ast
import signal
import threading
from pathlib import Path

import pytest

from mini_llm.errors import Interrupted
from mini_llm.signals import handle_signals, raise_on_signal
from mini_llm.train.probe import SignalCame

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "mini_llm").rglob("*.py"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_raises_and_later_ones_let_it_clean_up(number: signal.Signals, code: int) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    cleaned = False
    with pytest.raises(Interrupted) as caught, raise_on_signal("stopped"):  # noqa: PT012
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            cleaned = True
    assert cleaned
    assert caught.value.exit_code == code
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_handler_sees_both_signals() -> None:
    seen: list[int] = []
    with handle_signals(lambda number, _frame: seen.append(number)):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert seen == [signal.SIGINT, signal.SIGTERM]


def test_other_threads_work_without_handlers() -> None:
    done: list[bool] = []

    def work() -> None:
        with raise_on_signal("stopped"):
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_what_a_signal_raises_is_no_exception() -> None:
    assert not issubclass(Interrupted, Exception)
    assert not issubclass(SignalCame, Exception)


# A thread hands on what it caught, and these processes are ended from outside.
KEEPERS = {"mini_llm/threads.py", "mini_llm/tokenizer/trial_worker.py"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_whoever_catches_everything_lets_a_signal_through(path: Path) -> None:
    """`except BaseException`, or `except:`, must have a bare `raise`: else Ctrl-C or SIGTERM ends there."""
    if path.relative_to(ROOT).as_posix() in KEEPERS:
        return
    for handler in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(handler, ast.ExceptHandler) and (
            handler.type is None or (isinstance(handler.type, ast.Name) and handler.type.id == "BaseException")
        ):
            raises = [node for node in ast.walk(handler) if isinstance(node, ast.Raise) and node.exc is None]
            assert raises, f"{path}:{handler.lineno}"
