"""`srpo data import`: a file of another tool becomes records, pictures, and trees with labels."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from srpo_jax.cli.data.trees import make_trees
from srpo_jax.config.fields import Config
from srpo_jax.config.registered import call_factory, find_registered
from srpo_jax.console import say
from srpo_jax.data_pipelines.exchange.base import Format, Opened
from srpo_jax.data_pipelines.exchange.card import write_card
from srpo_jax.data_pipelines.exchange.importing import Found, Settings, import_file
from srpo_jax.data_pipelines.exchange.licenses import told as license_told
from srpo_jax.data_pipelines.formats.registry import FORMATS, detect, make
from srpo_jax.errors import UserError
from srpo_jax.inference.configured_format import configured_format


def find_format(name: str, option: str) -> Format:
    """The format of this name, or a user's own by module:Class. option: that it was given by."""
    kind = find_registered(name, FORMATS, option)
    return call_factory(lambda: make(kind, option), name, option)


def data_import(cfg: Config, options: Mapping[str, Any]) -> None:
    """Runs the verb with its options; trees are made if cfg names a policy."""
    source, out = _place(options["in"], "IN"), pathlib.Path(_place(options["out"], "OUT"))
    for name in ("limit", "allow_bad"):
        if options[name] < 0:
            raise UserError(f"--{name}={options[name]}: must not be negative")
    form, opened = open_source(pathlib.Path(source), options["from"], options["part"])
    names = ("limit", "allow_bad", "license", "source", "images", "dry_run")
    settings = Settings(**{name: options[name] for name in names})
    found, about = import_file(form, opened, out, settings, configured_format(cfg.format))
    say(told(found, form, settings))
    if settings.dry_run:
        say("dry run: nothing was written")
        return
    say(
        f"wrote {out}: trees.jsonl, records.jsonl, import.json, README.md (a data card)"
        + ", images/" * bool(found.pictures)
    )
    if cfg.model.path:
        make_trees(cfg, out, about)
        if not found.with_steps and cfg.prompt.instruction not in ("none", "{question}"):
            say(
                "note: the policy is told how to write a path (prompt.instruction), and these "
                "answers have none: --config.prompt.instruction=none, here and in training, asks "
                "the bare question"
            )
    write_card(out)
    say(what_next(found, cfg, out))


def open_source(path: pathlib.Path, name: str, part: str) -> tuple[Format, Opened]:
    """The format of this name, "" for the one that the file shows, and the file opened by it."""
    if not name:
        return detect(path, part)
    form = find_format(name, "--from")
    return form, form.open(path, part)


def told(found: Found, form: Format, settings: Settings) -> str:
    """What was found, in a few lines for a terminal."""
    lines = [
        f"{form.name} ({form.title}): {found.rows} rows, {found.items} questions, "
        f"{found.pairs} pairs of a safe and an unsafe answer, {found.with_steps} reference paths "
        "with steps"
    ]
    if found.pictures:
        lines.append(f"{found.pictures} pictures, {found.pictures_again} more times shown")
    if found.items > found.trees:
        lines.append(
            f"{found.items - found.trees} questions without an answer to learn from: they are in "
            "records.jsonl alone"
        )
    if found.unread:
        named = ", ".join(f"{name} ({count})" for name, count in found.unread.most_common(12))
        lines.append(f"kept in meta.source_fields, and not used: {named}")
    licenses = [f"{license_told(name)}: {n}" for name, n in found.licenses.most_common(5)]
    if licenses:
        hint = " (say it with --license)" if "" in found.licenses else ""
        lines.append(f"licence: {', '.join(licenses)}{hint}")
    if found.bad_rows:
        lines += [f"left out: {each}" for each in found.bad]
        lines.append(f"{found.bad_rows} of {found.rows} rows cannot be used")
    return "\n".join(lines)


def what_next(found: Found, cfg: Config, out: pathlib.Path) -> str:
    """What to type next."""
    if cfg.model.path and found.trees:
        more = "" if found.pairs else " --config.objective.lambda_exp=0"
        return f"next: srpo train --config=FILE --workdir={out}{more}, with the same settings"
    reference = "" if found.with_steps == found.items else " --config.explore.reference=self"
    return (
        f"next: srpo explore --config=FILE --config.data.train_records={out}/records.jsonl"
        f"{reference} --workdir=DIR; or, to train on these answers, the same import with "
        "--config=FILE, whose policy has the tokens"
    )


def _place(value: str, name: str) -> str:
    if not value:
        raise UserError(f"{name} is missing, as in: srpo data import pairs.jsonl runs/mine")
    return value
