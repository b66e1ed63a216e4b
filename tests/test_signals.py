"""A signal raises once, cleaning up is not disturbed, and afterwards everything is as before."""

import signal
import threading

import pytest

from mini_llm.errors import Interrupted
from mini_llm.signals import handle_signals, raise_on_signal


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
