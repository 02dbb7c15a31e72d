"""Verdicts on disk, beside the trees: WORKDIR/verdicts/NAME, one set for each judge.

A verdict is keyed by the content that was judged, see case_key, so that it holds for the same
content wherever it comes from. A set has `judge.json` (who judges, by what, what of a record it
reads) and parts for each shard of trees, or of answers: SHARD.GENERATION-DIGEST.jsonl
(json_parts.py). Generation 1 and later hold what was asked again; the digest is of the rows, so
that two judges at work on one set write apart. A row is

    {"key", "reply_verdict", "path_verdict", "step_verdicts", "effective", "detail", "score",
     "votes", "unsure", "failed", "labels"}

with the meaning of arbiter.verdict.Judgement; "labels" is left out where there are none. Trees are
joined with their verdicts by JudgedTrees.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from srpo_jax.data_pipelines.answer_store import STEM
from srpo_jax.data_pipelines.json_parts import parts_of, read_part, write_part
from srpo_jax.data_pipelines.tree_schema import path_steps
from srpo_jax.data_pipelines.tree_store import TreeSource
from srpo_jax.errors import UserError
from srpo_jax.files import read_json, write_json

FOLDER = "verdicts"  # beside the folder of the trees
JUDGE = "judge.json"
NOT_YET = "not judged yet"
VERDICTS = ("SAFE", "UNSAFE", "ERROR")
# What a verdict says, beside its key; these are what a judged branch has besides its own fields.
FIELDS = (
    "reply_verdict",
    "path_verdict",
    "step_verdicts",
    "effective",
    "detail",
    "score",
    "votes",
    "unsure",
    "failed",
    "labels",
)


def case_key(
    image_sums: Sequence[str],
    question: str,
    steps: Sequence[str],
    reply: str,
    read: Mapping[str, Any],
) -> str:
    """32 hex digits that name what is judged: pictures (by the SHA-256 of their files), question,
    the steps of the whole path, the reply, and the fields of the record that the judge reads.
    """
    content = [list(image_sums), question, list(steps), reply, dict(read)]
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def unjudged(detail: str) -> dict[str, Any]:
    """The verdict on what no arbiter is asked about: ERROR, for the reason `detail`."""
    return {
        "reply_verdict": "ERROR",
        "path_verdict": "ERROR",
        "step_verdicts": [],
        "effective": None,
        "detail": detail,
        "score": None,
        "votes": [],
        "unsure": False,
        "failed": False,
        "labels": {},
    }


def read_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict in a row of a part. Errors: KeyError for what is no verdict."""
    return {name: row[name] for name in FIELDS if name != "labels"} | {
        "labels": dict(row.get("labels") or {})
    }


def written_row(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict, with its key or without, as parts and digests have it: without labels where there
    are none, as it was before there were any.
    """
    return {name: value for name, value in verdict.items() if name != "labels" or value}


def why_not_judged(branch: Mapping[str, Any], keep_irregular: bool) -> str:
    """Why no arbiter is asked about a branch or an answer; "" when one is.

    branch: with "finished", "reply_text" and "status" (of its path format).
    """
    if not branch["finished"]:
        return "unfinished"
    if branch["reply_text"] is None or not branch["reply_text"].strip():
        return f"no reply ({branch['status']})"
    if branch["status"] == "irregular" and not keep_irregular:
        return "irregular (explore.irregular=drop)"
    return ""


class Verdicts(abc.ABC):
    """The verdicts in one folder, however they are held: a subclass says what `get` gives. `judge`
    is what judge.json says.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = pathlib.Path(folder)
        self.judge: dict[str, Any] = read_json(self.folder / JUDGE)
        missing = [
            name for name in ("arbiter", "digest", "spec", "reads") if name not in self.judge
        ]
        if missing or not isinstance(self.judge["reads"], list):
            raise UserError(
                f"{self.folder / JUDGE} is no judge.json: {missing or ['reads']} is wrong"
            )
        self.reads: tuple[str, ...] = tuple(self.judge["reads"])

    @property
    def name(self) -> str:
        return self.folder.name

    @abc.abstractmethod
    def get(self, key: str) -> dict[str, Any] | None:
        """The verdict of this key; None when it was never asked for."""

    def branch_verdict(
        self, tree: Mapping[str, Any], branch: Mapping[str, Any], *, keep_irregular: bool = False
    ) -> dict[str, Any]:
        """The verdict on a branch of a tree, in the form of unjudged()."""
        why = why_not_judged(branch, keep_irregular)
        if why:
            return unjudged(why)
        return self._verdict(tree, path_steps(tree, branch), branch["reply_text"])

    def reference_verdict(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """The verdict on a tree's reference path."""
        return self._verdict(tree, tree["step_texts"], tree["reply_text"])

    def key(self, tree: Mapping[str, Any], steps: Sequence[str], reply: str) -> str:
        """case_key of a path of this tree, by what this set's judge reads of a record."""
        return tree_key(tree, steps, reply, self.reads)

    def _verdict(self, tree: Mapping[str, Any], steps: Sequence[str], reply: str) -> dict[str, Any]:
        row = self.get(self.key(tree, steps, reply))
        return unjudged(NOT_YET) if row is None else dict(row)


class VerdictSet(Verdicts):
    """All that a set says, in memory; its parts are read at once."""

    def __init__(self, folder: str | os.PathLike):
        super().__init__(folder)
        self._rows: dict[str, dict[str, Any]] = {}
        self._stems: dict[str, dict[str, dict[str, Any]]] = {}  # rows by shard
        self._generations: dict[str, int] = {}  # the last one of each shard
        for path in parts_in_order(self.folder):
            stem, generation, _ = part_order(path)
            with naming_part(path):
                self._take(stem, generation, read_part(path))

    def get(self, key: str) -> dict[str, Any] | None:
        """The verdict of this key; None when it was never asked for."""
        return self._rows.get(key)

    def rows(self) -> list[dict[str, Any]]:
        """All verdicts, each content once."""
        return list(self._rows.values())

    def of_shard(self, stem: str) -> dict[str, dict[str, Any]] | None:
        """{key: verdict} of what a shard holds, None when its part is not written."""
        return self._stems.get(stem)

    def write(self, stem: str, rows: Iterable[dict[str, Any]]) -> None:
        """Writes the next part of a shard."""
        rows = [written_row(row) for row in rows]
        generation = self._generations.get(stem, -1) + 1
        digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:8]
        write_part(self.folder / f"{stem}.{generation}-{digest}.jsonl", rows)
        self._take(stem, generation, rows)

    def fingerprint(self, stems: Iterable[str]) -> str:
        """Hex sha256 over the verdicts of these shards, however they came to be written."""
        digest = hashlib.sha256(str(self.judge["digest"]).encode())
        for stem in sorted(stems):
            for key, row in sorted((self._stems.get(stem) or {}).items()):
                digest.update(json.dumps([key, written_row(row)], sort_keys=True).encode())
        return digest.hexdigest()

    def _take(self, stem: str, generation: int, rows: Iterable[dict[str, Any]]) -> None:
        self._generations[stem] = generation
        of_shard = self._stems.setdefault(stem, {})
        for row in rows:
            verdict = read_row(row)
            # One that failed may have been given elsewhere: in another shard, by another process.
            for known in (of_shard, self._rows):
                if not verdict["failed"] or row["key"] not in known:
                    known[row["key"]] = verdict


# Of a record's fields, what a tree calls them.
_OF_TREE = {"steps": "step_texts", "reply": "reply_text"}


def tree_key(
    tree: Mapping[str, Any], steps: Sequence[str], reply: str, reads: Sequence[str]
) -> str:
    """case_key of a path of a tree."""
    sums = [image["sha256"] for image in tree["images"]]
    read = {name: tree[_OF_TREE.get(name, name)] for name in reads}
    return case_key(sums, tree["question"], steps, reply, read)


def parts_in_order(folder: pathlib.Path) -> list[pathlib.Path]:
    """The parts of a set that are done, shard by shard, as they were written: of two verdicts on
    one content the later one holds, but one that failed never replaces another.
    """
    return sorted(parts_of(folder), key=part_order)


@contextlib.contextmanager
def naming_part(path: pathlib.Path) -> Iterator[None]:
    """In a `with`: rows that are no verdicts are an error that names the part."""
    try:
        yield
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} holds no verdicts of this version: remove it") from None


def part_order(path: pathlib.Path) -> tuple[str, int, str]:
    """(shard, generation, digest) of a part. Errors: UserError for what is no part of a set."""
    stem, _, name = path.name.removesuffix(".jsonl").rpartition(".")
    generation, _, digest = name.partition("-")
    if not stem or not generation.isdecimal():
        raise UserError(f"{path} is no part of a set of verdicts: remove it")
    return stem, int(generation), digest


def open_set(folder: str | os.PathLike, judge: Mapping[str, Any]) -> VerdictSet:
    """The set in `folder`, made when there is none, or one without any verdict. judge: what
    judge.json holds: "arbiter", "digest", "spec", "reads", and more for people.

    Errors: UserError when the set is of another judge.
    """
    folder = pathlib.Path(folder)
    if (folder / JUDGE).is_file() and parts_of(folder):
        theirs = read_json(folder / JUDGE)
        if theirs.get("digest") != judge["digest"]:
            raise UserError(
                f"{folder} holds the verdicts of another judge ({theirs.get('arbiter')}, "
                f"{theirs.get('digest')}, now {judge['digest']}); give another --name"
            )
    else:
        write_json(folder / JUDGE, dict(judge))
    return VerdictSet(folder)


def set_names(trees: str | os.PathLike) -> list[str]:
    """The names of the verdict sets beside a folder of trees that have a part of some tree; not of
    those that are empty, or about answers of an evaluation alone.
    """
    found = sorted((pathlib.Path(trees).parent / FOLDER).glob(f"*/{JUDGE}"))
    return [path.parent.name for path in found if any(map(_of_trees, parts_of(path.parent)))]


def sets_about(place: str | os.PathLike, stems: Iterable[str]) -> list[str]:
    """The names of the verdict sets below the folder `place` that have a part of one of these
    shards, of trees or of answers. stems: the names of the shards without their ending.
    """
    wanted = set(stems)
    found = sorted((pathlib.Path(place) / FOLDER).glob(f"*/{JUDGE}"))
    return [
        path.parent.name
        for path in found
        if any(part_order(part)[0] in wanted for part in parts_of(path.parent))
    ]


def _of_trees(part: pathlib.Path) -> bool:
    return not part.name.startswith(STEM)


def find_set(trees: str | os.PathLike, name: str = "") -> VerdictSet:
    """The verdict set of this name beside a folder of trees; errors as find_folder."""
    return VerdictSet(find_folder(trees, name))


def find_folder(trees: str | os.PathLike, name: str = "") -> pathlib.Path:
    """The folder of the verdict set of this name beside a folder of trees; without a name of the
    only one there is.

    Errors: UserError when there is none, or several and no name.
    """
    trees = pathlib.Path(trees)
    names = set_names(trees)
    if not names:
        raise UserError(f"the trees of {trees} are not judged yet: run `srpo judge` first")
    if not name and len(names) > 1:
        raise UserError(
            f"there are {len(names)} sets of verdicts beside {trees}: choose with "
            f"--config.arbiter.verdicts=NAME, one of {', '.join(names)}"
        )
    if name and name not in names:
        raise UserError(
            f"there are no verdicts {name!r} beside {trees}, only {', '.join(names)}; run "
            "`srpo judge` for them, or choose with --config.arbiter.verdicts=NAME"
        )
    return trees.parent / FOLDER / (name or names[0])


class JudgedTrees:
    """Trees joined with their verdicts: [i] is a tree record whose branches have the fields of
    FIELDS besides their own, and which has "reference_verdict".

    keep: which trees, by their numbers in the source; default: all. complete: UserError for a tree
    of which something is to be judged and is not yet.
    """

    def __init__(
        self,
        source: TreeSource | Sequence[Mapping[str, Any]],
        verdicts: Verdicts,
        *,
        keep_irregular: bool = False,
        keep: Sequence[int] | None = None,
        complete: bool = False,
    ):
        self.source, self.verdicts, self._complete = source, verdicts, complete
        self._keep_irregular, self._keep = keep_irregular, keep

    def __len__(self) -> int:
        return len(self.source if self._keep is None else self._keep)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends a for loop
        tree = self.source[index if self._keep is None else self._keep[index]]
        joined = join(tree, self.verdicts, keep_irregular=self._keep_irregular)
        found = (*joined["branches"], joined["reference_verdict"])
        if self._complete and any(verdict["detail"] == NOT_YET for verdict in found):
            raise UserError(
                f"{self.verdicts.folder} has no verdicts on all of tree {tree['id']!r}: run "
                "`srpo judge` again"
            )
        return joined

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))


def join(
    tree: Mapping[str, Any], verdicts: Verdicts, *, keep_irregular: bool = False
) -> dict[str, Any]:
    """A tree record with its verdicts, see JudgedTrees."""
    branches = [
        {**branch, **verdicts.branch_verdict(tree, branch, keep_irregular=keep_irregular)}
        for branch in tree["branches"]
    ]
    reference = verdicts.reference_verdict(tree) if len(tree["reply"]) else unjudged("none")
    return {**tree, "branches": branches, "reference_verdict": reference}


def branch_label(
    branch: Mapping[str, Any],
    *,
    scope: str = "reply",
    require_effective: bool = False,
) -> bool | None:
    """True: safe (can be chosen). False: unsafe (can be rejected). None: left out.

    scope "reply" looks at the reply's verdict alone (RPO's F looks at the final answer);
    "path" also wants the steps safe. An ERROR verdict leaves the branch out. With
    require_effective a safe branch judged not effective (a needless refusal) counts as unsafe;
    one that was not judged for effectiveness (None) keeps its safety label.
    """
    if scope not in ("reply", "path"):
        raise ValueError(f"scope must be 'reply' or 'path', not {scope!r}")
    verdicts = [branch["reply_verdict"]]
    if scope == "path":
        verdicts.append(branch["path_verdict"])
    if "ERROR" in verdicts:
        return None
    if "UNSAFE" in verdicts:
        return False
    return not (require_effective and branch["effective"] is False)
