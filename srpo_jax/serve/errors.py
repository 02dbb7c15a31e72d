"""What a server answers when it does not answer: the error objects of the OpenAI API."""

from __future__ import annotations

import http
from typing import Any


class ApiError(Exception):
    """A request that gets no completion. status: of HTTP; code, param: as the API has them, "" for
    none."""

    def __init__(self, status: int, message: str, *, code: str = "", param: str = ""):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == http.HTTPStatus.TOO_MANY_REQUESTS:
            kind = "rate_limit_error"
        told = {"message": self.message, "type": kind}
        return {"error": {**told, "param": self.param or None, "code": self.code or None}}
