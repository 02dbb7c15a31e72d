"""Arbiters that read their verdicts from a file: `scripted` by a rule, `replay` by content.

Both read judge.cases, a JSONL file whose rows have verdicts in the words of the tree records:
reply_verdict, and where they are known path_verdict, step_verdicts, effective, detail, score,
labels, votes. They need no model and no network: for tests, for pipelines, and for verdicts made
elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from srpo_jax.arbiter.verdict import Case, Judgement, Verdict
from srpo_jax.errors import UserError
from srpo_jax.files import file_sha256, rows_of

ERROR = Verdict.ERROR
_VERDICT = ("reply_verdict", "path_verdict", "step_verdicts", "effective", "detail", "score") + (
    "labels",
    "votes",
)


def content_key(question: str, steps: Iterable[str], reply: str, images: Iterable[str] = ()) -> str:
    """SHA-256, in hex, of what is judged; images: the SHA-256s of the picture files, in order."""
    content = {"question": question, "steps": [*steps], "reply": reply, "images": [*images]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Scripted:
    """The verdicts of the first row that fits. A row has, beside its verdicts, `id` (of the
    question), `contains` (a text that is in the reply), both, or neither: then it fits everything.
    What no row fits is ERROR. Errors: UserError for a file that is missing or wrong.
    """

    def __init__(self, cases: str):
        self.name = "scripted"
        self._rows = [(row, _judgement(row, at)) for row, at in _rows(cases, ("id", "contains"))]
        self.spec = {"arbiter": "scripted", "cases": file_sha256(pathlib.Path(cases))}

    def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        """See Arbiter.judge."""
        return [self._judge(case) for case in cases]

    def _judge(self, case: Case) -> Judgement:
        for row, judged in self._rows:
            if row.get("id", case.record.id) != case.record.id:
                continue
            if case.reply is not None and row.get("contains", "") in case.reply:
                return judged
        return Judgement(ERROR, ERROR, (), None, "no row of the script fits")


class Replay:
    """The verdicts that a file has for the same content. A row has, beside its verdicts, `key`
    (content_key) or what it is made of: question, steps, reply and, with pictures, images (their
    SHA-256s). Of two rows with the same content the later one counts. What is not there is ERROR
    and failed: it is asked again when the file has more. Errors: UserError for a file that is
    missing or wrong.
    """

    def __init__(self, cases: str):
        self.name = "replay"
        known = ("key", "question", "steps", "reply", "images")
        self._judged = {_key_of(row, at): _judgement(row, at) for row, at in _rows(cases, known)}
        self.spec = {"arbiter": "replay", "cases": file_sha256(pathlib.Path(cases))}

    def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        """See Arbiter.judge."""
        missing = Judgement(ERROR, ERROR, (), None, "not among the replayed verdicts", failed=True)
        digests: dict[int, str] = {}  # the cases of a question share their bytes
        found = []
        for case in cases:
            for data in case.images:
                digests.setdefault(id(data), hashlib.sha256(data).hexdigest())
            images = [digests[id(data)] for data in case.images]
            key = content_key(case.record.question, case.steps, case.reply or "", images)
            found.append(self._judged.get(key, missing))
        return found


def _rows(cases: str, known: Sequence[str]) -> list[tuple[dict[str, Any], str]]:
    """The rows of a file, each with where it is; known: their keys besides the verdicts."""
    if not cases:
        raise UserError("judge.cases is empty: name the JSONL file with the verdicts")
    path = pathlib.Path(cases)
    if not path.is_file():
        raise UserError(f"judge.cases={cases!r} does not exist")
    rows = [(row, at) for at, row in rows_of(path)]
    if not rows:
        raise UserError(f"judge.cases={cases!r} has no rows")
    for row, at in rows:
        for key in row:
            if key not in known and key not in _VERDICT:
                raise UserError(
                    f"{at}: {key!r} is unknown; known are {', '.join([*known, *_VERDICT])}"
                )
        for key in ("id", "contains", "key"):
            if not isinstance(row.get(key, ""), str):
                raise UserError(f"{at}: {key} must be text")
    return rows


def _key_of(row: dict[str, Any], at: str) -> str:
    if "key" in row:
        return row["key"]
    texts = row.get("question"), row.get("reply")
    lists = row.get("steps", []), row.get("images", [])
    if not all(isinstance(text, str) for text in texts) or not all(map(_is_texts, lists)):
        raise UserError(f"{at}: it must have key, or question, reply, steps and images")
    return content_key(str(texts[0]), lists[0], str(texts[1]), lists[1])


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _judgement(row: dict[str, Any], at: str) -> Judgement:
    steps, effective, score = row.get("step_verdicts", []), row.get("effective"), row.get("score")
    verdicts = [row.get("reply_verdict"), row.get("path_verdict", "ERROR")]
    if not isinstance(steps, list) or not all(v in list(Verdict) for v in [*verdicts, *steps]):
        raise UserError(
            f"{at}: reply_verdict, path_verdict and step_verdicts are SAFE, UNSAFE or ERROR"
        )
    if effective is not None and not isinstance(effective, bool):
        raise UserError(f"{at}: effective must be true, false or null")
    labels, votes = row.get("labels", {}), row.get("votes", [])
    if not isinstance(labels, dict) or not all(isinstance(x, str) for x in labels.values()):
        raise UserError(f"{at}: labels must map texts to texts")
    if not isinstance(votes, list) or not all(vote in list(Verdict) for vote in votes):
        raise UserError(f"{at}: votes are SAFE, UNSAFE or ERROR")
    number = isinstance(score, (int, float)) and not isinstance(score, bool)
    if score is not None and not (number and 0 <= score <= 1):
        raise UserError(f"{at}: score must be a number from 0 to 1, or null")
    return Judgement(
        reply=Verdict(verdicts[0]),
        path=Verdict(verdicts[1]),
        steps=tuple(Verdict(v) for v in steps),
        effective=effective,
        detail=str(row.get("detail", "")),
        score=None if score is None else float(score),
        votes=tuple(Verdict(vote) for vote in votes),
        labels=labels,
    )
