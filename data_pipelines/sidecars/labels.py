"""The verdicts of a set as training needs them: a key and a byte each, instead of a row of JSON.

They are worked out from the set's parts once, part after part, and kept in the folder of the set
for all parts that are there then. What arbiters said besides (details, votes) is not in them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from srpo_jax.data_pipelines.json_parts import iter_part, part_sha256
from srpo_jax.data_pipelines.records import RecordError
from srpo_jax.data_pipelines.sidecars.case_keys import IRREGULAR, KEY_BYTES, NOTHING, CaseKeys
from srpo_jax.data_pipelines.sidecars.columns import (
    Columns,
    column_file,
    read_columns,
    write_columns,
)
from srpo_jax.data_pipelines.verdict_store import (
    VERDICTS,
    Verdicts,
    branch_label,
    naming_part,
    part_order,
    parts_in_order,
    read_row,
    unjudged,
    written_row,
)
from srpo_jax.errors import UserError

FORMAT = 1
_EFFECTIVE = (None, False, True)
# What a code says: reply's verdict, path's verdict, effective.
_CODES = tuple(itertools.product(VERDICTS, VERDICTS, _EFFECTIVE))
_CODE_OF = {said: code for code, said in enumerate(_CODES)}
LEFT_OUT, UNSAFE, SAFE = -1, 0, 1  # a label, see verdict_store.branch_label


class Labels(Verdicts):
    """Of a set, for the trees of some shards. `get` gives the verdict of a key without what only
    people read.

    stems: the names of the shards without their ending. anew: whatever is kept. keep: whether it
    is kept for a later start. fingerprint: that
    of VerdictSet.fingerprint for these shards. missing: those of them that have no part.
    Errors: UserError for a set that is damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        stems: Iterable[str],
        *,
        anew: bool = False,
        keep: bool = True,
    ):
        super().__init__(folder)
        stems, parts = sorted(stems), parts_in_order(self.folder)
        there = {part_order(part)[0] for part in parts}
        self.missing = [stem for stem in stems if stem not in there]
        sums = [[part.name, _sum_of(part)] for part in parts]
        about = [FORMAT, str(self.judge["digest"]), sums, stems]
        path = column_file(self.folder, "set", "labels", about)
        found = None if anew else read_columns(path, _check)
        if found is None:
            found = self._read(parts, stems)
            if keep:
                write_columns(path, found)
        self._keys, self._codes = found["keys"], found["codes"]
        self.fingerprint = found["fingerprint"].tobytes().decode()

    def get(self, key: str) -> dict[str, Any] | None:
        """Errors: none; see Verdicts."""
        (code,) = self.codes(np.asarray([bytes.fromhex(key)], f"S{KEY_BYTES}"))
        if code < 0:
            return None
        names = ("reply_verdict", "path_verdict", "effective")
        return unjudged("") | dict(zip(names, _CODES[code]))

    def codes(self, keys: np.ndarray) -> np.ndarray:
        """int16 [n] for S16 [n]: the code of each verdict, -1 where there is none."""
        if not len(self._keys):
            return np.full(len(keys), -1, np.int16)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[at] == keys, self._codes[at].astype(np.int16), np.int16(-1))

    def _read(self, parts: list[pathlib.Path], stems: list[str]) -> Columns:
        """From the parts: by VerdictSet's rule the last verdict that did not fail, else the first
        one, of a shard for the fingerprint, of all for the codes.
        """
        digest, wanted = hashlib.sha256(str(self.judge["digest"]).encode()), set(stems)
        keys, codes, ranks = [], [], []
        count = 0
        for stem, own in itertools.groupby(parts, key=lambda part: part_order(part)[0]):
            of_shard: dict[str, bytes] = {}
            of_part = _Part([], [], [])
            for part in own:
                with naming_part(part):
                    for row in iter_part(part):
                        count += 1
                        said = _CODE_OF[(row["reply_verdict"], row["path_verdict"], _known(row))]
                        of_part.add(row, said, count)
                        if stem in wanted and (not row["failed"] or row["key"] not in of_shard):
                            verdict = written_row(read_row(row))
                            text = json.dumps([row["key"], verdict], sort_keys=True)
                            of_shard[row["key"]] = text.encode()
            for key in sorted(of_shard):
                digest.update(of_shard[key])
            keys.append(np.asarray(of_part.keys, f"S{KEY_BYTES}"))
            codes.append(np.asarray(of_part.codes, np.uint8))
            ranks.append(np.asarray(of_part.ranks, np.int64))
        all_keys = np.concatenate([np.zeros(0, f"S{KEY_BYTES}"), *keys])
        all_codes = np.concatenate([np.zeros(0, np.uint8), *codes])
        order = np.lexsort((np.concatenate([np.zeros(0, np.int64), *ranks]), all_keys))
        all_keys, all_codes = all_keys[order], all_codes[order]
        last = np.append(all_keys[1:] != all_keys[:-1], True)[: len(all_keys)]
        return {
            "keys": all_keys[last],
            "codes": all_codes[last],
            "fingerprint": np.frombuffer(digest.hexdigest().encode(), np.uint8),
        }


class _Part(NamedTuple):
    """The rows of one shard's parts. The highest rank of a key holds."""

    keys: list[bytes]
    codes: list[int]
    ranks: list[int]

    def add(self, row: dict[str, Any], code: int, number: int) -> None:
        self.keys.append(bytes.fromhex(row["key"]))
        self.codes.append(code)
        self.ranks.append(-number if row["failed"] else number)


class LabelRules(NamedTuple):
    """scope, require_effective: see verdict_store.branch_label. keep_irregular: whether branches
    that the path format cannot read whole have a label.
    """

    scope: str = "reply"
    require_effective: bool = False
    keep_irregular: bool = False


class ShardLabels(NamedTuple):
    """int8: LEFT_OUT, UNSAFE or SAFE. reference: of each tree [n]. branch: of all branches [m].
    unknown: numbers of the trees of which something is to be judged and is not yet.
    """

    reference: np.ndarray
    branch: np.ndarray
    unknown: np.ndarray


def shard_labels(keys: CaseKeys, labels: Labels, rules: LabelRules) -> ShardLabels:
    """The labels of a shard's branches and reference paths, as verdict_store.join and branch_label
    give them."""
    told = {"scope": rules.scope, "require_effective": rules.require_effective}
    meaning = np.full(len(_CODES) + 1, LEFT_OUT, np.int8)  # the last one: of -1
    for code, said in enumerate(_CODES):
        verdict: dict[str, Any] = dict(zip(("reply_verdict", "path_verdict", "effective"), said))
        label = branch_label(verdict, **told)
        meaning[code] = LEFT_OUT if label is None else (SAFE if label else UNSAFE)
    asked = keys.state != NOTHING
    if not rules.keep_irregular:
        asked &= keys.state != IRREGULAR
    branch, reference = labels.codes(keys.branch), labels.codes(keys.reference)
    owner = np.repeat(np.arange(len(keys.ends)), np.diff(keys.ends, prepend=0))
    unknown = [np.flatnonzero(keys.has_reference & (reference < 0)), owner[asked & (branch < 0)]]
    return ShardLabels(
        np.where(keys.has_reference, meaning[reference], np.int8(LEFT_OUT)),
        np.where(asked, meaning[branch], np.int8(LEFT_OUT)),
        np.unique(np.concatenate(unknown)),
    )


def _known(row: dict[str, Any]) -> bool | None:
    """What a row says of effectiveness; anything but a bool is taken for None, as it labels so."""
    return row["effective"] if isinstance(row["effective"], bool) else None


def _sum_of(part: pathlib.Path) -> str:
    try:
        return str(part_sha256(part))
    except (OSError, UserError, ValueError, KeyError, TypeError):
        raise RecordError(f"{part}: its manifest is damaged: run the judge again") from None


def _check(found: Columns) -> bool:
    keys, codes = found["keys"], found["codes"]
    return (
        keys.dtype == f"S{KEY_BYTES}"
        and codes.dtype == np.uint8
        and keys.shape == codes.shape
        and len(found["fingerprint"]) == 64
        and bool((keys[1:] > keys[:-1]).all())
        and bool((codes < len(_CODES)).all())
    )
