"""From the texts of an import to trees with tokens, and the file's labels as a set of verdicts.

Texts are the file's, tokens are a policy's: so trees are made here, by the tokenizer of the policy
that the config names, and as it will be asked in training. Its weights are not read.
"""

from __future__ import annotations

import itertools
import pathlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from srpo_jax import __version__
from srpo_jax.buckets.fetch import local_folder
from srpo_jax.config.fields import Config
from srpo_jax.console import say
from srpo_jax.data_pipelines.exchange.importing import read_items
from srpo_jax.data_pipelines.exchange.item import Answer, Item
from srpo_jax.data_pipelines.exchange.licenses import forbids
from srpo_jax.data_pipelines.exchange.texts import FILE
from srpo_jax.data_pipelines.records import Record, RecordError
from srpo_jax.data_pipelines.tree_schema import make_tree_record, path_steps
from srpo_jax.data_pipelines.tree_store import SUFFIX, shard_path, write_shard
from srpo_jax.data_pipelines.verdict_store import (
    FOLDER,
    Verdicts,
    VerdictSet,
    join,
    open_set,
    unjudged,
)
from srpo_jax.errors import UserError
from srpo_jax.explore.provenance import RUN, refuse_strangers
from srpo_jax.explore.summary import BranchCounts, write_summary
from srpo_jax.files import write_json
from srpo_jax.inference.prompting import Asking, load_asking
from srpo_jax.judge.judge import label_rules, write_verdict_summary
from srpo_jax.judge.results.summary import LabelCounts
from srpo_jax.models.registry import load_model_config

GIVEN = "given"  # the status of a text that no path format has read
SHARD = 1000  # trees
AHEAD = 64  # trees whose texts are tokenised at once
# (ids, the text that they read as), or why there are none, by text and whether an answer begins
# with it.
Tokens = dict[tuple[str, bool], tuple[list[int], str] | UserError]
# Labels are of a row: what one prefers to a second answer, another may reject for a third.
READS = ("id",)


def make_trees(cfg: Config, out: pathlib.Path, about: Mapping[str, Any]) -> None:
    """Writes out/trees and, if anything is labelled, the verdict set out/verdicts/NAME, named after
    the file, of the import in `out`. about: what its import.json says.
    """
    family = load_model_config(local_folder(cfg.model.path), cfg.model.family).family
    asking = load_asking(cfg, local_folder(cfg.model.path), family)
    provenance = _provenance(asking, about)
    count = about["counts"]["trees"]
    if not count:
        raise UserError(f"{out / FILE}: holds no answer to learn from, so no tree can be made")
    shards = -(-count // SHARD)
    folder = out / "trees"
    run = {**provenance, "shards": shards}
    refuse_strangers(folder, run)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RUN, run)
    maker = TreeMaker(out, asking, provenance)
    verdicts = labels = None
    if about["counts"]["labelled"]:
        verdicts = open_set(out / FOLDER / set_name(about), _judge(about))
        labels = FileLabels(verdicts.folder)
    branches, judged = BranchCounts(), LabelCounts(**label_rules(cfg))

    def passing(part: Iterable[Item]) -> Iterator[dict[str, Any]]:
        """The trees of items, counted while they pass, as to read all again takes as long."""
        for item, tree in maker.trees(part):
            branches.add(tree)
            if labels is not None:
                labels.add(tree, item)
                judged.add(join(tree, labels, keep_irregular=cfg.explore.keep_irregular))
            yield tree

    items = (item for item in read_items(out / FILE) if item.reference)
    for number in range(shards):
        path = shard_path(folder, number, shards)
        write_shard(path, passing(itertools.islice(items, SHARD)))
        if verdicts is not None and labels is not None:
            _write_labels(verdicts, path.name.removesuffix(SUFFIX), labels.rows)
            labels.rows.clear()
    write_summary(folder, (), provenance, branches)
    if verdicts is not None:
        write_verdict_summary(cfg, folder, verdicts, judged)
        say(f"labels of the file: {verdicts.folder}")


def set_name(about: Mapping[str, Any]) -> str:
    """The name of the verdict set: that of the first file, in letters that a folder may have."""
    stem = pathlib.PurePath(next(iter(about["files"]))).stem
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in stem)
    return plain[:60].strip(".-") or "labels"


class FileLabels(Verdicts):
    """The labels of trees that are being made, by key, as verdicts. folder: of their set."""

    def __init__(self, folder: pathlib.Path):
        super().__init__(folder)
        self.rows: dict[str, dict[str, Any]] = {}
        self._keys: dict[tuple[str, ...], str] = {}  # of one tree, by steps and reply

    def key(self, tree: Mapping[str, Any], steps: Sequence[str], reply: str) -> str:
        """See Verdicts.key: of the tree that was added last each is made once."""
        path = (*steps, reply)
        if path not in self._keys:
            self._keys[path] = super().key(tree, steps, reply)
        return self._keys[path]

    def get(self, key: str) -> dict[str, Any] | None:
        """See Verdicts.get."""
        return self.rows.get(key)

    def add(self, tree: Mapping[str, Any], item: Item) -> None:
        """Takes in what the file says of the answers of the item that the tree was made of."""
        self._keys.clear()
        for branch, answer in zip(tree["branches"], item.answers, strict=True):
            if answer.safe is not None:
                key = self.key(tree, path_steps(tree, branch), branch["reply_text"])
                self.rows.setdefault(key, _verdict(answer))


class TreeMaker:
    """Makes tree records of items, with the pictures of `folder`."""

    def __init__(self, folder: pathlib.Path, asking: Asking, provenance: Mapping[str, Any]):
        self._folder, self._provenance = folder, provenance
        self._form = asking.form
        self._processor = asking.encoder.processor
        self._known: Tokens = {}

    def trees(self, items: Iterable[Item]) -> Iterator[tuple[Item, dict[str, Any]]]:
        """(item, its tree), in order, of items with a reference path. While trees are made, the
        texts of the next ones are tokenised. Errors: RecordError for a text that the policy's
        tokenizer cannot write.
        """
        with ThreadPoolExecutor(1) as tokenising:
            waiting: tuple[list[Item], Future[Tokens]] | None = None
            left = iter(items)
            while ahead := list(itertools.islice(left, AHEAD)):
                fresh = tokenising.submit(self._tokens, ahead)
                yield from self._made(waiting)
                waiting = ahead, fresh
            yield from self._made(waiting)

    def _made(
        self, waiting: tuple[list[Item], Future[Tokens]] | None
    ) -> Iterator[tuple[Item, dict[str, Any]]]:
        if waiting is not None:
            self._known = waiting[1].result()
            for item in waiting[0]:
                yield item, self._tree(item)

    def _tokens(self, items: Sequence[Item]) -> Tokens:
        """All texts of the items, each once. Nobody else asks the tokenizer meanwhile: not all of
        them bear that.
        """
        asked: dict[bool, dict[str, None]] = {True: {}, False: {}}  # by whether an answer begins
        for item in items:
            for texts, at in ((item.reference, 0), *((a.pieces, a.at) for a in item.answers)):
                for text, begins in self._asked(texts, at):
                    asked[begins][text] = None
        found: Tokens = {}
        for begins, texts in asked.items():
            try:
                found |= self._read_back(list(texts), begins)
            except UserError:  # of one of them, which is found by reading each alone
                for text in texts:
                    try:
                        found |= self._read_back([text], begins)
                    except UserError as error:
                        found[text, begins] = error
        return found

    def _read_back(self, texts: Sequence[str], begins: bool) -> Tokens:
        ids = self._processor.encode_all(texts, after_text=not begins)
        read = self._processor.decode_all(ids, after_text=not begins)
        return {(text, begins): (own, found) for text, own, found in zip(texts, ids, read)}

    def _tree(self, item: Item) -> dict[str, Any]:
        named = f"record {item.id!r}"
        path = self._read(item.reference, 0, item.ended, f"{named}: the reference path")
        branches, counts = [], Counter[int]()
        for number, answer in enumerate(item.answers):
            what = f"{named}: answer {number}"
            read = self._read(answer.pieces, answer.at, answer.ended, what)
            branches.append(
                {
                    "at": answer.at,
                    "k": counts[answer.at],
                    "parent": None,
                    "tokens": [token for piece in read.pieces for token in piece],
                    "text": answer.text,
                    "finished": True,
                    "logp": None,
                    "status": GIVEN,
                    "step_texts": read.texts[:-1],
                    "reply_text": read.texts[-1],
                }
            )
            counts[answer.at] += 1
        record = Record(
            item.id,
            tuple(str(name) for name in item.images),
            item.question,
            tuple(path.texts[:-1]),
            path.texts[-1],
            category=item.category,
            risky=item.risky,
            unsafe_reply=item.unsafe_reply,
            source=item.source,
            license=item.license,
            meta=item.meta,
            root=str(self._folder),
        )
        provenance = dict(self._provenance)
        if len(item.reference) > 1:
            steps = {"steps": list(item.reference[:-1])}
            provenance["imported"] = {**provenance["imported"], **steps}
        pieces = [np.asarray(piece, np.int32) for piece in path.pieces]
        return make_tree_record(record, pieces, branches, provenance, {"kind": GIVEN})

    def _read(self, texts: Sequence[str], at: int, ended: bool, what: str) -> Read:
        """The pieces of a path as tokens, and as these read. at: steps that stand before it."""
        pieces, read = [], []
        for text, begins in self._asked(texts, at):
            tokens, found = self._encoded(text, begins, what)
            pieces.append(list(tokens))
            read.append(found.strip())
        if ended:
            pieces[-1].append(self._processor.eos_ids[0])
        return Read(pieces, read)

    def _asked(self, texts: Sequence[str], at: int) -> Iterator[tuple[str, bool]]:
        """(what is to be tokenised, whether an answer begins with it) of the pieces of a path."""
        for number, text in enumerate(texts):
            begins = not at and not number
            if begins and self._processor.opened:
                text = text.removeprefix(self._form.opening)
            yield text, begins

    def _encoded(self, text: str, begins: bool, what: str) -> tuple[list[int], str]:
        """(ids, the text that they read as) of a piece. begins: whether the answer begins with it.
        RecordError, which begins with `what`, for a text that comes back as another one.
        """
        known = self._known[text, begins]
        if isinstance(known, UserError):
            raise RecordError(f"{what}: {known}")
        tokens, found = known
        if found != text and _normal(found) != _normal(text):
            raise RecordError(
                f"{what} cannot be written by this policy's tokenizer: {text[:60]!r} reads "
                f"back as {found[:60]!r}"
            )
        return tokens, found


class Read(NamedTuple):
    """A path as token ids, a list a piece, and as text, a piece each."""

    pieces: list[list[int]]
    texts: list[str]


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _verdict(answer: Answer) -> dict[str, Any]:
    """The label of an answer. Of a whole answer it is that of its path, too; where steps are
    labelled the path is what they say, and the steps of the reference path before it are right.
    """
    words = {True: "SAFE", False: "UNSAFE"}
    own = answer.steps_safe[:-1] if answer.steps_safe else ()
    path = all(own) if answer.steps_safe else bool(answer.safe)
    return {
        **unjudged("label of the file"),
        "reply_verdict": words[bool(answer.safe)],
        "path_verdict": words[path],
        "step_verdicts": ["SAFE"] * (answer.at if own else 0) + [words[each] for each in own],
    }


def _write_labels(verdicts: VerdictSet, stem: str, rows: Mapping[str, dict[str, Any]]) -> None:
    """Writes the verdicts of a shard, unless an earlier call has."""
    if verdicts.of_shard(stem) != rows:
        verdicts.write(stem, ({"key": key, **row} for key, row in rows.items()))


def _judge(about: Mapping[str, Any]) -> dict[str, Any]:
    """What judge.json says of the labels of a file."""
    told = ("format", "files", "source", "license")
    return {
        "arbiter": f"labels of {', '.join(about['files'])}"[:200],
        "kind": "imported",
        "digest": about["digest"],
        "spec": {name: about[name] for name in told},
        "reads": list(READS),
        "created_by": f"srpo_jax {__version__}",
    }


def _provenance(asking: Asking, about: Mapping[str, Any]) -> dict[str, Any]:
    told = ("format", "files", "digest", "license")
    return {
        "policy_digest": f"none: imported as {about['format']}",
        "prompt_digest": asking.digest,
        "prompt": asking.about,
        "sampler": {},
        "seed": 0,
        "created_by": f"srpo_jax {__version__}",
        "imported": {
            **{name: about[name] for name in told},
            "forbids": {name: forbids(name) for name in about["counts"]["licenses"]},
        },
    }
