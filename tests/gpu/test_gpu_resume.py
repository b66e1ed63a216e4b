"""A run on a GPU that is killed with -9 and goes on ends with the bits of one that was never stopped."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from mini_llm.train.run.metrics import read_metrics
from tests.warm_cli import WarmCli, WarmProcess

Process = subprocess.Popen[bytes] | WarmProcess
WarmOf = Callable[[Mapping[str, str]], WarmCli]

SETTINGS = {
    "batch_size": 8, "gradient_accumulation_steps": 2, "block_size": 64, "max_iters": 60, "warmup_iters": 5,
    "optimizer": "muon", "learning_rate": 1e-2, "min_lr": 0, "eval_interval": 30, "eval_iters": 2, "save_interval": 10,
    "sample_interval": 30, "log_interval": 1, "keep_last": 2, "model.dim": 64, "model.n_layers": 2, "model.n_heads": 2,
    "model.vocab_size": 512, "model.max_seq_len": 64, "model.dropout": 0.1,
}  # fmt: skip


class Run:
    """A run in a process of its own: started anew on a GPU; on a CPU, where no start is at stake, forked."""

    def __init__(self, store: Path, folder: Path, device: str, warm_cli: WarmOf, **more: object) -> None:
        self.folder, self.device, self.warm_cli = folder, device, warm_cli
        values = {**SETTINGS, "data_dir": store, "out_dir": folder, "device": device, **more}
        self.words = ["train", *(f"{key}={value}" for key, value in values.items())]
        self.start()

    def start(self) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        with self.said.open("w") as errors, open(os.devnull, "r+") as nothing:
            if self.device == "cpu":
                streams = nothing.fileno(), nothing.fileno(), errors.fileno()
                self.process: Process = self.warm_cli(env).start(self.words, Path.cwd(), env, *streams)
            else:
                command = [sys.executable, "-m", "mini_llm", *self.words]
                self.process = subprocess.Popen(command, env=env, stdout=nothing, stderr=errors)

    @property
    def said(self) -> Path:
        return self.folder.with_suffix(".txt")

    def wait(self) -> str:
        code = self.process.wait(timeout=120)
        assert code == 0, self.said.read_text()
        return self.said.read_text()

    def kill_after(self, step: int) -> None:
        path, end = self.folder / "metrics.jsonl", time.monotonic() + 100
        while (not path.exists() or path.read_bytes().count(b"\n") <= step) and self.process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.002)
        self.process.kill()
        self.process.wait()


def same_bits(a: Path, b: Path) -> None:
    for name in ("metrics", "samples"):
        assert read_metrics(a, name) == read_metrics(b, name)
    for name in ("model.safetensors", "training_state/optimizer.safetensors", "training_state/state.json"):
        assert (a / "latest" / name).read_bytes() == (b / "latest" / name).read_bytes(), name


def test_killed_and_resumed_the_bits_are_the_same(device: str, store: Path, tmp_path: Path, warm_cli: WarmOf) -> None:
    kinds = {
        "plain": {"compile": "false"},
        "compiled": {"compile": "true"},
        "half": {"compile": "false", "dtype": "float16"},
    }
    if device == "cpu":  # float16 is not for CPUs, and one run shows that the test works
        kinds = {"plain": {"compile": "false", "dtype": "float32", "max_iters": 36, "batch_size": 2, "model.dim": 32}}
    pairs = {
        kind: [Run(store, tmp_path / f"{kind}-{n}", device, warm_cli, async_save="true", **more) for n in range(2)]
        for kind, more in kinds.items()
    }  # all at once: most of a run is its start
    for _, again in pairs.values():
        again.kill_after(24)
    for _, again in pairs.values():
        again.start()
    for kind, runs in pairs.items():
        said = [run.wait() for run in runs]
        assert "resuming" in said[1], kind
        assert not any("torch.compile does not work" in text for text in said), kind
        same_bits(*(run.folder for run in runs))
