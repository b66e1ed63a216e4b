"""How many threads compute a step: all where they are alone, one where other work stops them, and all again."""

import random

from mini_llm.inference.backends.pace import Pace


class Machine:
    """A machine of simulated time: how long a step takes with so many threads, alone or beside other work."""

    def __init__(self, n_threads: int = 2) -> None:
        self.now, self.busy, self.rng = 0.0, False, random.Random(0)
        self.pace = Pace(n_threads, lambda: self.now)

    def seconds(self, threads: int) -> float:
        alone = 0.001 * (0.3 + 1.4 / threads) * self.rng.uniform(0.95, 1.1)
        if not self.busy:
            return alone
        if threads == 1:
            return 1.2 * alone
        return alone + (self.rng.uniform(0.005, 0.05) if self.rng.random() < 0.3 else 0)

    def run(self, seconds: float, n_rows: int = 1) -> tuple[float, float]:
        """Compute steps for so long; return steps a second, and the share of them with all threads."""
        began, n, n_all = self.now, 0, 0
        while self.now < began + seconds:
            threads = self.pace.begin(n_rows)
            self.now += self.seconds(threads)
            self.pace.end(n_rows)
            n, n_all = n + 1, n_all + (threads == self.pace.most)
        return n / (self.now - began), n_all / n


def test_alone_all_threads_compute_and_trials_cost_next_to_nothing() -> None:
    machine = Machine()
    machine.run(1)
    _, share = machine.run(30)
    assert share > 0.99


def test_beside_other_work_one_thread_computes_and_all_do_afterwards() -> None:
    machine = Machine()
    alone, _ = machine.run(5)
    machine.busy = True
    machine.run(1)
    busy, share = machine.run(20)
    assert share < 0.05
    assert busy > 0.4 * alone  # all threads together would write an eighth
    machine.busy = False
    machine.run(9)
    again, share = machine.run(5)
    assert share > 0.9
    assert again > 0.95 * alone


def test_busy_from_the_first_step_on() -> None:
    machine = Machine()
    machine.busy = True
    machine.run(1)
    assert machine.run(10)[1] < 0.05


def test_what_steps_of_one_size_have_learned_goes_for_all_until_they_know_better() -> None:
    machine = Machine()
    machine.run(20, n_rows=100)
    machine.busy = True
    machine.run(2)
    for n_rows in (100, 10):  # one that was settled, and a new one
        assert machine.pace.begin(n_rows) == 1
        machine.pace.end(n_rows)
    machine.seconds = lambda threads: 0.03 / threads  # type: ignore[method-assign]  # large steps are not held up
    for _ in range(8):
        assert machine.run(1, n_rows=100)[0] > 30
        for _ in range(16):
            threads = machine.pace.begin(1)
            machine.now += {1: 0.002, 2: 0.05}[threads]
            machine.pace.end(1)
    assert (machine.pace.begin(100), machine.pace.begin(1)) == (2, 1)


def test_numbers_in_between_are_tried_too() -> None:
    machine = Machine(8)
    machine.seconds = lambda threads: {8: 0.004, 4: 0.002, 2: 0.001, 1: 0.0015}[threads]  # type: ignore[method-assign]
    machine.run(2)
    machine.run(10)
    assert machine.pace.begin(1) == 2


def test_one_thread_has_no_choice() -> None:
    machine = Machine(1)
    machine.seconds = lambda threads: machine.rng.uniform(0.001, 0.01)  # type: ignore[method-assign]
    assert machine.run(60)[1] == 1
