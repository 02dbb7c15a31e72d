"""Answers batch files as `vllm run-batch` and a batch API do: each line's body goes to a server."""

from __future__ import annotations

import json
import pathlib
import random
import urllib.error
import urllib.request
from collections.abc import Iterable


def answered(files: Iterable[pathlib.Path], url: str) -> list[dict]:
    """The rows that come back for the requests in these files, in their order. url: of a server
    whose address ends with /v1.
    """
    rows = []
    for path in files:
        for line in path.read_text().splitlines():
            request = json.loads(line)
            assert (request["method"], request["url"]) == ("POST", "/v1/chat/completions")
            status, body = _post(f"{url}/chat/completions", request["body"])
            number = len(rows)
            response = {"status_code": status, "request_id": f"r{number}", "body": body}
            rows.append(
                {
                    "id": f"batch_req_{number}",
                    "custom_id": request["custom_id"],
                    "response": response,
                    "error": None,
                }
            )
    return rows


def write_rows(path: pathlib.Path, rows: Iterable[dict], *, shuffled: bool = True) -> pathlib.Path:
    """The rows as a file of answers, in any order. Returns the path."""
    rows = list(rows)
    if shuffled:
        random.Random(0).shuffle(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _post(address: str, body: dict) -> tuple[int, dict]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
