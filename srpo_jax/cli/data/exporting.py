"""`srpo data export`: trees with verdicts, an import, or a file that we read, for other tools."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from srpo_jax.cli.data.importing import find_format, open_source
from srpo_jax.console import say
from srpo_jax.data_pipelines.exchange.exporting import export_items
from srpo_jax.data_pipelines.exchange.importing import Found, Settings, items_of, read_items
from srpo_jax.data_pipelines.exchange.item import Answer, Item
from srpo_jax.data_pipelines.exchange.texts import FILE
from srpo_jax.data_pipelines.path_formats.registry import FORMATS as PATH_FORMATS
from srpo_jax.data_pipelines.path_formats.registry import make_format
from srpo_jax.data_pipelines.tree_store import read_shards, shards_of
from srpo_jax.data_pipelines.verdict_store import JudgedTrees, branch_label, find_set, set_names
from srpo_jax.errors import UserError


def data_export(options: Mapping[str, Any]) -> None:
    """Runs the verb with its options."""
    for name in ("in", "out", "to"):
        if not options[name]:
            said = {"in": "IN", "out": "OUT", "to": "--to=FORMAT"}[name]
            raise UserError(f"{said} is missing, as in: srpo data export runs/mine out --to=trl")
    for name in ("limit", "allow_bad"):
        if options[name] < 0:
            raise UserError(f"--{name}={options[name]}: must not be negative")
    form = find_format(options["to"], "--to")
    place, out = pathlib.Path(options["in"]), pathlib.Path(options["out"])
    items, root = items_at(place, options["from"], options["verdicts"], options["scope"])
    kept = {name: options[name] for name in ("container", "limit", "allow_bad")}
    found = export_items(form, items, root, out, **kept)
    for each in found.bad[:20]:
        say(f"left out: {each}")
    if found.empty:
        say(f"{found.empty} questions have nothing that this format holds (a pair, say)")
    say(f"wrote {found.rows} rows of {found.items} questions: {out / found.file}")


def items_at(
    place: pathlib.Path, form: str, verdicts: str, scope: str
) -> tuple[Iterator[Item], pathlib.Path]:
    """(items, the folder that names of their pictures begin in) of a workdir with judged trees, of
    the folder of an import, or of a file of another tool.
    """
    if scope not in ("reply", "path"):
        raise UserError(f"--scope={scope}: must be reply or path")
    trees = place / "trees"
    if not form and place.is_dir() and shards_of(trees) and set_names(trees):
        return _judged(trees, verdicts, scope), place
    if verdicts:
        raise UserError(f"--verdicts={verdicts}: there are no judged trees in {place}")
    if not form and (place / FILE).is_file():
        return read_items(place / FILE), place
    made, opened = open_source(place, form, "")
    return _read(made, opened), opened.root


def _read(form: Any, opened: Any) -> Iterator[Item]:
    """The items of a foreign file, straight. A row that cannot be used ends it."""
    found = Found()
    for item in items_of(form, opened.rows, Settings(), found):
        if found.bad:
            break
        yield item
    if found.bad:
        raise UserError(f"{found.bad[0]}; import it first, with --allow_bad=N")


def _judged(trees: pathlib.Path, name: str, scope: str) -> Iterator[Item]:
    names = set_names(trees)
    if (name and name not in names) or (not name and len(names) > 1):
        raise UserError(f"{trees}: choose with --verdicts=NAME, one of {', '.join(names)}")
    for tree in JudgedTrees(read_shards(trees), find_set(trees, name)):
        yield item_of_tree(tree, scope)


def item_of_tree(tree: Mapping[str, Any], scope: str = "reply") -> Item:
    """A tree that is joined with its verdicts, as texts again. scope: what makes a branch safe."""
    answers = []
    for branch in tree["branches"]:
        if not branch["finished"]:
            continue
        steps = branch["step_verdicts"][branch["at"] :]
        own = tuple(verdict == "SAFE" for verdict in steps)
        label = branch_label(branch, scope=scope)
        graded = own and "ERROR" not in (*steps, branch["reply_verdict"])
        answers.append(
            Answer(
                branch["at"],
                _pieces(branch),
                label,
                (*own, branch["reply_verdict"] == "SAFE") if graded else (),
            )
        )
    made = [
        dataclasses.replace(a, steps_safe=()) if len(a.steps_safe) != len(a.pieces) else a
        for a in answers
    ]
    return Item(
        id=tree["id"],
        question=tree["question"],
        images=tuple(image["data"] for image in tree["images"]),
        reference=_reference(tree),
        answers=tuple(made),
        category=tree["category"],
        risky=tree["risky"],
        unsafe_reply=tree["unsafe_reply"],
        source=tree["source"],
        license=tree["license"],
        meta=tree["meta"],
    )


def _reference(tree: Mapping[str, Any]) -> tuple[str, ...]:
    """The reference path as it is written: by the file that it came from, or the path format."""
    if not len(tree["reply"]):
        return ()
    given = tree["provenance"].get("imported")
    if given is not None:
        return (*given.get("steps", ()), tree["reply_text"])
    settings = dict(tree["path_format"])
    kind = settings.pop("kind", "")
    if kind not in PATH_FORMATS:
        raise UserError(f"tree {tree['id']!r}: its path format {kind!r} is not one of ours")
    form = make_format(kind, **settings)
    return tuple(form.pieces(tree["step_texts"], tree["reply_text"]))


def _pieces(branch: Mapping[str, Any]) -> tuple[str, ...]:
    """The branch's text, cut before each of its steps and its reply where these are found."""
    text, at, starts = branch["text"], 0, []
    for piece in [*branch["step_texts"], branch["reply_text"] or ""]:
        found = text.find(piece, at) if piece else -1
        if found < 0:
            return (text,)
        starts.append(found)
        at = found + len(piece)
    starts[0] = 0
    return tuple(text[a:b] for a, b in zip(starts, [*starts[1:], len(text)]))
