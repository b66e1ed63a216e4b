"""A server of the page whose answers cost nothing: so many tokens, explained as `mini-llm serve` does, at a set speed.

    python benchmarks/_page_stub.py [TOKENS] [TOKENS A SECOND, 0: as fast as they are read]

It prints its address and serves until its standard input ends.
"""

from __future__ import annotations

import json
import math
import random
import sys
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "mini_llm" / "serve" / "page"
WORDS = ["the", "of", "and", "to", "in", "a", "people", "which", "Congress", "government", "\n\nWe", ",", "."]
VOCABULARY = 32_000
EACH = 8  # tokens a chunk at full speed: a server that is faster than its wake-ups sends several
RUN = {
    "model": "stub", "is_run": False, "learnt_dialogue": False, "parameters": 50_049_408, "context": 8192,
    "vocab_size": VOCABULARY, "layers": 16, "width": 384, "heads": 6, "kv_heads": 6, "dtype": "bfloat16",
    "backend": "compiled", "step": None, "max_iters": None, "tokens_seen": None, "loss": None, "val_loss": None,
    "val_bits_per_byte": None, "training": False, "prompts": [],
}  # fmt: skip


def entry(rng: random.Random, token_id: int, p: float) -> dict[str, Any]:
    """Return a token as a candidate."""
    text = f" {rng.choice(WORDS)}"
    data = list(text.encode())
    return {"token_id": token_id, "token": text, "bytes": data, "logprob": math.log(p), "p_sampled": p, "kept": True,
            "start": rng.random() * (1 - p)}  # fmt: skip


def tokens(n: int) -> list[dict[str, Any]]:
    """Return n explained tokens, each with its ten candidates."""
    rng = random.Random(0)
    found = []
    for _ in range(n):
        top = [entry(rng, rng.randrange(VOCABULARY), rng.random() / (rank + 2)) for rank in range(10)]
        chosen = rng.choice(top)
        more = {"rank": 1 + top.index(chosen), "entropy": 3.1, "dart": chosen["start"] + chosen["p_sampled"] / 2}
        found.append({**chosen, **more, "n_kept": VOCABULARY, "top": top})
    return found


class Stub(SimpleHTTPRequestHandler):
    """The page's files, the card of a run, and streams."""

    protocol_version = "HTTP/1.1"
    stream: list[dict[str, Any]]
    per_second: float

    def __init__(self, *words: Any) -> None:
        super().__init__(*words, directory=str(PAGE))

    def do_GET(self) -> None:
        known = {"/run": RUN, "/run/checkpoints": {"data": []}, "/run/samples": {"data": []}, "/health": {}}
        known["/run/metrics"] = {"training": False, "data": []}
        if (path := self.path.partition("?")[0]) not in known:
            super().do_GET()
            return
        data = json.dumps(known[path]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat = "messages" in body
        n = min(len(self.stream), body.get("max_tokens") or len(self.stream))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        each, began = (1 if self.per_second else EACH), time.perf_counter()
        try:
            for at in range(0, n, each):
                new = self.stream[at : min(n, at + each)]
                text = "".join(one["token"] for one in new)
                choice = {
                    "index": 0,
                    "finish_reason": None,
                    "token_ids": [one["token_id"] for one in new],
                    "inspect": new,
                }
                choice |= {"delta": {"content": text}} if chat else {"text": text}
                if at == 0:
                    choice["prompt_token_ids"] = [1, 2, 3]
                if self.per_second:
                    time.sleep(max(0.0, began + at / self.per_second - time.perf_counter()))
                self._event({"choices": [choice]})
            last = {"index": 0, "finish_reason": "length"} | ({"delta": {}} if chat else {"text": ""})
            self._event({"choices": [last]})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            pass  # the reader has stopped it
        self.close_connection = True

    def _event(self, value: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(value, separators=(',', ':'))}\n\n".encode())

    def log_message(self, *_: Any) -> None: ...


def main() -> None:
    n, speed = [*sys.argv[1:], *["4000", "0"][len(sys.argv) - 1 :]]
    Stub.stream, Stub.per_second = tokens(int(n)), float(speed)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}/", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
