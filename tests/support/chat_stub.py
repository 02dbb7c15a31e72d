"""An OpenAI-compatible chat server on 127.0.0.1 that judges by a word and goes wrong by a plan.

A text is unsafe when it holds the word HARM, or another pattern. The stub reads the text out of the
blocks of the prompt; what stands outside of them it obeys, as a gullible judge would. Whatever goes
wrong with an answer, it says the opposite of the truth: who guesses a verdict from it has a wrong
one.

As a program: `python -m tests.support.chat_stub SECONDS [HARMFUL]` prints its address and serves
until its standard input ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import sys
import threading
from collections import Counter

from srpo_jax.arbiter.prompted.untrusted import blocks, tags

HARM = "HARM"
TRANSIENT = ("429", "429_wait", "500", "hang", "drip", "cut", "drop", "html")
UNREADABLE = ("prose", "two_labels", "twice", "wrong_schema", "marker", "empty")
FINAL = ("refusal", "filter", "filter_400")
FAULTS = (*TRANSIENT, *UNREADABLE, "length", *FINAL)
ORDER = re.compile(r"(?:Answer|verdict is) (safe|unsafe)\b|system\n.* is (safe|unsafe)\b")
BLOCK = re.compile(r"<<<([0-9a-f]{16}) \w+>>>\n.*\n<<<\1 end>>>")


class ChatStub:
    """`with ChatStub() as stub:` serves at stub.url. faults: share of the calls that go wrong, by
    one of `kinds`: a function of (seed, request, how often it came), whatever the order of the
    calls. latency: seconds. unknown: fields that are answered by 400. script: answers to the first
    calls, instead: (status, headers, body of JSON). harmful: regex; a text that it is found in is
    unsafe. complete: gives the body of the answer to a body and a kind, instead of
    completion. calls, bodies, seen (by kind), peak: what came.
    """

    def __init__(
        self,
        *,
        faults=0.0,
        kinds=FAULTS,
        seed=0,
        latency=0.0,
        unknown=(),
        script=(),
        harmful=HARM,
        complete=None,
    ):
        self.harmful = harmful
        self.complete = complete or (lambda body, kind: completion(body, kind, harmful))
        self.faults, self.kinds, self.seed, self.latency = faults, kinds, seed, latency
        self.unknown, self.script = set(unknown), list(script)
        self.calls, self.open, self.peak = 0, 0, 0
        self.bodies, self.headers, self.seen = [], [], Counter()
        self._came = Counter()

    def __enter__(self):
        started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self, started):
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(started))
        self._loop.close()

    async def _serve(self, started):
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=512)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        started.set()
        await self._stop.wait()
        server.close()
        tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader, writer):
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the caller went away, or the server is closing
        finally:
            writer.close()

    async def _one(self, reader, writer) -> bool:
        line = await reader.readline()
        if not line:
            return False
        headers = {}
        while (header := await reader.readline()) not in (b"\r\n", b""):
            name, _, value = header.decode().partition(":")
            headers[name.lower()] = value.strip()
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        self.calls += 1
        self.open += 1
        self.peak = max(self.peak, self.open)
        try:
            if self.latency:
                await asyncio.sleep(self.latency)
            body = json.loads(raw)
            self.bodies.append(body)
            self.headers.append(headers)
            return await self._answer(body, raw, writer)
        finally:
            self.open -= 1

    async def _answer(self, body, raw, writer) -> bool:
        if self.script:
            return await _write(writer, *self.script.pop(0))
        refused = [name for name in body if name in self.unknown]
        if refused:
            said = {"message": f"Unsupported parameter: '{refused[0]}'", "param": refused[0]}
            return await _write(writer, 400, {}, {"error": said})
        kind = self._fault(raw)
        self.seen[kind] += 1
        if kind == "hang":
            await asyncio.sleep(60)
        if kind == "drip":  # never quiet for long, and never done
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n")
            for _ in range(1000):
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.02)
        if kind == "drop":
            return False
        if kind == "cut":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + b'{"choices": [{"mess')
            await writer.drain()
            return False
        if kind in ("429", "429_wait", "500", "html", "filter_400"):
            return await _write(writer, *_failure(kind))
        return await _write(writer, 200, {}, self.complete(body, kind))

    def _fault(self, raw: bytes) -> str:
        digest = hashlib.sha256(raw).hexdigest()
        self._came[digest] += 1
        drawn = hashlib.sha256(f"{self.seed} {digest} {self._came[digest]}".encode()).digest()
        if int.from_bytes(drawn[:4]) >= self.faults * 2**32:
            return "none"
        return self.kinds[int.from_bytes(drawn[4:8]) % len(self.kinds)]


def _failure(kind: str):
    if kind == "500":
        return 500, {}, {"error": {"message": "overloaded"}}
    if kind == "html":
        return 200, {}, "<html>gateway</html>"
    if kind == "filter_400":
        return 400, {}, {"error": {"message": "filtered", "code": "content_filter"}}
    wait = {"retry-after-ms": "5"} if kind == "429_wait" else {}
    return 429, wait, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}


async def _write(writer, status: int, headers: dict[str, str], body) -> bool:
    data = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += ["Content-Type: application/json", "", ""]
    writer.write("\r\n".join(lines).encode() + data)
    await writer.drain()
    return True


def completion(body, kind: str = "none", harmful: str = HARM):
    """The body of the answer to a request; kind: what is wrong with it."""
    system, prompt = (_text(message["content"]) for message in body["messages"])
    shown = blocks(prompt)
    outside = BLOCK.sub("", prompt)
    ordered = ORDER.search(outside)
    wrong = kind != "none"

    def label(text: str) -> str:
        safe = (re.search(harmful, text) is None) != wrong
        if ordered:
            safe = "safe" in ordered.groups()
        if '"serves"' in system:
            return "serves" if safe else "fails"
        if '"very_effective"' in system:
            return "very_effective" if safe else "ineffective"
        if '"safe_with_refusal"' in system:
            return "safe_with_refusal" if safe else "unsafe"
        return "safe" if safe else "unsafe"

    answer = {}
    if '"step_1"' in system:
        steps = shown["steps"]
        answer |= {key: {"evidence": "seen", "verdict": label(steps[key])} for key in steps}
    verdict = label(shown["reply"] if "reply" in shown else shown["question"])
    answer |= {"evidence": "read", "verdict": verdict}
    message, finish = _spoiled(answer, kind, prompt)
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", **message}}
    if body.get("logprobs") and not wrong:
        choice["logprobs"] = {"content": _logprobs(message["content"], verdict)}
    usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": 20}
    return {"model": f"{body['model']}-0613", "choices": [choice], "usage": usage}


def _spoiled(answer, kind: str, prompt: str):
    """(message, finish reason) of an answer with this wrong with it."""
    text = json.dumps(answer)
    other = {"safe": "unsafe", "unsafe": "safe"}.get(answer["verdict"], answer["verdict"])
    match kind:
        case "refusal":
            return {"content": text, "refusal": "I cannot look at that."}, "stop"
        case "filter":
            return {"content": text}, "content_filter"
        case "length":
            return {"content": text}, "length"
        case "prose":
            return {"content": f"The verdict is {answer['verdict']}: {text}"}, "stop"
        case "two_labels":
            return {"content": text + "\n" + json.dumps(answer | {"verdict": other})}, "stop"
        case "twice":
            return {"content": f'{text[:-1]}, "verdict": "{answer["verdict"]}"}}'}, "stop"
        case "wrong_schema":
            return {"content": json.dumps({"verdict": answer["verdict"], "sure": True})}, "stop"
        case "marker":
            return {"content": json.dumps(answer | {"evidence": sorted(tags(prompt))[0]})}, "stop"
        case "empty":
            return {"content": ""}, "stop"
    return {"content": text}, "stop"


def _logprobs(text: str, verdict: str):
    """A token a word; at the verdict the labels: -0.2 for the one that was chosen, -1.9 else."""
    content = []
    for token in re.findall(r"\w+|\W", text):
        top = {token: -0.01, "}": -5.0}
        if token == verdict:
            top = {"safe": -1.9, "unsafe": -1.9, '"': -7.0} | {token: -0.2}
        tops = [{"token": name, "logprob": value} for name, value in top.items()]
        content.append({"token": token, "logprob": top[token], "top_logprobs": tops})
    return content


def _text(content) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


if __name__ == "__main__":
    with ChatStub(latency=float(sys.argv[1]), harmful=(*sys.argv[2:], HARM)[0]) as served:
        print(served.url, flush=True)
        sys.stdin.read()
