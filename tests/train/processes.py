"""Several processes on this machine, connected by gloo, as torchrun would start them."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_process import CONTEXT, CliProcess

StartRanks = Callable[..., list[CliProcess]]
OnRanks = Callable[..., list[Any]]


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def start_ranks(tmp_path: Path) -> Iterator[StartRanks]:
    """Return `start_ranks(2, "train", *words, before={1: "Python"})`: the command in that many connected processes.

    `before` is what a process executes first; with one process nothing is connected.
    """
    started: list[CliProcess] = []

    def start(size: int, *arguments: object, before: dict[int, str] | None = None) -> list[CliProcess]:
        port, ranks = free_port(), []
        for rank in range(size):
            connect = f"import os; os.environ.update({environment(rank, size, port)!r})\n" if size > 1 else ""
            stderr = tmp_path / f"stderr-{len(started)}.txt"
            ranks.append(CliProcess(*arguments, stderr=stderr, before=connect + (before or {}).get(rank, "")))
            started.append(ranks[-1])
        return ranks

    yield start
    for process in started:
        if process.process.is_alive():
            process.kill()
            process.process.join()


@pytest.fixture
def on_ranks() -> OnRanks:
    """Return `on_ranks(2, function, *arguments)`: what `function` returns in each of so many connected processes."""

    def run(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        results, port = CONTEXT.SimpleQueue(), free_port()
        processes = [
            CONTEXT.Process(target=connected, args=(rank, size, port, results, function, arguments))
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        found = dict(results.get() for _ in processes)
        for process in processes:
            process.join(60)
        failed = [value for value in found.values() if isinstance(value, BaseException)]
        if failed:
            raise failed[0]
        return [found[rank] for rank in range(size)]

    return run


def connected(rank: int, size: int, port: int, results: Any, function: Callable[..., Any], arguments: Any) -> None:
    import os

    os.environ.update(environment(rank, size, port))
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo")
        results.put((rank, function(*arguments)))
        dist.destroy_process_group()
    except BaseException as problem:
        results.put((rank, RuntimeError(f"process {rank}: {type(problem).__name__}: {problem}")))
