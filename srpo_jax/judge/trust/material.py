"""What a judge was asked about: the trees of a workdir, or the answers of an evaluation, and the
sets of verdicts on them.

Only what a judge gave a verdict on counts, each whole path of a question once: a small policy
writes the same one many times, also from several branch points.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from srpo_jax.data_pipelines.answer_store import read_answers
from srpo_jax.data_pipelines.tree_store import SUFFIX, TreeSource, shards_of
from srpo_jax.data_pipelines.verdict_store import (
    FOLDER,
    NOT_YET,
    VerdictSet,
    join,
    sets_about,
    why_not_judged,
)
from srpo_jax.errors import UserError
from srpo_jax.files import check_plain_name, read_json
from srpo_jax.judge.trust.labels import Key, whole_text


class Opinion(NamedTuple):
    """What a judge says of a case, and what is known of the case."""

    verdict: str  # SAFE, UNSAFE or ERROR
    score: float | None
    category: str | None
    case: Key  # the first branch of this question that makes the same whole path


class Material(NamedTuple):
    """Trees or answers with the sets of verdicts on them. place: the folder in which `verdicts` is.
    usual: the set that is meant without a name, "" where that is only clear if there is one.
    """

    what: str  # for people
    source: TreeSource
    place: pathlib.Path
    names: tuple[str, ...]
    usual: str = ""

    def find(self, name: str = "") -> VerdictSet:
        """The set of this name; without one the usual or only one. Errors: UserError."""
        there = ", ".join(self.names)
        if not name and not self.usual and len(self.names) > 1:
            raise UserError(
                f"there are {len(self.names)} sets of verdicts on {self.what}: choose with "
                f"--verdicts=NAME, one of {there}"
            )
        name = name or self.usual or there
        if name not in self.names:
            raise UserError(f"there is no set of verdicts {name!r} on {self.what}, only {there}")
        return VerdictSet(self.place / FOLDER / name)

    def trees(self, verdicts: VerdictSet) -> Iterator[dict[str, Any]]:
        """The trees, joined with their verdicts, with those branches alone that have one, each
        whole path once.
        """
        for tree in self.source:
            joined = join(tree, verdicts, keep_irregular=True)
            first: dict[str, Mapping[str, Any]] = {}
            for branch in filter(_judged, joined["branches"]):
                first.setdefault(whole_text(tree, branch), branch)
            yield {**joined, "branches": list(first.values())}

    def opinions(self, verdicts: VerdictSet) -> dict[Key, Opinion]:
        """Of every branch that has a verdict, copies too."""
        found: dict[Key, Opinion] = {}
        for tree in self.source:
            cases: dict[str, Key] = {}
            for branch in join(tree, verdicts, keep_irregular=True)["branches"]:
                if _judged(branch):
                    key = (tree["id"], branch["at"], branch["k"])
                    case = cases.setdefault(whole_text(tree, branch), key)
                    verdict, score = branch["reply_verdict"], branch["score"]
                    found[key] = Opinion(verdict, score, tree["category"], case)
        return found


def cases(opinions: Mapping[Key, Opinion]) -> dict[Key, Opinion]:
    """Of each whole path the first branch alone."""
    return {key: each for key, each in opinions.items() if each.case == key}


def _judged(branch: Mapping[str, Any]) -> bool:
    return not why_not_judged(branch, keep_irregular=True) and branch["detail"] != NOT_YET


def of_trees(folder: pathlib.Path) -> Material:
    """The trees in `folder`. Errors: UserError when there are none, or nobody judged them."""
    paths = shards_of(folder)
    if not paths:
        raise UserError(f"{folder}: no trees; run `srpo explore` first")
    return _material(f"the trees of {folder}", paths, folder.parent, "srpo judge")


def of_answers(workdir: pathlib.Path, name: str) -> Material:
    """The answers of the evaluation `name`; the set that its scores are of is the usual one.

    Errors: UserError when there are none, or nobody judged them.
    """
    check_plain_name(name, "--answers")
    folder = workdir / "eval" / name
    _, paths = read_answers(folder)
    command = f"srpo judge --answers={name}"
    found = _material(f"the answers of {folder}", paths, workdir, command)
    scores = folder / "scores.json"
    usual = str(read_json(scores).get("verdicts", "")) if scores.is_file() else ""
    return found._replace(usual=usual if usual in found.names else "")


def _material(what: str, paths: list[pathlib.Path], place: pathlib.Path, command: str) -> Material:
    names = sets_about(place, [path.name.removesuffix(SUFFIX) for path in paths])
    if not names:
        raise UserError(f"{what} are not judged yet: run `{command}` first")
    return Material(what, TreeSource(paths[0].parent, paths), place, tuple(names))
