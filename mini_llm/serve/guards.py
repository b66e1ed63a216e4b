"""The gate before every request: who asks, from where, and how much; in the order of the cheapest refusal first.

Pure ASGI: no task and no queue of its own, so that a client's leaving is seen at once. A web page of somebody else can
make a browser ask us, also through a name that it has rebound to our address; hence Host, Origin and Sec-Fetch-Site.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import sys
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mini_llm.serve.metrics import Metrics
from mini_llm.serve.problems import ApiError, broken, report, shutting_down
from mini_llm.serve.settings import ServeSettings
from mini_llm.serve.shapes import new_id
from mini_llm.serve.streams import ClientGone

OPEN_PATHS = ("/health",)
API_PATHS = ("/v1/", "/run", "/tokenize", "/detokenize", "/tokenizer_info", "/metrics", "/inspect", "/openapi.json")
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
REQUEST_ID = re.compile(r"[A-Za-z0-9-]{1,64}")


class Guard:
    """Refuses what may not come in; gives every answer its headers and every request its line in the log."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics, draining: Callable[[], bool]) -> None:
        self.app, self.settings, self.metrics, self.draining = app, settings, metrics, draining
        names = ["localhost", settings.host, *settings.allowed_hosts]
        self.hosts = {name.lower().strip("[]") for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # what GET would say, without the body, which uvicorn leaves out
            scope = {**scope, "method": "GET"}
        http, began = HttpRequest(scope), time.monotonic()
        given = http.headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else new_id("req")
        origin = http.headers.get("origin", "")
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": self._headers(message["headers"], request_id, origin, scope["path"])}
            await send(message)

        try:
            async with asyncio.timeout(self.settings.request_seconds):
                answer, receive = await self._check(http, receive)
                await (answer or self.app)(scope, receive, send_with_headers)
        except TimeoutError:
            if not status:
                late = ApiError(503, "the request took too long", code="timeout")
                await late.response()(scope, receive, send_with_headers)
        except Exception as problem:
            if isinstance(problem, ClientGone):
                status = 499
            else:
                report(problem, request_id)
                if not status:
                    await broken().response()(scope, receive, send_with_headers)
        finally:
            route = getattr(scope.get("route"), "path", "-")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.request_seconds.observe(time.monotonic() - began)
            if route not in ("-", *OPEN_PATHS, "/metrics") and not route.startswith("/run"):
                _log(self.settings, scope, request_id, route, status, time.monotonic() - began)

    async def _check(self, http: HttpRequest, receive: Receive) -> tuple[Response | None, Receive]:
        """Return an answer where the request may not pass, and where to read its body from."""
        try:
            path = http.url.path
            is_api = path.startswith(API_PATHS)
            if sum(len(name) + len(value) for name, value in http.scope["headers"]) > self.settings.header_bytes:
                raise ApiError(431, "the headers are too large", code="headers_too_large")  # h11 looks at parts alone
            self._check_source(http)
            if self._is_preflight(http):
                return Response(status_code=204), receive
            if is_api and self.settings.key is not None:
                self._check_key(http)
            if http.method not in ("GET", "HEAD"):
                if self.draining():
                    raise shutting_down()
                receive = await self._read(http, receive)
            return None, receive
        except ApiError as refusal:
            return refusal.response(), receive

    def _check_key(self, http: HttpRequest) -> None:
        scheme, _, given = http.headers.get("authorization", "").partition(" ")
        right = (self.settings.key or "").encode()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), right):
            raise ApiError(
                401, "the API key is missing or wrong", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
            )

    def _check_source(self, http: HttpRequest) -> None:
        host = _host_name(http.headers.get("host", ""))
        if host is None or not (host in self.hosts or _is_address(host)):
            raise ApiError(403, "this Host is not served here; allow it with --allowed-host", code="host_not_allowed")
        origin = http.headers.get("origin")
        if origin is None:
            cross = http.headers.get("sec-fetch-site") == "cross-site" and http.method not in ("GET", "HEAD")
        else:
            own = urlsplit(origin).netloc.lower() == http.headers["host"].lower()
            cross = not own and origin not in self.settings.cors_origins
        if cross:
            raise ApiError(403, "pages of other origins may not ask; allow one with --cors-origin", code="cross_origin")

    def _is_preflight(self, http: HttpRequest) -> bool:
        asks = http.method == "OPTIONS" and "access-control-request-method" in http.headers
        return asks and http.headers.get("origin") in self.settings.cors_origins

    async def _read(self, http: HttpRequest, receive: Receive) -> Receive:
        """Read the whole body, no longer than allowed; what comes after it is still the client's to say."""
        most, length = self.settings.body_bytes, http.headers.get("content-length", "0")
        too_large = ApiError(413, f"the body is larger than {most:,} bytes", code="body_too_large")
        if length.isdigit() and int(length) > most:
            raise too_large
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > most:
                raise too_large
        told = False

        async def replay() -> Message:
            nonlocal told
            if not told:
                told = True
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        return replay

    def _headers(
        self, found: list[tuple[bytes, bytes]], request_id: str, origin: str, path: str
    ) -> list[tuple[bytes, bytes]]:
        ours = {**HEADERS, "x-request-id": request_id, "cache-control": "no-store"}
        if not path.startswith(API_PATHS):
            ours["cache-control"] = "no-cache"
        if origin in self.settings.cors_origins:
            ours |= {
                "access-control-allow-origin": origin,
                "access-control-allow-headers": "authorization, content-type",
                "access-control-allow-methods": "GET, POST",
                "cross-origin-resource-policy": "cross-origin",
                "vary": "Origin",
            }
        names = {name.lower() for name in ours}
        kept = [(name, value) for name, value in found if name.decode("latin-1").lower() not in names]
        return kept + [(name.encode(), value.encode("latin-1")) for name, value in ours.items()]


def _host_name(header: str) -> str | None:
    """Return the name in a Host header, without its port; None where it is none."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?", header)
    return match[1].strip("[]").lower() if match else None


def _is_address(host: str) -> bool:
    """Tell whether it is an address in figures, which no name server can lead elsewhere."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _log(settings: ServeSettings, scope: Scope, request_id: str, route: str, status: int, seconds: float) -> None:
    texts = scope.get("state", {}).get("texts", [])
    counts = (
        f"{sum(len(t.request.prompt_ids) for t in texts)}+{sum(t.n_tokens for t in texts)} tokens " if texts else ""
    )
    line = f"{request_id} {scope['method']} {route} {status} {counts}{seconds:.3f} s"
    if settings.log_texts:
        for text in texts:
            tokenizer = text._bridge.generator.tokenizer
            said = tokenizer.decode([*text.request.prompt_ids, *text.handle._job.written])
            line += f" {said!r}"
    print("".join(c if c.isprintable() else "?" for c in line), file=sys.stderr, flush=True)
