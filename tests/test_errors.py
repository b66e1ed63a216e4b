"""Errors that a user can mend carry what, where and what to run next."""

import pickle
import signal

from mini_llm.errors import Interrupted, UsageError, UserError, did_you_mean


def test_a_user_error_exits_with_1_and_a_usage_error_with_2() -> None:
    assert UserError("no shards").exit_code == 1
    assert UsageError("unknown key").exit_code == 2
    assert issubclass(UsageError, UserError)


def test_the_text_holds_message_and_hint() -> None:
    problem = UserError("no shards in x", "make them with: mini-llm prepare")
    assert str(problem) == "no shards in x\nmake them with: mini-llm prepare"
    assert (problem.message, problem.hint) == ("no shards in x", "make them with: mini-llm prepare")
    assert str(UserError("alone")) == "alone"


def test_a_signal_exits_with_128_and_its_number() -> None:
    assert Interrupted(signal.SIGINT, "saved").exit_code == 130
    assert Interrupted(signal.SIGTERM, "saved").exit_code == 143


def test_errors_travel_between_processes() -> None:
    problem = pickle.loads(pickle.dumps(UserError("what", "next")))
    assert (problem.message, problem.hint) == ("what", "next")


def test_the_nearest_word_is_suggested() -> None:
    known = ["learning_rate", "min_lr", "model.n_layers"]
    assert did_you_mean("learing_rate", known) == ", did you mean 'learning_rate'?"
    assert did_you_mean("zzz", known) == ""
    assert did_you_mean("", known) == ""
    assert did_you_mean("x", []) == ""
