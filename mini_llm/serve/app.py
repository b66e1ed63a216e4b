"""The server's routes: which address leads to which function, and what goes on while it runs.

uvicorn <- Guard <- FastAPI <- one function a route <- Catalog <- Bridge <- Engine
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.staticfiles import StaticFiles

from mini_llm import __version__
from mini_llm.errors import UserError
from mini_llm.serve import inspecting, learning, tokens
from mini_llm.serve.catalog import Catalog
from mini_llm.serve.guards import Guard
from mini_llm.serve.metrics import Metrics
from mini_llm.serve.problems import ApiError, broken, of_validation
from mini_llm.serve.responses import responses
from mini_llm.serve.settings import ServeSettings
from mini_llm.serve.wire import ChatBody, CompletionBody, DetokenizeBody, InspectBody, ResponseBody, TokenizeBody
from mini_llm.serve.writing import chat_completions, completions

PAGE = Path(__file__).with_name("page")
PROBLEM: dict[str, Any] = {
    "description": "What is wrong, in OpenAI's shape.",
    "content": {
        "application/json": {"schema": {"type": "object", "required": ["error"], "properties": {"error": {
            "type": "object", "required": ["message", "type", "param", "code"],
        }}}}
    },
}  # fmt: skip
PROBLEMS: dict[int | str, dict[str, Any]] = dict.fromkeys(
    (400, 401, 403, 404, 405, 413, 422, 429, 431, 500, 503), PROBLEM
)
STREAMED: dict[int | str, dict[str, Any]] = {
    **PROBLEMS, 200: {"description": "The answer.", "content": {"application/json": {}, "text/event-stream": {}}}
}  # fmt: skip


class Service:
    """One server: its models, numbers and state."""

    def __init__(self, run: Path, settings: ServeSettings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.draining = False
        self.ready = False
        self.catalog = Catalog(run, settings, self.metrics)

    @contextlib.asynccontextmanager
    async def life(self, _app: FastAPI) -> AsyncIterator[None]:
        """Load the first model before anybody is let in, and end all engines when nobody is left."""
        watch = asyncio.create_task(self.metrics.watch_loop())
        look = asyncio.create_task(self._look_at_readers())
        try:
            await self.catalog.get()
            self.ready = True
            yield
        finally:
            for task in (watch, look):
                task.cancel()
            await asyncio.to_thread(self.catalog.close)

    async def _look_at_readers(self) -> None:
        """Let go of texts that nobody reads, also while the engine rests."""
        while True:
            await asyncio.sleep(1.0)
            for served in list(self.catalog.loaded.values()):
                for text in list(served.bridge.texts):
                    text.notice()

    async def drain(self) -> None:
        """Let the texts that run end whole, for so long; tell the others."""
        self.draining = True
        ends = asyncio.get_running_loop().time() + self.settings.drain_seconds
        while self.catalog.n_texts and asyncio.get_running_loop().time() < ends:
            await asyncio.sleep(0.02)
        for served in self.catalog.loaded.values():
            for text in list(served.bridge.texts):
                text.drop("drain")


def make_app(service: Service) -> Guard:
    """Return the whole application."""
    app = FastAPI(
        title="Mini-LLM", version=__version__, lifespan=service.life, docs_url=None, redoc_url=None, responses=PROBLEMS,
        separate_input_output_schemas=False,
    )  # fmt: skip
    _writing_routes(app, service)
    _reading_routes(app, service)
    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")

    @app.exception_handler(ApiError)
    async def refused(_http: HttpRequest, problem: ApiError) -> JSONResponse:
        return problem.response()

    @app.exception_handler(RequestValidationError)
    async def misunderstood(_http: HttpRequest, problem: RequestValidationError) -> JSONResponse:
        return of_validation(problem).response()

    @app.exception_handler(Exception)  # raised again afterwards: the Guard notes where
    async def failed(_http: HttpRequest, _problem: Exception) -> JSONResponse:
        return broken().response()

    @app.exception_handler(HTTPException)
    async def not_here(http: HttpRequest, problem: HTTPException) -> JSONResponse:
        hints = {
            "/v1/embeddings": "; the states of a small language model mislead as embeddings",
            "/v1/messages": "; use /v1/chat/completions",
            "/api/chat": "; use /v1/chat/completions",
            "/api/generate": "; use /v1/completions",
        }
        status, known = problem.status_code, _methods(app, http)
        if status in (404, 405):  # said by the page's files, last of the routes, of all that the others do not take
            status = 405 if known else 404
        headers = {"Allow": ", ".join(known)} if known else {}
        what = {404: "there is nothing at this address", 405: f"this address knows {' and '.join(known)} alone"}
        message = what.get(status, "the request cannot be read") + hints.get(http.url.path, "")
        return ApiError(status, message, code="not_found", headers=headers).response()

    return Guard(app, service.settings, service.metrics, lambda: service.draining)


def _methods(app: FastAPI, http: HttpRequest) -> list[str]:
    """Return what may be asked of an address of the API; of the page's files nothing."""
    found = {
        method
        for route in app.routes[:-1]
        if isinstance(route, Route) and route.matches(http.scope)[0] != Match.NONE
        for method in route.methods or ()
    }
    return sorted(found)


def _writing_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", responses=STREAMED)
    async def _chat(body: ChatBody, http: HttpRequest) -> Response:
        return await chat_completions(service.catalog, body, http)

    @app.post("/v1/completions", responses=STREAMED)
    async def _completions(body: CompletionBody, http: HttpRequest) -> Response:
        return await completions(service.catalog, body, http)

    @app.post("/v1/responses", responses=STREAMED)
    async def _responses(body: ResponseBody, http: HttpRequest) -> Response:
        return await responses(service.catalog, body, http)

    @app.post("/inspect")
    async def _inspect(body: InspectBody) -> JSONResponse:
        return JSONResponse(await inspecting.inspect(service.catalog, body))


def _reading_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def _health() -> JSONResponse:
        status = "draining" if service.draining else "ok" if service.ready else "loading"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    @app.get("/v1/models")
    async def _models() -> JSONResponse:
        entries = []
        with contextlib.suppress(UserError, OSError):  # a run whose checkpoints are all gone
            entries = service.catalog.entries()
        return JSONResponse({"object": "list", "data": [entry.as_dict() for entry in entries]})

    @app.get("/v1/models/{name:path}")
    async def _model(name: str) -> JSONResponse:
        return JSONResponse(service.catalog.find(name).as_dict())

    @app.post("/tokenize")
    async def _tokenize(body: TokenizeBody) -> JSONResponse:
        return JSONResponse(await tokens.tokenize(service.catalog, body))

    @app.post("/detokenize")
    async def _detokenize(body: DetokenizeBody) -> JSONResponse:
        return JSONResponse(await tokens.detokenize(service.catalog, body))

    @app.get("/tokenizer_info")
    async def _tokenizer_info() -> JSONResponse:
        return JSONResponse(await tokens.tokenizer_info(service.catalog))

    @app.get("/metrics")
    async def _metrics() -> Response:
        bridges = [served.bridge for served in service.catalog.loaded.values()]
        running = sum(bridge.generator.engine.n_running for bridge in bridges)
        waiting = sum(bridge.generator.engine.n_waiting for bridge in bridges)
        return Response(service.metrics.page(running, waiting), media_type="text/plain; version=0.0.4")

    @app.get("/run")
    async def _run() -> JSONResponse:
        return JSONResponse(await learning.card(service.catalog))

    @app.get("/run/metrics")
    def _run_metrics(after: int = -1) -> JSONResponse:
        return JSONResponse(learning.metrics(service.catalog, after))

    @app.get("/run/samples")
    def _run_samples() -> JSONResponse:
        return JSONResponse(learning.samples(service.catalog))

    @app.get("/run/checkpoints")
    def _run_checkpoints() -> JSONResponse:
        return JSONResponse(learning.checkpoints(service.catalog))
