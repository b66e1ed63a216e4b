"""What a client is told when something is wrong: always in OpenAI's shape, never with a path or a trace in it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.responses import JSONResponse

COME_AGAIN = 5  # seconds: the two tries of OpenAI's client outlast the 10 s that texts have to end
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A refusal: an HTTP status, a message, and the field (`param`) that is to blame."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    def body(self) -> dict[str, Any]:
        """Return what is sent, as JSON or as an event in the middle of a stream."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the whole answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def shutting_down() -> ApiError:
    """Return the refusal of whoever comes, or still waits, after the signal to end."""
    headers = {"Retry-After": str(COME_AGAIN)}
    return ApiError(503, "the server is shutting down", code="shutting_down", headers=headers)


def models_busy() -> ApiError:
    """Return the refusal of a model for which there is no room in the memory now."""
    headers = {"Retry-After": "1", "x-should-retry": "true"}
    text = "too many models are in use, try again later"
    return ApiError(503, text, param="model", code="models_busy", headers=headers)


def broken() -> ApiError:
    """Return what is told of a fault of ours; the log knows where."""
    return ApiError(500, "something went wrong in the server", code="internal_error")


def not_done(field: str, instead: str) -> ApiError:
    """Return the refusal of a field whose silent loss would give a wrong result."""
    return ApiError(400, f"'{field}' is not supported here: {instead}", param=field, code="unsupported_parameter")


def of_validation(problem: RequestValidationError) -> ApiError:
    """Return the refusal of a body that is no JSON or does not fit, naming the first field."""
    first = _most_telling(problem.errors())
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not valid JSON", code="invalid_json")
    if isinstance(problem.body, bytes):  # not read as JSON, because it is not said to be
        return ApiError(400, "send the body as JSON, with the header content-type: application/json", code="no_json")
    # Branches of a union are no part of the field's name.
    where = [part for part in first["loc"] if part != "body" and not _is_branch(part)]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")
    what = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"{name or 'the body'}: {what}", param=name or None, code="invalid_value")


def _most_telling(errors: Sequence[Any]) -> Any:
    """Return the first error; of a union's, one for each of its branches, that of the branch which was meant.

    Of another type is what belongs to another branch: all other errors, and those farther inside, tell more.
    """
    field = errors[0]["loc"][:2]
    rivals = [error for error in errors if error["loc"][:2] == field]
    return min(rivals, key=lambda error: (error["type"].endswith(("_type", "_parsing")), -len(error["loc"])))


def _is_branch(part: int | str) -> bool:
    return isinstance(part, str) and (part in ("str", "int", "float", "bool") or "[" in part or part[:1].isupper())


def report(problem: Exception, who: str) -> None:
    """Say in the log what is broken, and where in our code; never the text that broke it."""
    where = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(problem.__traceback__)[-4:]]
    print(f"{who} {type(problem).__name__} at {' > '.join(where)}", file=sys.stderr, flush=True)
