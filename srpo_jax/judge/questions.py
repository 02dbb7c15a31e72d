"""`srpo data check --ask_judge`: which questions are unsafe by their words alone.

A question of SSUI is harmless without its picture. One that is not teaches, or tests, no more than
to refuse words. The judge of the config is asked, by a rubric of its own (question_alone), and is
shown no picture; its replies are kept like those of `srpo judge`.
"""

from __future__ import annotations

import itertools
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from srpo_jax.arbiter.chat.cost import Preview, total_preview
from srpo_jax.arbiter.chat.reply_cache import ReplyCache
from srpo_jax.arbiter.in_process.judges import policy_judge
from srpo_jax.arbiter.prompted.prompted import Prompted
from srpo_jax.arbiter.prompted.rubric_file import load_rubric
from srpo_jax.arbiter.verdict import Case
from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.exchange.checking.check import Table
from srpo_jax.data_pipelines.exchange.item import Item
from srpo_jax.data_pipelines.records import Record
from srpo_jax.errors import RunFailure, UserError
from srpo_jax.files import check_folder, check_writable
from srpo_jax.judge.asking import ask, describe
from srpo_jax.judge.stage import ENOUGH, REPLIES

RUBRIC = "question_alone"
KINDS = ("prompted", "policy")  # who judges by rubrics, and no part of a path
SHOWN = 200  # questions that are named
AT_ONCE = 1000  # requests of the estimate in memory


def question_judge(cfg: Config, place: pathlib.Path) -> Prompted:
    """The judge of cfg with the rubric of questions. place: the folder whose replies it keeps.

    Errors: UserError for settings, and for a judge that asks by no rubric.
    """
    if cfg.arbiter.kind not in KINDS:
        raise UserError(
            f"arbiter.kind={cfg.arbiter.kind!r} judges no questions by their text: --ask_judge "
            f"needs --config.arbiter.kind={' or '.join(KINDS)}, and judge.model"
        )
    check_writable(place)
    check_folder(place / REPLIES)
    cache, rubrics = ReplyCache(place / REPLIES), [load_rubric(RUBRIC)]
    if cfg.arbiter.kind == "policy":
        return policy_judge(cfg.judge, config=cfg, cache=cache, rubrics=rubrics)
    return Prompted(cfg.judge, cache=cache, rubrics=rubrics)


def judge_questions(
    cfg: Config, judge: Prompted, items: Iterable[Item], say: Callable[[str], None]
) -> list[Table]:
    """Asks about every different text, and returns the tables of what was found. say: is told what
    will be asked, and where, beforehand.

    Errors: RunFailure when more than cfg.arbiter.max_error_fraction of the texts could not be
    asked about; what was answered is kept.
    """
    ids: dict[str, str] = {}  # of the first question with this text
    counts: Counter[str] = Counter()
    for item in items:
        ids.setdefault(item.question, item.id)
        counts[item.question] += 1
    cases = [_case(name, text) for text, name in ids.items()]
    say(f"{judge.name} is asked about {len(cases)} texts: {_preview(judge, cases)}")
    most = max(ENOUGH - 1, cfg.arbiter.max_error_fraction * len(cases))
    rows = ask(
        judge,
        cases,
        timeout=cfg.arbiter.timeout_seconds,
        too_many_failed=lambda failed: failed > most,
    )
    failed = [row["detail"] for row in rows if row["failed"]]
    if len(failed) > most:
        raise RunFailure(
            f"{len(failed)} of {len(cases)} questions could not be asked about, more than "
            f"arbiter.max_error_fraction={cfg.arbiter.max_error_fraction:g} ({failed[0][:200]}); "
            "mend that and run the same command again: what was answered is kept"
        )
    about = describe(judge, cfg.arbiter.kind)
    return _tables(about, dict(zip(ids, rows, strict=True)), ids, counts)


def _case(name: str, text: str) -> Case:
    """A case of nothing but a question: no picture, and a reply that the rubric does not show."""
    return Case(Record(name, (), text, (), ""), (), "", True)


def _preview(judge: Prompted, cases: list[Case]) -> Preview:
    left = iter(cases)
    parts = iter(lambda: list(itertools.islice(left, AT_ONCE)), [])
    return total_preview([judge.preview(part) for part in parts])


def _tables(
    about: Mapping[str, Any],
    rows: Mapping[str, Mapping[str, Any]],
    ids: Mapping[str, str],
    counts: Mapping[str, int],
) -> list[Table]:
    """How many questions of each verdict there are, and which are unsafe."""
    kinds = {
        "SAFE": "harmless by their text",
        "UNSAFE": "unsafe by their text alone",
        "ERROR": "not told: refused, or the judge could not",
    }
    found: Counter[str] = Counter()
    for text, row in rows.items():
        found[row["reply_verdict"]] += counts[text]
    lead = (
        f"By {about['arbiter']}, digest {about['digest']}, which saw no picture. Such questions "
        "are refused for their words, whatever the picture shows."
    )
    unsafe = [
        (ids[text], counts[text], text, row["detail"])
        for text, row in rows.items()
        if row["reply_verdict"] == "UNSAFE"
    ]
    many = f", the first {SHOWN} of {len(unsafe)}" if len(unsafe) > SHOWN else ""
    return [
        Table(
            f"Unsafe by their text alone: {found['UNSAFE']} of {sum(counts.values())} questions",
            lead,
            ("", "questions"),
            [(said, found[verdict]) for verdict, said in kinds.items() if found[verdict]],
        ),
        Table(
            f"Questions that are unsafe by their text alone{many}",
            "",
            ("first", "times", "text", "the judge"),
            unsafe[:SHOWN],
        ),
    ]
