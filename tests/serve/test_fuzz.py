"""Schemathesis: thousands of odd requests made from the server's own description; none may break it."""

import subprocess
import sys
from pathlib import Path

from running_server import RunningServer

EXAMPLES = 15  # for each operation: seconds, not minutes


def test_no_request_breaks_the_server(server: RunningServer, tmp_path: Path) -> None:
    command = [
        sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run",
        f"{server.address}/openapi.json", "--checks", "not_a_server_error,status_code_conformance",
        "--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES), "--seed", "1",
        "--request-timeout", "30", "--exclude-path", "/run", "--no-color",
    ]  # fmt: skip
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
    assert server.client.get("/health").json() == {"status": "ok"}
