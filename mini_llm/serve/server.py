"""uvicorn, with what it lacks: time-outs for slow requests, a bound on connections, an end in which texts end whole.

SIGTERM or Ctrl-C: new texts get 503, those that run may end for some seconds, the rest is told; then exit 143 or 130.
The port stays open so long: whoever comes is told, and a load balancer sees it at /health. A second signal ends it all.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mini_llm import log, output
from mini_llm.errors import Interrupted, UserError
from mini_llm.serve.app import Service, make_app
from mini_llm.serve.problems import ApiError
from mini_llm.serve.settings import LOOPBACK, ServeSettings

BACKSTOP = 5.0  # seconds after the drain: then connections are cut
TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class PatientProtocol(H11Protocol):
    """HTTP/1.1 for clients that may be slow to read, but not to ask."""

    limits = ServeSettings()
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Take a connection, if there are not too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            transport.write(TOO_MANY)
            transport.close()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Take bytes; the request must be whole before its time is over."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._rest()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            if self._deadline is None:
                self._deadline = self.loop.call_later(self.limits.whole_request_seconds, self._too_slow)
        else:
            self._rest()

    def _rest(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                self.transport.write(TOO_SLOW)
            self.transport.close()


class Server(uvicorn.Server):
    """Drains before it ends."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self.signal: int | None = None
        self._draining: asyncio.Task[None] | None = None
        self._run_loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal has come and the drain is over."""
        self._run_loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Load the model, and listen if that went well and no signal came meanwhile."""
        try:
            await self.service.catalog.get()
        except ApiError:  # `serve` tells why
            self.should_exit = True
            return
        if self.signal is not None:
            await asyncio.to_thread(self.service.catalog.close)
            self.should_exit = True
            return
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; the second time, end."""
        if self.signal is not None or self._run_loop is None:
            self.should_exit = self.force_exit = True
            logging.getLogger("uvicorn.error").disabled = True  # 100 lines of traceback for each text that is cut off
            return
        self.signal = sig
        self._run_loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        await self.service.drain()
        self.should_exit = True

    def capture_signals(self) -> Any:
        """As uvicorn does, without sending the signal once more to ourselves at the end."""
        from mini_llm.signals import handle_signals

        return handle_signals(self.handle_exit)


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UserError: the port is taken, or not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as problem:
        listener.close()
        reason = getattr(problem, "strerror", None) or problem
        raise UserError(f"cannot listen on {host}:{port}: {reason}", "give another port: --port 8001") from None
    listener.setblocking(False)
    return listener


def serve(run: Path, settings: ServeSettings) -> None:
    """Serve until a signal comes.

    Raises:
        UserError: there is no model, or the port is taken.
        Interrupted: a signal came, and the texts that ran have ended.
    """
    from mini_llm.checkpoint import read_model_config
    from mini_llm.pointers import resolve_checkpoint

    read_model_config(resolve_checkpoint(run))  # refused before anything is opened
    listener = open_socket(settings.host, settings.port)
    port = listener.getsockname()[1]
    service = Service(run, settings)
    protocol = type("Protocol", (PatientProtocol,), {"limits": settings})
    config = uvicorn.Config(
        make_app(service), http=protocol, loop=_loop(), ws="none", lifespan="on", log_config=None, access_log=False,
        server_header=False, h11_max_incomplete_event_size=settings.header_bytes, timeout_keep_alive=5,
        timeout_graceful_shutdown=round(BACKSTOP),
    )  # fmt: skip
    server = Server(config, service)
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    shown = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else name

    async def run_server() -> None:
        announce = asyncio.ensure_future(_announce(service, f"http://{shown}:{port}/", settings))
        try:
            await server.serve([listener])
        finally:
            announce.cancel()

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(run_server())
    if server.signal is not None:
        raise Interrupted(server.signal, "stopped")
    if not service.ready:
        raise service.catalog.problem or UserError("the model could not be loaded")


async def _announce(service: Service, address: str, settings: ServeSettings) -> None:
    while not service.ready:
        await asyncio.sleep(0.02)
    catalog = service.catalog
    log.info(f"serving {catalog.name} ({len(catalog.entries())} models by name) at")
    output.line(address)
    log.note(f"the page opens there; clients take {address}v1 as base URL. Ctrl-C ends.")
    if settings.key is None and settings.host not in LOOPBACK:
        log.warn("everybody who reaches this address may use it: no key is set")


def _loop() -> Any:
    if sys.platform == "win32":
        return "asyncio"
    try:
        import uvloop  # noqa: F401 (it halves the cost of a chunk)
    except ImportError:
        return "asyncio"
    return "uvloop"
