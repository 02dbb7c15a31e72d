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
from typing import Any, NamedTuple

import numpy as np

from srpo_jax import __version__
from srpo_jax.config.fields import Config
from srpo_jax.console import say
from srpo_jax.data_pipelines.exchange.importing import read_items
from srpo_jax.data_pipelines.exchange.item import Answer, Item
from srpo_jax.data_pipelines.exchange.licenses import forbids
from srpo_jax.data_pipelines.exchange.texts import FILE
from srpo_jax.data_pipelines.records import Record, RecordError
from srpo_jax.data_pipelines.tree_schema import make_tree_record, path_steps
from srpo_jax.data_pipelines.tree_store import SUFFIX, shard_path, write_shard
from srpo_jax.data_pipelines.verdict_store import FOLDER, VerdictSet, open_set, tree_key, unjudged
from srpo_jax.errors import UserError
from srpo_jax.explore.provenance import RUN, refuse_strangers
from srpo_jax.explore.summary import write_summary
from srpo_jax.files import write_json
from srpo_jax.inference.prompting import Asking, load_asking
from srpo_jax.judge.judge import write_verdict_summary
from srpo_jax.models.registry import load_model_config

GIVEN = "given"  # the status of a text that no path format has read
SHARD = 1000  # trees
# Labels are of a row: what one prefers to a second answer, another may reject for a third.
READS = ("id",)


def make_trees(cfg: Config, out: pathlib.Path, about: Mapping[str, Any]) -> None:
    """Writes out/trees and, if anything is labelled, the verdict set out/verdicts/NAME, named after
    the file, of the import in `out`. about: what its import.json says.
    """
    family = load_model_config(cfg.model.path, cfg.model.family).family
    asking = load_asking(cfg, cfg.model.path, family)
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
    verdicts = None
    if about["counts"]["labelled"]:
        verdicts = open_set(out / FOLDER / set_name(about), _judge(about))
    items = (item for item in read_items(out / FILE) if item.reference)
    for number in range(shards):
        path = shard_path(folder, number, shards)
        part = itertools.islice(items, SHARD)
        rows: dict[str, dict[str, Any]] = {}
        write_shard(path, maker(part, rows))
        if verdicts is not None:
            _write_labels(verdicts, path.name.removesuffix(SUFFIX), rows)
    write_summary(folder, (), provenance)
    if verdicts is not None:
        write_verdict_summary(cfg, folder, verdicts)
        say(f"labels of the file: {verdicts.folder}")


def set_name(about: Mapping[str, Any]) -> str:
    """The name of the verdict set: that of the first file, in letters that a folder may have."""
    stem = pathlib.PurePath(next(iter(about["files"]))).stem
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in stem)
    return plain[:60].strip(".-") or "labels"


class TreeMaker:
    """Makes tree records of items, with the pictures of `folder`, and verdicts of their labels."""

    def __init__(self, folder: pathlib.Path, asking: Asking, provenance: Mapping[str, Any]):
        self._folder, self._provenance = folder, provenance
        self._form = asking.form
        self._processor = asking.encoder.processor
        self._known: dict[tuple[str, bool], tuple[list[int], str]] = {}

    def __call__(
        self, items: Iterable[Item], rows: dict[str, dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """The trees, one after the other; their verdicts are put into `rows` by key."""
        for item in items:
            tree = self._tree(item)
            for branch, answer in zip(tree["branches"], item.answers, strict=True):
                if answer.safe is not None:
                    steps = path_steps(tree, branch)
                    key = tree_key(tree, steps, branch["reply_text"], READS)
                    rows.setdefault(key, {"key": key, **_verdict(answer)})
            yield tree

    def _tree(self, item: Item) -> dict[str, Any]:
        self._known.clear()  # the chosen answer is often the reference path
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
        for number, text in enumerate(texts):
            begins = not at and not number
            if begins and self._processor.opened:
                text = text.removeprefix(self._form.opening)
            tokens, found = self._encoded(text, begins, what)
            pieces.append(list(tokens))
            read.append(found.strip())
        if ended:
            pieces[-1].append(self._processor.eos_ids[0])
        return Read(pieces, read)

    def _encoded(self, text: str, begins: bool, what: str) -> tuple[list[int], str]:
        """(ids, the text that they read as) of a piece. begins: whether the answer begins with it.
        RecordError, which begins with `what`, for a text that comes back as another one.
        """
        if (text, begins) in self._known:
            return self._known[text, begins]
        try:
            tokens = list(self._processor.encode(text, after_text=not begins))
        except UserError as error:
            raise RecordError(f"{what}: {error}") from None
        found = self._processor.decode(tokens, after_text=not begins)
        if unicodedata.normalize("NFKC", found) != unicodedata.normalize("NFKC", text):
            raise RecordError(
                f"{what} cannot be written by this policy's tokenizer: {text[:60]!r} reads "
                f"back as {found[:60]!r}"
            )
        self._known[text, begins] = tokens, found
        return tokens, found


class Read(NamedTuple):
    """A path as token ids, a list a piece, and as text, a piece each."""

    pieces: list[list[int]]
    texts: list[str]


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
    there = verdicts.of_shard(stem)
    wanted = {key: {k: v for k, v in row.items() if k != "key"} for key, row in rows.items()}
    if there != wanted:
        verdicts.write(stem, rows.values())


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
