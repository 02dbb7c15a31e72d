"""`srpo judge --write_batch` and `--read_batch`: a chat model is asked by files, not by a server.

Writing goes through the judge like asking does, with a back end that writes its requests down; no
verdict comes of it. Reading finds the answers that the judge wants by the keys of its requests,
puts them among the kept replies, and then judges from those alone. A judge that asks in stages
wants other requests when the first ones are answered: writing again gives them.
"""

from __future__ import annotations

import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

from srpo_jax.arbiter.chat.batch_answers import BatchAnswers, Wanted, answer_files
from srpo_jax.arbiter.chat.batch_files import MIB, BatchFile, BatchWriter
from srpo_jax.arbiter.chat.cost import Usage
from srpo_jax.arbiter.chat.openai_api import host_of
from srpo_jax.arbiter.chat.reply_cache import ReplyCache
from srpo_jax.arbiter.registry import takes_backend
from srpo_jax.arbiter.verdict import Arbiter
from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.verdict_store import VerdictSet
from srpo_jax.errors import UserError, one_line
from srpo_jax.judge.asking import ask
from srpo_jax.judge.stage import REPLIES, Asking, default_name, not_judged, open_verdicts
from srpo_jax.judge.usage import UsageLog


def check_batch(cfg: Config, asking: Asking, *, follow: bool = False) -> None:
    """Errors: UserError when what is asked for does not go with a batch file."""
    batch = asking.batch
    if not (batch.write or batch.read):
        return
    option = "--write_batch" if batch.write else "--read_batch"
    others = {"--read_batch": batch.write and batch.read, "--follow": follow}
    others["--dry_run"] = asking.dry_run
    others[f"--cache={asking.cache}"] = asking.cache != "readwrite"
    for other, there in others.items():
        if there:
            raise UserError(f"{option} does not go with {other}: leave one of them out")
    if asking.arbiter is not None or not takes_backend(cfg.arbiter.kind, cfg.judge):
        raise UserError(
            f"arbiter.kind={cfg.arbiter.kind} asks no chat model at a server, so there is no"
            f" request for a batch: leave {option} out"
        )
    if not batch.megabytes > 0:
        raise UserError(f"--batch_mb={batch.megabytes:g}: more than 0 is needed")


def write_batch(
    cfg: Config,
    place: pathlib.Path,
    asking: Asking,
    shards: Sequence[pathlib.Path],
    *,
    scope: str = "reply",
) -> dict[str, Any]:
    """Writes what the judge would ask about these shards now, and says what to do with it. No
    verdict is written, and what the cache answers is not asked. scope: see open_verdicts.

    Returns {"files": [{"path", "model", "lines", "size"}]}. Errors: UserError for files of these
    names, and before pictures would go to another machine without allow_upload.
    """
    cache = ReplyCache(place / REPLIES, asking.cache)
    writer = BatchWriter(
        asking.batch.write,
        host_of(cfg.judge.base_url),
        max_tokens_name=cfg.judge.max_tokens_name,
        max_bytes=int(asking.batch.megabytes * MIB),
    )
    with writer:
        looking = asking._replace(replies=cache, backend=writer, dry_run=True)
        verdicts, arbiter, about = open_verdicts(cfg, place, looking, scope=scope)
        _ask_all(cfg, verdicts, arbiter, about, shards)
        files = writer.finish()
    cached = getattr(getattr(arbiter, "usage", None), "cached", 0)
    print(_told(files, cached), flush=True)
    if writer.unsendable:
        why = writer.why_unsendable
        print(f"judge: {writer.unsendable} requests are in no file (first: {why})", flush=True)
    return {"files": [{**file._asdict(), "path": str(file.path)} for file in files]}


def read_batch(
    cfg: Config,
    place: pathlib.Path,
    asking: Asking,
    shards: Sequence[pathlib.Path],
    stage: str,
    *,
    scope: str = "reply",
) -> tuple[Asking, Usage]:
    """Puts the answers that the judge wants into the cache of replies.

    stage: of the row in usage.jsonl. Returns how to ask a judge that then has no other source, and
    what was answered. Errors: UserError for files that are no answers (BatchAnswers), and when none
    of them is this judge's.
    """
    answers = BatchAnswers(*answer_files(asking.batch.read))
    cache = ReplyCache(place / REPLIES, asking.cache)
    wanted = Wanted()
    asking = asking._replace(replies=cache, backend=wanted)
    looking = asking._replace(dry_run=True)
    verdicts, arbiter, about = open_verdicts(cfg, place, looking, scope=scope)
    usage, taken = Usage(), set()
    prices = cfg.judge.price_input, cfg.judge.price_output
    while True:
        wanted.labels.clear()
        _ask_all(cfg, verdicts, arbiter, about, shards)
        if not taken:  # later rounds find the answers of this batch there, too
            usage.cached = getattr(getattr(arbiter, "usage", None), "cached", 0)
        fresh = [key for key in wanted.labels if key in answers and key not in taken]
        if not fresh:
            break
        _keep(answers, fresh, wanted, cache, usage, prices)
        taken.update(fresh)
    usage.unanswered = sum(key not in cache for key in wanted.labels)
    _tell_read(answers, taken, cache, usage.unanswered)
    if usage.answered:
        name = asking.name or default_name(about)
        UsageLog(place, stage, about, name, usage).write()
    cache.mode = "readonly"
    return asking, usage


def _ask_all(
    cfg: Config,
    verdicts: VerdictSet | None,
    arbiter: Arbiter,
    about: dict[str, Any],
    shards: Sequence[pathlib.Path],
) -> None:
    """Asks about all that is not judged yet, for what the back end sees of it."""
    for _, todo in not_judged(cfg, verdicts, about["reads"], shards):
        ask(arbiter, todo, timeout=cfg.arbiter.timeout_seconds)


def _keep(
    answers: BatchAnswers,
    keys: Sequence[str],
    wanted: Wanted,
    cache: ReplyCache,
    usage: Usage,
    prices: tuple[float, float],
) -> None:
    for key in keys:
        reply = answers.get(key, wanted.labels[key])
        if cache.get(key) != reply:  # that of a file that is read again is there
            cache.put(key, reply)
            usage.add(reply, *wanted.prices.get(key, prices))
    cache.flush()


def _told(files: Sequence[BatchFile], cached: int) -> str:
    """What was written, and what to do next."""
    if not files:
        return (
            "judge: nothing to write: there is no request without an answer; `srpo judge` without"
            " --write_batch makes the verdicts of what is there"
        )
    lines = sum(file.lines for file in files)
    size = sum(file.size for file in files) / MIB
    told = [
        f"judge: {lines} requests in {_files(files)},"
        f" {size:.1f} MiB ({cached} more are answered in the cache); no verdict was written"
    ]
    for path, model, count, size in files:
        told.append(f"  {path}: {count} lines, {size} bytes, for {one_line(model)}")
    first = files[0]
    answers = first.path.with_name(f"{first.path.stem}-answers{first.path.suffix}")
    parts = str(first.path), str(answers), one_line(first.model)
    source, answered, model = map(shlex.quote, parts)
    return "\n".join(
        [
            *told,
            "next, for each file: either",
            f"  vllm run-batch -i {source} -o {answered} --model {model}",
            "or upload it with purpose=batch and make a batch of it for /v1/chat/completions; then",
            f"  srpo judge --read_batch={answered}  and the other options as now (several files:"
            " commas between, or their folder)",
        ]
    )


def _tell_read(answers: BatchAnswers, taken: set[str], cache: ReplyCache, unanswered: int) -> None:
    known = foreign = 0
    first = ""
    for key in answers.ids():
        if key in taken:
            continue
        if _is_key(key) and key in cache:
            known += 1
        else:
            foreign += 1
            first = first or f"{one_line(key, 80)} in {answers.place(key)}"
    if foreign and not (taken or known):
        raise UserError(
            f"none of the {len(answers)} answers is to a request of this judge (first: {first}):"
            " look at --config, --workdir and --answers"
        )
    told = [
        f"{len(answers)} answers in {_files(answers.files)}: {len(taken)} are wanted, {known}"
        " more are in the cache already"
    ]
    if answers.passed_over:
        told.append(
            f"passed over, as they are requests: {', '.join(map(str, answers.passed_over))}"
        )
    if foreign:
        told.append(f"{foreign} answers are to requests that this judge has not (first: {first})")
    if answers.failures:
        told.append(
            f"{answers.failures} requests came back with an error (first: {answers.first_failure})"
        )
    if unanswered:
        told.append(
            f"{unanswered} requests have no answer: what they are about is ERROR until it is there;"
            " --write_batch writes them again"
        )
    print("\n".join(f"judge: {line}" for line in told), flush=True)


def _files(files: Sequence[object]) -> str:
    return f"{len(files)} {'file' if len(files) == 1 else 'files'}"


def _is_key(text: str) -> bool:
    return len(text) == 64 and not set(text) - set("0123456789abcdef")
