"""Batch files: what is in a line, how files are cut, and what is there is never overwritten."""

from __future__ import annotations

import json

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter

from srpo_jax.arbiter.chat.batch_files import URL, BatchWriter
from srpo_jax.arbiter.chat.messages import ChatRequest, Message, Picture
from srpo_jax.errors import UserError
from tests.arbiter.prompted.test_prompted import png


def request(i: int, model: str = "m", **fields) -> ChatRequest:
    parts = (Picture(png()), f"question {i}, \u2028 and a lone \ud800")
    messages = Message("system", ("judge",)), Message("user", parts)
    wanted = {"temperature": 0.0, "max_tokens": 9, "seed": 0, **fields}
    return ChatRequest(model, messages, **wanted)


def finished(path, requests, **limits):
    """The files of these requests, asked for in two calls, and the writer."""
    with BatchWriter(path, "localhost", **limits) as writer:
        said = [*writer.complete(requests[:3]), *writer.complete(requests[3:])]
        assert all(reply.error for reply in said)
        return writer.finish(), writer


def lines_of(files):
    return [json.loads(line) for file in files for line in file.path.read_text().splitlines()]


def test_a_line_is_what_the_api_takes(tmp_path):
    """Exactly four keys, by the key of the request, with a body that openai's own types know: no
    field is unknown to them, and the values are of their kinds.
    """
    schema = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    asked = request(0, schema=schema, labels=("safe", "unsafe"))
    files, _ = finished(tmp_path / "b.jsonl", [asked, asked])
    (line,) = lines_of(files)
    assert set(line) == {"custom_id", "method", "url", "body"}
    assert (line["custom_id"], line["method"], line["url"]) == (asked.key, "POST", URL)
    known = CompletionCreateParamsNonStreaming.__annotations__.keys()
    bases = [base.__annotations__ for base in CompletionCreateParamsNonStreaming.__orig_bases__]
    assert set(line["body"]) <= known | {name for base in bases for name in base}
    checked = TypeAdapter(CompletionCreateParamsNonStreaming).validate_python(line["body"])
    assert [message["role"] for message in checked["messages"]] == ["system", "user"]
    (url,) = (p["image_url"]["url"] for p in line["body"]["messages"][1]["content"][:1])
    assert url.startswith("data:image/png;base64,")


@pytest.mark.parametrize("limits", [{"max_bytes": 2000}, {"max_lines": 2}])
def test_files_are_cut_and_hold_every_request_once(tmp_path, limits):
    """By bytes and by lines, each below the limit, in order, one model a file; bytes and lines are
    told; what is asked twice is there once.
    """
    asked = [request(i) for i in range(7)] + [request(i, "other") for i in range(2)] + [request(3)]
    files, _ = finished(tmp_path / "b.jsonl", asked, **limits)
    assert [file.path.name for file in files] == [f"b-{n:05d}.jsonl" for n in range(len(files))]
    assert len(files) > 3
    assert [line["custom_id"] for line in lines_of(files)] == [each.key for each in asked[:-1]]
    for file in files:
        found = lines_of([file])
        assert file.size == file.path.stat().st_size <= limits.get("max_bytes", 10**6)
        assert file.lines == len(found) <= limits.get("max_lines", 100)
        assert {line["body"]["model"] for line in found} == {file.model}
    assert sorted(tmp_path.iterdir()) == [file.path for file in files]


def test_what_is_there_is_kept(tmp_path):
    """A file of another content, under any of the names, is refused by name and nothing is written;
    the same content is the same command again.
    """
    path = tmp_path / "b.jsonl"
    asked = [request(i) for i in range(5)]
    files, _ = finished(path, asked, max_lines=2)
    before = {file.path: file.path.read_bytes() for file in files}
    files[1].path.unlink()  # as after a kill between two renames
    finished(path, asked, max_lines=2)
    for other, limits in ((asked, {}), (asked[:4], {"max_lines": 2}), (asked[1:], {})):
        with pytest.raises(UserError, match=r"b-0000\d.jsonl is there, and holds something else"):
            finished(path, other, **limits)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_what_cannot_be_sent_is_told_and_not_written(tmp_path):
    """A picture of no known kind is left out with its reason; a request that fits into no file is
    an error; nothing is left of a writer that was not finished.
    """
    bad = ChatRequest("m", (Message("user", (Picture(b"no picture"), "?")),), 0.0, 9, 0)
    files, writer = finished(tmp_path / "b.jsonl", [bad, request(0)])
    assert len(lines_of(files)) == 1 and writer.unsendable == 1
    assert "neither PNG" in writer.why_unsendable
    with pytest.raises(UserError, match="a request has 0.0 MiB, more than a batch file may"):
        finished(tmp_path / "c.jsonl", [request(0)], max_bytes=100)
    assert finished(tmp_path / "d.jsonl", [])[0] == []
    assert [p.name for p in tmp_path.iterdir()] == ["b.jsonl"]
