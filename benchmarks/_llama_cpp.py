"""llama.cpp as a contender, through the C interface that llama-cpp-python binds. Run by the Python that has it.

With ids to `check`, it only tells the likeliest token after each of them.
"""

from __future__ import annotations

import json
import sys
import time

import llama_cpp as L


def main() -> None:
    settings = json.loads(sys.argv[1])
    L.llama_log_set(quiet, None)
    L.llama_backend_init()
    model = L.llama_model_load_from_file(settings["gguf"].encode(), L.llama_model_default_params())
    sampler = L.llama_sampler_init_greedy()

    def sample() -> dict[str, float]:
        return {f"{key}_{b}": value for b in settings["batches"] for key, value in one(b).items()}

    def one(n: int) -> dict[str, float]:
        """Read n copies of the prompt and write on from each; times as in decode.py."""
        n_threads, prompt, n_new = settings["threads"], settings["prompt"], settings["new"]
        params = L.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = n * 256, 2048, n
        params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = n_threads
        context = L.llama_init_from_model(model, params)
        batch = L.llama_batch_init(max(n, n * len(prompt)), 0, 1)
        started = time.perf_counter()
        tokens = feed(context, batch, [(t, p, s) for s in range(n) for p, t in enumerate(prompt)], len(prompt))
        first = time.perf_counter() - started
        for step in range(n_new - 1):
            tokens = feed(context, batch, [(t, len(prompt) + step, s) for s, t in enumerate(tokens)], 1)
        total = time.perf_counter() - started
        L.llama_batch_free(batch)
        L.llama_free(context)
        return {"first": first, "token": (total - first) / (n_new - 1)}

    def feed(context: object, batch: object, rows: list[tuple[int, int, int]], group: int) -> list[int]:
        """Decode rows (token, position, sequence); return the likeliest token after the last row of each group."""
        batch.n_tokens = len(rows)
        for i, (token, position, sequence) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = (i + 1) % group == 0
        assert L.llama_decode(context, batch) == 0
        return [L.llama_sampler_sample(sampler, context, i) for i in range(len(rows)) if (i + 1) % group == 0]

    if ids := settings.get("check"):
        context = L.llama_init_from_model(model, L.llama_context_default_params())
        rows = [(token, position, 0) for position, token in enumerate(ids)]
        print(json.dumps(feed(context, L.llama_batch_init(len(ids), 0, 1), rows, 1)))
        return
    one(1)
    print("@benchmark " + json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        if line.strip() == "go":
            print("@benchmark " + json.dumps(sample()), flush=True)


@L.llama_log_callback
def quiet(level: int, text: bytes, data: object) -> None:
    pass


if __name__ == "__main__":
    main()
