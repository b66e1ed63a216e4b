"""torchrun starts all processes again when one has died, and they meet again: at once, as often as it takes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_process import last_step

PROC = Path("/proc/self/task")


def workers(torchrun: subprocess.Popen) -> list[int]:
    """Return the pids of torchrun's processes."""
    found = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    return [int(pid) for pid in found if b"mini_llm" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.skipif(not PROC.exists(), reason="finds torchrun's processes in /proc")
def test_one_that_is_killed_costs_a_start_and_no_work(settings, tmp_path) -> None:
    """Torch keeps the addresses of the dead in one store for all starts: without keys of its own a start hangs."""
    run = tmp_path / "run"
    words = settings(run, max_iters=400, eval_interval=400, save_interval=5, async_save=False)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=3"]
    torchrun = subprocess.Popen(
        [*command, "-m", "mini_llm", "train", *words, "parallel.shard=ddp", "gradient_accumulation_steps=2"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    try:
        for goal, victim in ((5, 1), (10, 0)):
            while last_step(run) <= goal:
                assert torchrun.poll() is None
                time.sleep(0.01)
            before = set(workers(torchrun))
            os.kill(sorted(before)[victim], signal.SIGKILL)
            while set(workers(torchrun)) & before:
                time.sleep(0.01)
            saved = max(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))
            assert saved >= goal
        goal = last_step(run) + 5
        while last_step(run) < goal:  # a third life goes on
            assert torchrun.poll() is None
            time.sleep(0.01)
    finally:
        for pid in workers(torchrun):
            os.kill(pid, signal.SIGKILL)
        torchrun.kill()
        torchrun.wait()
