"""What of a data set is passed on: everything that teaches safety, and nothing that teaches harm.

Trees with verdicts are a set of jailbreaks once the labels are swapped. So no unsafe reply, no text
of a branch and no word of a judge is in a release: their SHA-256, verdicts and counts are. Who
holds the texts can still join them by these sums. Only whoever releases can decide otherwise
(include_harmful).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from srpo_jax.data_pipelines.construct.guard import MINORS, about_minors
from srpo_jax.data_pipelines.exchange.licenses import forbids
from srpo_jax.data_pipelines.records import Record, record_to_dict
from srpo_jax.data_pipelines.tree_store import RELEASE
from srpo_jax.errors import UserError

ABOUT = RELEASE
RECORDS, BRANCHES, LICENSES = "records.jsonl", "branches.jsonl", "licenses.jsonl"
META = "release"  # the key of a record's meta
UNKNOWN = "unknown"  # what --allow calls a licence that nobody has told
# Sets that others test on: what is made of them must not be trained on by accident.
TEST_ONLY = (
    "figstep holisafe mm_safetybench mossbench mssbench rsbench_mini safebench siuo usb vlsbench "
    "xstest"
).split()
# What of meta is passed on: words of the program, and no text of a model.
_META = {
    "construct": ("stages", "digest", "kind", "verdicts", "twin_of", "people"),
    "review": ("decisions", "difficulty", "informative"),
}
_REFUSED = re.compile(r"(?i)gated|access on request|forbidden|none stated|states none")
_MAY = "what is made of it has the same licence"  # share alike: may be passed on, so
_VERDICT = ("reply_verdict", "path_verdict", "step_verdicts", "effective", "score", "unsure")


def sha256(text: str) -> str:
    """In hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def canary(records: Sequence[Record]) -> str:
    """A line that stands in every file of a release, so that who finds a model repeating it knows
    what it has seen. A function of the records.
    """
    digest = hashlib.sha256("\n".join(sorted(r.id + r.question for r in records)).encode())
    return f"srpo_jax release canary {digest.hexdigest()[:32]}"


def refuse(records: Sequence[Record], allowed: Sequence[str]) -> None:
    """Errors: UserError for records that must not be passed on. allowed: licences (UNKNOWN for
    none) and sources that are passed on all the same.
    """
    faults: dict[str, list[str]] = {}
    for record in records:
        if about_minors(record_to_dict(record)):
            raise UserError(f"record {record.id!r}: {MINORS}; remove it, nothing was written")
        for fault in _faults(record, allowed):
            faults.setdefault(fault, []).append(record.id)
    if faults:
        fault, ids = next(iter(faults.items()))
        more = f" (and {len(faults) - 1} other reasons)" if len(faults) > 1 else ""
        raise UserError(
            f"{len(ids)} records may not be passed on, {ids[0]!r} for one: {fault}{more}; leave "
            "them out, or name what you have the right to with --allow"
        )


def _faults(record: Record, allowed: Sequence[str]) -> Iterator[str]:
    name = record.license.strip()
    forbidden = [said for said in forbids(name) if said != _MAY]
    forbidden += ["its terms"] * bool(_REFUSED.search(name))
    if forbidden and (name or UNKNOWN) not in allowed:
        yield f"licence {name or UNKNOWN}: {'; '.join(forbidden)}"
    for source in (record.source, str(record.meta.get("format", ""))):
        last = source.rstrip("/").rpartition("/")[2].lower().replace("-", "_")
        if last in TEST_ONLY and source not in allowed:
            yield f"source {source}: a set to test on"


def released(record: Record, mark: str, *, safe: bool, include_harmful: bool) -> dict[str, Any]:
    """A record as it is passed on. safe: nobody judged its reference path to be anything else; one
    that is not safe is left out like an unsafe reply.
    """
    row = record_to_dict(record)
    about: dict[str, Any] = {"canary": mark}
    if not include_harmful:
        if row.pop("unsafe_reply", None) is not None:
            about["unsafe_reply_sha256"] = sha256(str(record.unsafe_reply))
        if not safe and row.pop("reference", None) is not None:
            about["reference_sha256"] = sha256("\n".join([*record.steps, record.reply]))
        row["meta"] = {
            name: {key: record.meta[name][key] for key in keys if key in record.meta[name]}
            for name, keys in _META.items()
            if isinstance(record.meta.get(name), dict)
        }
    row["meta"] = {**row.get("meta", {}), META: about}
    return row


def branch_rows(tree: Mapping[str, Any], *, include_harmful: bool) -> list[dict[str, Any]]:
    """The branches of a tree that is joined with its verdicts."""
    rows = []
    for branch in tree["branches"]:
        row = {
            "id": tree["id"],
            **{name: branch[name] for name in ("at", "k", "finished", "status")},
            "sha256": sha256(branch["text"]),
            **{name: branch[name] for name in _VERDICT},
            "votes": list(branch["votes"]),
        }
        if include_harmful:
            row |= {"text": branch["text"], "detail": branch["detail"]}
        rows.append(row)
    return rows


def license_rows(records: Iterable[Record], mark: str) -> list[dict[str, str]]:
    """The table of licences, a row a record. mark: the canary."""
    return [
        {"id": r.id, "license": r.license or UNKNOWN, "source": r.source, "canary": mark}
        for r in records
    ]
