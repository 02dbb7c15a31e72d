"""What judging trees and judging answers have in common: a shard of cases, judged and written."""

from __future__ import annotations

import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from srpo_jax import __version__
from srpo_jax.arbiter.chat.batch_files import MAX_MB
from srpo_jax.arbiter.chat.cost import Usage
from srpo_jax.arbiter.chat.messages import ChatBackend
from srpo_jax.arbiter.chat.reply_cache import ReplyCache
from srpo_jax.arbiter.registry import make_arbiter
from srpo_jax.arbiter.verdict import Arbiter, Case
from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.answer_store import STEM
from srpo_jax.data_pipelines.sidecars.case_keys import KeyKeeper
from srpo_jax.data_pipelines.tree_store import SUFFIX, read_shard
from srpo_jax.data_pipelines.verdict_store import FOLDER, JUDGE, VerdictSet, open_set, unjudged
from srpo_jax.errors import RunFailure, UserError
from srpo_jax.files import check_folder, check_plain_name
from srpo_jax.judge.asking import NOT_ASKED, ask, describe
from srpo_jax.judge.cases import cases_of_tree, once
from srpo_jax.judge.usage import UsageLog
from srpo_jax.places import check_place

REPLIES = "replies"  # in the workdir: what chat models answered, for every verdict set
ENOUGH = 20  # cases before arbiter.max_error_fraction is looked at
_OF_RECORD = re.compile(r"^arbiter .*?, record .*?: ")  # how asking.py names a case
_FAILED: dict[str, Any] = {**unjudged("not asked"), "failed": True}


class Counts(NamedTuple):
    """asked: cases of this call, and how many of them are ERROR; cases: all that have a verdict
    now, whenever they were asked about, how many are ERROR, and how many of these failed.
    """

    asked: int = 0
    asked_errors: int = 0
    cases: int = 0
    errors: int = 0
    failed: int = 0

    def add(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(self, other)))


class Batch(NamedTuple):
    """write: the file that the requests go to. read: files, folders or patterns of answers, with
    commas between. megabytes: the most of a file that is written, in MiB.
    """

    write: str = ""
    read: str = ""
    megabytes: float = MAX_MB


class Asking(NamedTuple):
    """How an arbiter is made and asked. arbiter: instead of the one that cfg.arbiter.kind names.
    name: of the verdict set; default: the arbiter's name and digest. cache: of raw replies,
    "readwrite", "readonly" (nothing is asked) or "off". allow_upload: pictures may leave this
    machine. dry_run: nothing is asked and nothing written, only said. batch: the requests go into
    a batch file, or the answers come from one (batches.py). replies, backend: instead of the cache
    in the workdir, and of the server that the settings name. rubric: what is judged by instead of
    judge.rubric; see make_arbiter.
    """

    arbiter: Arbiter | None = None
    name: str = ""
    cache: str = "readwrite"
    allow_upload: bool = False
    dry_run: bool = False
    batch: Batch = Batch()
    replies: ReplyCache | None = None
    backend: ChatBackend | None = None
    rubric: str = ""


def open_verdicts(
    cfg: Config, place: pathlib.Path, asking: Asking, *, scope: str = "reply"
) -> tuple[VerdictSet | None, Arbiter, dict[str, Any]]:
    """The verdict set of this judge under `place` (None of a dry run that would make it), the
    arbiter, and what the set says of it. scope: what has to be judged, as arbiter.scope.

    Errors: UserError for settings, for a set of that name by another judge, and for a judge that
    does not say what `scope` needs.
    """
    check_folder(place / REPLIES)
    cache = asking.replies
    if cache is None:  # an empty one is false
        cache = ReplyCache(place / REPLIES, asking.cache)
    arbiter = asking.arbiter or make_arbiter(
        cfg.arbiter.kind,
        cfg.judge,
        config=cfg,
        cache=cache,
        allow_upload=asking.allow_upload,
        backend=asking.backend,
        rubric=asking.rubric,
    )
    if scope == "path" and not getattr(arbiter, "judges_paths", True):
        raise UserError(
            f"{arbiter.name} judges no paths, so with arbiter.scope=path every branch would be "
            "ERROR: add path_safety to judge.rubric, or set arbiter.scope=reply"
        )
    about = describe(arbiter, cfg.arbiter.kind)
    name = asking.name or default_name(about)
    check_plain_name(name, "--name")
    about["created_by"] = f"srpo_jax {__version__}"
    folder = place / FOLDER / name
    if asking.dry_run and not (folder / JUDGE).is_file():
        return None, arbiter, about
    if not asking.dry_run:
        check_place(folder)
    return open_set(folder, about), arbiter, about


def check_arbiter(cfg: Config, pictures: int, *, allow_upload: bool = False) -> dict[str, Any]:
    """For what samples first and judges then: all that is known beforehand to go wrong with the
    arbiter of cfg, and what its judge.json will say. pictures: how many the records have. Errors:
    UserError.
    """
    arbiter = make_arbiter(cfg.arbiter.kind, cfg.judge, config=cfg, allow_upload=allow_upload)
    about = describe(arbiter, cfg.arbiter.kind)
    getattr(arbiter, "check", lambda _: None)(pictures)
    return about


def default_name(about: dict[str, Any]) -> str:
    """Of a verdict set: the arbiter's name, in letters that a folder may have, and its digest."""
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in about["arbiter"])
    return f"{plain[:40].strip('.-') or 'judge'}-{about['digest'][:8]}"


def cases_of_shard(
    cfg: Config, shard: pathlib.Path, reads: Sequence[str], keeper: KeyKeeper | None = None
) -> dict[str, Case]:
    """What is to be judged of a shard, by key, each content once. keeper: sees the trees, too."""
    keep, trees = cfg.explore.keep_irregular, iter(read_shard(shard))
    return once(
        keyed
        for tree in (trees if keeper is None else keeper.watch(trees))
        for keyed in cases_of_tree(tree, reads, keep_irregular=keep)
    )


def not_judged(
    cfg: Config,
    verdicts: VerdictSet | None,
    reads: Sequence[str],
    shards: Iterable[pathlib.Path],
) -> Iterator[tuple[int, list[Case]]]:
    """For each shard: how many of its contents no shard before had, and those of them that have no
    verdict yet, or one that failed.
    """
    seen: set[str] = set()
    for shard in shards:
        cases = cases_of_shard(cfg, shard, reads)
        fresh = {key: case for key, case in cases.items() if key not in seen}
        seen |= fresh.keys()
        rows = {key: (verdicts.get(key) if verdicts else None) or _FAILED for key in fresh}
        yield len(fresh), [case for key, case in fresh.items() if rows[key]["failed"]]


def judge_shards(
    cfg: Config,
    verdicts: VerdictSet,
    arbiter: Arbiter,
    shards: Iterable[pathlib.Path],
    *,
    place: pathlib.Path,
    stage: str,
    counted: Callable[[Counts], int],
    used: Usage | None = None,
) -> dict[str, Any]:
    """Judges shard after shard, keeps what it cost, and says both; returns what tell_usage does.

    place, stage: of the rows of usage.jsonl. counted: of which cases more than
    arbiter.max_error_fraction is too much. used: of a batch whose answers are read, which has its
    row already; the error fraction is then looked at when all are judged, as nothing is asked in
    vain. Errors: RunFailure when it is too much; what the arbiter said is written.
    """
    patient = used is not None
    counting = None if patient else getattr(arbiter, "usage", None)
    log = UsageLog(place, stage, verdicts.judge, verdicts.name, counting)
    total = Counts()
    for shard in shards:
        try:
            total = total.add(judge_shard(cfg, verdicts, arbiter, shard, patient=patient))
        finally:
            log.write()
        if not patient:
            check_errors(cfg, verdicts, total.cases, counted(total))
    check_errors(cfg, verdicts, total.cases, counted(total))
    tell_counts(verdicts, total)
    return tell_usage(used or counting)


def judge_shard(
    cfg: Config,
    verdicts: VerdictSet,
    arbiter: Arbiter,
    shard: pathlib.Path,
    *,
    patient: bool = False,
) -> Counts:
    """Judges what is not judged yet of one shard, and writes its part. patient: however many fail.

    Errors: RunFailure when the arbiter failed at too many; what it said is written.
    """
    stem = shard.name.removesuffix(SUFFIX)
    keeper = (
        None if shard.name.startswith(STEM) else KeyKeeper(shard, verdicts.reads, verdicts.folder)
    )
    cases = cases_of_shard(cfg, shard, verdicts.reads, keeper)
    if keeper:  # training finds the verdicts by them, without reading the trees
        keeper.keep()
    there = verdicts.of_shard(stem) or {}
    missing = {key: case for key, case in cases.items() if there.get(key, _FAILED)["failed"]}
    # The same content may have its verdict from another shard.
    elsewhere = {key: verdicts.get(key) or _FAILED for key in missing}
    todo = {key: case for key, case in missing.items() if elsewhere[key]["failed"]}

    most = max(ENOUGH - 1, cfg.arbiter.max_error_fraction * len(todo))
    if patient:
        most = len(todo)

    rows = ask(
        arbiter,
        list(todo.values()),
        timeout=cfg.arbiter.timeout_seconds,
        too_many_failed=lambda failed: failed > most,
    )
    answered = dict(zip(todo, rows, strict=True))
    found = {key: answered.get(key) or elsewhere[key] for key in missing}
    # What failed again in the same way is there already.
    if verdicts.of_shard(stem) is None or any(there.get(key) != found[key] for key in found):
        verdicts.write(stem, ({"key": key, **row} for key, row in found.items()))
    failed = sum(row["failed"] for row in rows)
    if failed > most:
        raise RunFailure(_too_many(cfg, verdicts, failed, len(rows)))
    now = [verdicts.get(key) or _FAILED for key in cases]
    return Counts(
        asked=len(rows),
        asked_errors=sum(row["reply_verdict"] == "ERROR" for row in rows),
        cases=len(now),
        errors=sum(row["reply_verdict"] == "ERROR" for row in now),
        failed=sum(row["failed"] for row in now),
    )


def check_errors(cfg: Config, verdicts: VerdictSet, cases: int, errors: int) -> None:
    """Errors: RunFailure when too many of the cases that the arbiter was asked about are errors."""
    if cases >= ENOUGH and errors > cfg.arbiter.max_error_fraction * cases:
        raise RunFailure(_too_many(cfg, verdicts, errors, cases))


def _too_many(cfg: Config, verdicts: VerdictSet, errors: int, asked: int) -> str:
    reasons: Counter[str] = Counter()
    for row in verdicts.rows():
        if row["reply_verdict"] == "ERROR" and row["detail"] != NOT_ASKED:
            reasons[_OF_RECORD.sub("", row["detail"])] += 1
    common = max(reasons, key=lambda text: reasons[text], default="see the arbiter")
    return (
        f"{errors} of {asked} cases that {verdicts.judge['arbiter']} was asked about could not be "
        f"judged, more than arbiter.max_error_fraction={cfg.arbiter.max_error_fraction:g} "
        f"(most often: {common[:200]}); mend that and run the same command again, or allow more"
    )


def tell_counts(verdicts: VerdictSet, total: Counts) -> None:
    """One line: what was asked, and what was not."""
    print(
        f"judge: {verdicts.judge['arbiter']} was asked about {total.asked} cases, "
        f"{total.asked_errors} of them ERROR; {total.cases - total.asked} were judged before",
        flush=True,
    )


def tell_usage(usage: object) -> dict[str, Any]:
    """{"usage": {"tokens_in", "tokens_out", "dollars"}} of the Usage of an arbiter that asks a chat
    model, and prints it; {} of anything else.
    """
    if not isinstance(usage, Usage):
        return {}
    money = f", ${usage.dollars:.2f}" if usage.dollars else ""
    print(
        f"judge: {usage.answered} answers, {usage.cached} more from the cache, {usage.unanswered} "
        f"requests without one; {usage.tokens_in} tokens in, {usage.tokens_out} out{money}",
        flush=True,
    )
    names = ("tokens_in", "tokens_out", "dollars")
    return {"usage": {name: getattr(usage, name) for name in names}}
