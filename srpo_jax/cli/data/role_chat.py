"""The models of a construction: who is asked what, from the cache or by its server, and at what
cost.

Every reply is on disk before the next one is asked for by the same slot (Journal), so that a killed
run asks nothing twice but what was under way.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from srpo_jax.arbiter.chat import cost
from srpo_jax.arbiter.chat.messages import ChatBackend, ChatReply, ChatRequest, Message, Picture
from srpo_jax.arbiter.chat.openai_api import OpenAIChat
from srpo_jax.arbiter.chat.reply_cache import ReplyCache
from srpo_jax.arbiter.prompted.answers import json_object, not_answered
from srpo_jax.arbiter.prompted.prompted import refuse_upload
from srpo_jax.arbiter.prompted.untrusted import block, tags
from srpo_jax.config.judging_sections import JudgeSettings
from srpo_jax.console import say
from srpo_jax.data_pipelines.construct.runner import Ask, Counts, Said
from srpo_jax.data_pipelines.construct.stages import Stage
from srpo_jax.errors import one_line
from srpo_jax.files import read_lines
from srpo_jax.judge.usage import UsageLog

LAST = "Now answer with the JSON object that was described."


FRESH = "fresh.jsonl"  # in the folder of replies


class Journal:
    """The replies that are in no part of the cache yet: a line each, as they come. A line that a
    kill tore is passed over. At the start they go into the cache.
    """

    def __init__(self, cache: ReplyCache):
        self._path, self._cache, self._file = cache.folder / FRESH, cache, None
        take_in(cache)
        self.fold()

    def put(self, key: str, reply: ChatReply) -> None:
        """Keeps an answer; what is none is not kept."""
        if reply.error is not None:
            return
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "ab", buffering=0)  # until fold
        self._file.write(json.dumps({"key": key, "reply": reply.to_dict()}).encode() + b"\n")
        self._cache.put(key, reply)

    def fold(self) -> None:
        """All into the cache's parts."""
        self._cache.flush()
        if self._file is not None:
            self._file.close()
            self._file = None
        self._path.unlink(missing_ok=True)


def take_in(cache: ReplyCache) -> None:
    """What a killed run left beside the cache's parts."""
    for row in read_lines(cache.folder / FRESH):
        cache.put(row["key"], ChatReply.from_dict(row["reply"]))


@dataclass
class Estimate:
    """Of a stage: requests that would be asked now, exactly; later: rows that wait for earlier
    answers, so at most so many requests more; the mean of tokens in and out of what is known, None
    where nothing is.
    """

    stage: str
    now: cost.Preview
    later: int
    mean_in: float | None
    mean_out: float | None
    price: tuple[float, float]  # dollars for a million tokens, in and out

    def tokens(self) -> tuple[float, float] | None:
        """(in, out) of all of them; None while that is not known."""
        if self.later and self.mean_in is None:
            return None
        out = (self.now.requests + self.later) * (self.mean_out or 0)
        if self.mean_out is None:
            out = self.now.tokens_out
            out += self.later * out / self.now.requests if self.now.requests else 0
        return self.now.tokens_in + self.later * (self.mean_in or 0), out


class RoleChat:
    """An Asker (runner.py). roles: the settings of each. cache: of raw replies; a dry run asks
    nobody and only estimates: `estimates`. allow_upload: pictures may leave this machine. log:
    folder of usage.jsonl. digest: of the stages.
    """

    def __init__(
        self,
        roles: Mapping[str, JudgeSettings],
        cache: ReplyCache,
        *,
        dry_run: bool,
        allow_upload: bool,
        log: pathlib.Path,
        digest: str,
        backends: Mapping[str, ChatBackend] | None = None,
    ):
        self.roles, self.cache, self.dry_run = roles, cache, dry_run
        self.allow_upload, self._log_place, self._digest = allow_upload, log, digest
        self.estimates: list[Estimate] = []
        self._sent = 0
        self._usage, self._log = cost.Usage(), None
        self._backends = dict(backends or {}) or {
            name: OpenAIChat.of(each) for name, each in roles.items()
        }
        self._journal = None if dry_run else Journal(cache)
        if dry_run:
            take_in(cache)

    def request(self, role: str, ask: Ask) -> ChatRequest:
        """What is sent."""
        settings = self.roles[role]
        pictures = tuple(Picture(data, settings.image_max_side) for data in ask.pictures)
        blocks = [block(name, value) for name, value in ask.shown.items()]
        words = "\n\n".join([*blocks, LAST])
        return ChatRequest(
            model=settings.model,
            messages=(Message("system", (ask.system,)), Message("user", (*pictures, words))),
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            seed=0,
            schema=ask.schema if settings.structured != "off" else None,
        )

    def begin(self, stage: Stage, asks: Iterable[Ask], waiting: int) -> None:
        """See Asker.begin; says what will be asked, and where."""
        settings = self.roles[stage.role]
        missing: dict[str, ChatRequest] = {}
        known: dict[str, tuple[int, int]] = {}
        size = cost.Preview(self._backends[stage.role].host, 0, 0, 0, 0, 0, 0, 0.0)
        prices = settings.price_input, settings.price_output
        for ask in asks:
            request = self.request(stage.role, ask)
            if request.key in missing or request.key in known:
                continue
            kept = self.cache.get(request.key)
            one = cost.preview(size.host, [request], 0, *prices)
            if kept is not None:
                known[request.key] = (one.tokens_in, kept.tokens_out)
                continue
            missing[request.key] = ChatRequest("", (), 0, 0, 0)  # its pictures are not kept
            size = cost.total_preview([size, one])
        size = cost.total_preview([size, cost.Preview(size.host, 0, len(known), 0, 0, 0, 0, 0.0)])
        means = [sum(column) / len(known) for column in zip(*known.values())]
        mean_in, mean_out = means if means else (None, None)
        if mean_in is None and missing:
            mean_in = size.tokens_in / len(missing)
        self.estimates.append(Estimate(stage.name, size, waiting, mean_in, mean_out, prices))
        self._usage = cost.Usage()
        if self.dry_run:
            return
        if size.requests:
            say(f"{stage.name}: {settings.model}: {size}")
        judge = {"arbiter": settings.model, "digest": self._digest}
        self._log = UsageLog(self._log_place, f"construct {stage.name}", judge, "", self._usage)

    def end(self, counts: Counts) -> None:
        """See Asker.end; says what came of it, and what it cost."""
        if self.dry_run:
            return
        self.close()
        used = self._usage
        money = f", ${used.dollars:.4f}" if used.dollars else ""
        say(
            f"{counts.stage}: {counts.rows} rows in, {counts.kept} go on; {used.answered} calls, "
            f"{used.cached} from the cache, {used.unanswered} without an answer, {used.tokens_in} "
            f"tokens in, {used.tokens_out} out{money}"
        )
        for why, count in counts.rejected.most_common():
            say(f"  {count} rejected: {why}")

    def close(self) -> None:
        """Keeps what there is; also after an error."""
        if self._journal is not None:
            self._journal.fold()
        if self._log is not None:
            self._log.write()

    def ask(self, role: str, asks: Sequence[Ask], readable: Callable[[dict], str]) -> list[Said]:
        """See Asker.ask. Errors: UserError or RunFailure when asking on makes no sense, and before
        pictures would leave this machine without allow_upload.
        """
        requests = [self.request(role, ask) for ask in asks]
        replies: dict[str, ChatReply | None] = {each.key: None for each in requests}
        for key in replies:
            replies[key] = self.cache.get(key)
            self._usage.cached += replies[key] is not None
        first = {each.key: each for each in reversed(requests)}
        missing = [first[key] for key, reply in replies.items() if reply is None]
        if missing and not self.dry_run:
            self._send(role, missing, replies, readable)
        none = "not asked yet" if self.dry_run else "judge.max_requests are spent"
        return [
            _said(each, reply, readable) if (reply := replies[each.key]) else Said(failed=none)
            for each in requests
        ]

    def _send(self, role, missing, replies, readable) -> None:
        settings, backend = self.roles[role], self._backends[role]
        if settings.max_requests:
            missing = missing[: max(0, settings.max_requests - self._sent)]
            self._sent += len(missing)
        pictures = sum(len(each.pictures()) for each in missing)
        refuse_upload(pictures, backend.host, allowed=self.allow_upload)
        sent = [_with_accepts(each, readable) for each in missing]

        def keep(index: int, reply: ChatReply) -> None:
            self._usage.add(reply, settings.price_input, settings.price_output)
            assert self._journal is not None
            self._journal.put(sent[index].key, reply)

        for each, reply in zip(sent, backend.complete(sent, keep), strict=True):
            replies[each.key] = reply


def _with_accepts(request: ChatRequest, readable: Callable[[dict], str]) -> ChatRequest:
    def accepts(reply: ChatReply) -> bool:
        return not _said(request, reply, readable).refused.startswith("unreadable")

    return dataclasses.replace(request, accepts=accepts)


def _said(request: ChatRequest, reply: ChatReply, readable: Callable[[dict], str]) -> Said:
    """What a reply says."""
    if reply.error is not None:
        return Said(failed=reply.error)
    if fault := not_answered(reply):
        return Said(refused=fault.why.replace("the judge", "the model"))
    text = reply.text or ""
    if any(tag in text for tag in tags(request.text())):
        return Said(refused="unreadable answer: it repeats a marker")
    try:
        data = json_object(text)
    except ValueError as error:
        return Said(refused=f"unreadable answer: {one_line(error, 160)}")
    why = readable(data)
    return Said(refused=f"unreadable answer: {why}") if why else Said(data=data)


def table(estimates: Sequence[Estimate]) -> str:
    """All stages, and what they come to: requests at most, tokens, dollars."""
    rows = [("stage", "requests now", "later, at most", "tokens in", "tokens out")]
    unknown, calls, totals, dollars = [], 0, [0.0, 0.0], 0.0
    for each in estimates:
        calls += each.now.requests + each.later
        tokens = each.tokens()
        t_in, t_out = ("?", "?") if tokens is None else (f"{n:.0f}" for n in tokens)
        rows.append((each.stage, str(each.now.requests), str(each.later), t_in, t_out))
        if tokens is None:
            unknown.append(each.stage)
            continue
        totals = [a + b for a, b in zip(totals, tokens)]
        dollars += sum(n * price for n, price in zip(tokens, each.price)) / 1e6
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths)).rstrip() for row in rows]
    money = f", ${dollars:.2f}" if dollars else ""
    lines.append(
        f"in all at most {calls} requests, retries apart; {totals[0]:.0f} tokens in, "
        f"{totals[1]:.0f} out{money}"
        + (f", without {', '.join(unknown)}: --pilot=20 measures them" if unknown else "")
    )
    return "\n".join(lines)
