"""The launch files of docs/launch start what torchrun and `mini-llm train` understand, and end when they should."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from mini_llm.config import load_config, shipped_config
from mini_llm.train.config import TrainConfig
from mini_llm.train.parallel.spread import check_spread

LAUNCH = Path(__file__).resolve().parents[2] / "docs" / "launch"
SBATCH = LAUNCH / "train.sbatch"
STUBS = {  # what a cluster has: srun leaves its words, ends with $RC, and may have saved a checkpoint
    "srun": 'printf "%s\\n" "$@" > words.txt; if [ -n "$SAVES" ]; then ln -sfn "$SAVES" run/latest; fi; exit "$RC"',
    "scontrol": 'if [ "$1" = show ]; then echo node1; echo node2; else echo "$@" > requeued.txt; fi',
}


def check_words(words: list[str]) -> None:
    """Let torchrun parse its options, and the project the settings of `train` behind them."""
    parsed = get_args_parser().parse_args(words)
    assert (parsed.module, parsed.training_script) == (True, "mini_llm")
    verb, option, path, *settings = parsed.training_script_args
    assert (verb, option) == ("train", "--config")
    config = load_config(TrainConfig, shipped_config(Path(path).name), settings)
    assert config.resume
    machines, gpus = int(parsed.nnodes), int(parsed.nproc_per_node)
    check_spread(config, machines * gpus, gpus)
    assert parsed.rdzv_backend == "c10d"
    assert parsed.rdzv_endpoint.endswith(":29500")
    assert parsed.shutdown_timeout < 300  # the schedulers' patience


def submit(folder: Path, *, rc: int, saves: str = "") -> subprocess.CompletedProcess[str]:
    """Run the batch script where a cluster's commands are stubs."""
    (folder / "bin").mkdir()
    (folder / "run").mkdir()
    (folder / "run" / "latest").symlink_to("step-10")
    for name, text in STUBS.items():
        stub = folder / "bin" / name
        stub.write_text(f"#!/bin/bash\n{text}\n")
        stub.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    env = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **slurm, "RC": str(rc), "SAVES": saves}
    words = ["bash", str(SBATCH), "configs/8b.yaml", "run", "parallel.shard=full"]
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_slurm_gets_options_that_it_knows() -> None:
    assert subprocess.run(["bash", "-n", str(SBATCH)], check=False, timeout=60).returncode == 0
    lines = SBATCH.read_text(encoding="utf-8").splitlines()
    directives = [line for line in lines if line.startswith("#SBATCH")]
    known = "job-name nodes ntasks-per-node gpus-per-node cpus-per-task exclusive time signal requeue open-mode output"
    assert [re.fullmatch(r"#SBATCH --([a-z-]+)(=\S+)?", line)[1] for line in directives] == known.split()
    first_command = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(lines.index(line) < first_command for line in directives)  # sbatch reads no further


@pytest.mark.parametrize(
    ("rc", "saves", "ends", "again"), [(0, "", 0, False), (1, "step-20", 0, True), (1, "", 1, False)], ids=str
)
def test_a_job_goes_on_as_long_as_it_gets_further(rc, saves, ends, again, tmp_path) -> None:
    result = submit(tmp_path, rc=rc, saves=saves)
    assert result.returncode == ends, result.stderr
    assert (tmp_path / "requeued.txt").exists() == again
    words = (tmp_path / "words.txt").read_text().splitlines()
    check_words(words[words.index("torch.distributed.run") + 1 :])
    assert "--rdzv-endpoint=node1:29500" in words


def test_kubernetes_gets_a_job_whose_pods_find_each_other() -> None:
    service, job = yaml.safe_load_all((LAUNCH / "train.yaml").read_text(encoding="utf-8"))
    name, spec = service["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    assert (service["kind"], job["kind"], spec["completionMode"]) == ("Service", "Job", "Indexed")
    assert name == job["metadata"]["name"] == pod["subdomain"] == service["spec"]["selector"]["job-name"]
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert spec["completions"] == spec["parallelism"] == int(env["NODES"])
    script = container["args"][0].replace("exec python", "printf '%s\\n'")
    for index in ("0", "1"):
        own = {**env, "PATH": os.environ["PATH"], "JOB_COMPLETION_INDEX": index}
        told = subprocess.run(
            ["bash", "-c", script], env=own, capture_output=True, text=True, timeout=60, check=True
        ).stdout.splitlines()
        check_words(told[told.index("torch.distributed.run") + 1 :])
        assert f"--rdzv-conf=is_host={1 - int(index)}" in told
        assert f"--rdzv-endpoint={name}-0.{name}:29500" in told
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
