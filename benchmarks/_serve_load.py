"""Clients for serve.py: streams in a closed loop over plain sockets, and a soak with clients that leave or do not read.

They look for the few bytes they need and parse no JSON: on a machine of two cores the clients' work is taken from the
server's. What a stream has written is read from its usage at the end.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

TEXT = re.compile(rb'"text": ?"[^"]')
USAGE = re.compile(rb'"completion_tokens": ?(\d+)')
LAST = 400  # bytes of a stream's end that are kept: its usage is there
WORDS = "the people of this union have kept their word and the law is as it was in the days of old".split(" ")  # noqa: SIM905
PATIENCE = 120.0  # seconds for one answer


@dataclass(frozen=True)
class Asked:
    """One question of a load."""

    prompt: str
    n_new: int


@dataclass
class Tally:
    """What the clients of one load have seen."""

    seconds: float = 0.0
    first: list[float] = field(default_factory=list)  # seconds to the first token
    tokens: int = 0
    requests: int = 0
    left: int = 0
    unread: int = 0
    errors: list[str] = field(default_factory=list)


def questions(streams: int, each: int, seed: int) -> list[list[Asked]]:
    """Return what each of the streams asks, one after the other: 12 to 36 words, 64 to 128 tokens to write."""
    rng = random.Random(seed * 1000 + streams)
    return [
        [Asked(" ".join(rng.choices(WORDS, k=rng.randint(12, 36))), rng.randint(64, 128)) for _ in range(each)]
        for _ in range(streams)
    ]


class Stream(asyncio.Protocol):
    """One request on a connection of its own; `ended` has what was wrong, or None."""

    def __init__(self, request: bytes) -> None:
        self.request, self.began, self.first_at = request, time.perf_counter(), 0.0
        self.head, self.tail = b"", b""
        self.ended: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if not self.first_at:
            self.head += data
            if TEXT.search(self.head):
                self.first_at = time.perf_counter()
        self.tail = (self.tail + data)[-LAST:]
        if b'"error"' in data or (not self.first_at and self.head[9:12] not in (b"200", b"")):
            self.end(self.head[:300].decode(errors="replace") + self.tail.decode(errors="replace"))
        elif b"data: [DONE]" in self.tail or self.tail.endswith(b"\r\n0\r\n\r\n"):  # transformers ends without a word
            self.end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(f"the connection ended: {exc}")

    def end(self, problem: str | None) -> None:
        if not self.ended.done():
            self.ended.set_result(problem)


def post(url: str, body: dict[str, Any]) -> bytes:
    """Return the bytes of a POST to /v1/completions."""
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: application/json\r\n"
    return f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


async def open_stream(url: str, body: dict[str, Any], room: int | None = None) -> Stream:
    """Send a request; `room` is how many bytes the system keeps for a client that does not read."""
    address = urlsplit(url)
    connection = socket.socket()
    if room:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, (address.hostname or "", address.port or 80))
    request = post(url, body)
    _, stream = await loop.create_connection(lambda: Stream(request), sock=connection)
    return stream


def body_of(model: str, asked: Asked, *, plain: bool = False, **more: Any) -> dict[str, Any]:
    """Return the request of a stream; `plain`: with OpenAI's oldest fields alone."""
    body = {"model": model, "prompt": asked.prompt, "max_tokens": asked.n_new, "temperature": 0, "stream": True}
    return body if plain else {**body, "ignore_eos": True, "stream_options": {"include_usage": True}, **more}


async def read(stream: Stream, asked: Asked, tally: Tally) -> None:
    """Read one stream to its end."""
    try:
        problem = await asyncio.wait_for(stream.ended, PATIENCE)
    except TimeoutError:
        problem = f"no end after {PATIENCE:.0f} s"
    stream.transport.close()
    found = USAGE.findall(stream.tail)
    n = int(found[-1]) if found else asked.n_new if problem is None else 0
    if problem is not None or n < asked.n_new:
        tally.errors.append(problem or f"{n} tokens instead of {asked.n_new}")
        return
    tally.tokens += n
    tally.requests += 1
    tally.first.append(stream.first_at - stream.began)


def load(url: str, model: str, streams: list[list[Asked]], *, plain: bool = False) -> Tally:
    """Let each stream ask its questions, one after the other, all streams at once."""
    tally = Tally()

    async def client(mine: list[Asked]) -> None:
        for asked in mine:
            await read(await open_stream(url, body_of(model, asked, plain=plain)), asked, tally)

    return _timed(tally, lambda: asyncio.gather(*map(client, streams)))


def _timed(tally: Tally, work: Callable[[], Awaitable[object]]) -> Tally:
    async def run() -> None:
        began = time.perf_counter()
        await work()
        tally.seconds = time.perf_counter() - began

    asyncio.run(run())
    return tally


def soak(url: str, model: str, n: int, seconds: float, look: Callable[[float], None]) -> Tally:
    """Let n streams ask for so long; a fifth of the texts is left at random, one in twenty is not read.

    `look` is called each second with the seconds since the beginning.
    """
    tally, began = Tally(), time.perf_counter()

    async def client(number: int) -> None:
        rng = random.Random(number)
        while time.perf_counter() - began < seconds:
            mood = rng.random()
            asked = Asked(" ".join(rng.choices(WORDS, k=rng.randint(4, 40))), rng.randint(16, 128))
            more = {"temperature": 0.9, "top_p": 0.95, "seed": rng.randrange(2**31)}
            if mood < 0.05:  # long and wide enough to fill what lies between us
                body = body_of(model, Asked(asked.prompt, 1500), logprobs=5)
                stream = await open_stream(url, body, room=4096)
                stream.transport.pause_reading()
                await asyncio.sleep(5 + 5 * rng.random())
                stream.transport.abort()
                tally.unread += 1
                continue
            stream = await open_stream(url, body_of(model, asked, **more))
            if mood < 0.25:
                await asyncio.wait({stream.ended}, timeout=rng.random() * 3)
                stream.transport.abort()
                tally.left += 1
            else:
                await read(stream, asked, tally)

    async def watch() -> None:
        while (now := time.perf_counter() - began) < seconds:
            look(now)
            await asyncio.sleep(1)

    return _timed(tally, lambda: asyncio.gather(watch(), *map(client, range(n))))
