"""What a monitoring system asks: how many requests, how fast, how full. In Prometheus' text format, without texts."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from mini_llm.serve.bridge import Text

# From a step of a small model on a GPU to one that reads a long prompt on a few cores.
STEP_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 600)
LAG_INTERVAL = 0.5  # seconds between two looks at the loop's lag


class Metrics:
    """The numbers of one server; their registry is its own, so that two servers in a process do not collide."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, what: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"mini_llm_{name}", what, labels, registry=registry)

        def seconds(name: str, what: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(f"mini_llm_{name}_seconds", what, registry=registry, buckets=buckets)

        self.requests = counter("requests", "Requests answered.", ("endpoint", "status"))
        self.running = Gauge("mini_llm_requests_running", "Texts with a slot.", registry=registry)
        self.waiting = Gauge("mini_llm_requests_waiting", "Texts in the queue.", registry=registry)
        self.slots = Gauge("mini_llm_slots_used", "Slots of the cache that compute.", registry=registry)
        self.first_token = seconds("time_to_first_token", "From the request to its first token.")
        self.inter_token = seconds("inter_token", "Between two tokens of a text.")
        self.request_seconds = seconds("request", "From the request to the end of its answer.")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.")
        self.cached_tokens = counter("prompt_tokens_cached", "Tokens of prompts that need not be read.")
        self.generated_tokens = counter("generated_tokens", "Tokens written.")
        self.cancelled_texts = counter("cancelled", "Texts that ended early.", ("why",))
        self.step_seconds = seconds("step", "A step of the engine, for all texts that run.", STEP_SECONDS)
        self.loop_lag = seconds("loop_lag", "How late the event loop is.")

    def saw_tokens(self, text: Text, n: int) -> None:
        """Note `n` new tokens of a text."""
        now = time.monotonic()
        self.generated_tokens.inc(n)
        if text.first_at is None:
            text.first_at = now
            self.first_token.observe(now - text.began)
            self.prompt_tokens.inc(len(text.request.prompt_ids))
            self.cached_tokens.inc(text.handle.n_reused)
        else:
            self.inter_token.observe((now - text._taken) / n)

    def cancelled(self, why: str) -> None:
        """Note a text that ended early: by the `client`, because it was `unread`, or by the `drain`."""
        self.cancelled_texts.labels(why).inc()

    def page(self, running: int, waiting: int) -> bytes:
        """Return all numbers as Prometheus reads them."""
        self.running.set(running)
        self.slots.set(running)
        self.waiting.set(waiting)
        return generate_latest(self.registry)

    async def watch_loop(self) -> None:
        """Measure for ever how late the loop wakes us."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(LAG_INTERVAL)
            self.loop_lag.observe(max(0.0, time.monotonic() - before - LAG_INTERVAL))
