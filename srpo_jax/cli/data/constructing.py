"""`srpo data construct`: a folder of pictures, or questions, and chat models become a data set."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax import __version__
from srpo_jax.arbiter.chat.reply_cache import ReplyCache
from srpo_jax.cli.data.exporting import items_at
from srpo_jax.cli.data.role_chat import RoleChat, table
from srpo_jax.config.fields import FIELDS, Config
from srpo_jax.config.judging_sections import JudgeSettings
from srpo_jax.config.load import load_config
from srpo_jax.console import say
from srpo_jax.data_pipelines.construct.guard import Guard
from srpo_jax.data_pipelines.construct.making import ABOUT, RECORDS, finish, write_out
from srpo_jax.data_pipelines.construct.rows import Row, rows_from
from srpo_jax.data_pipelines.construct.runner import PROMPT, run
from srpo_jax.data_pipelines.construct.stages import StageList, load_stages
from srpo_jax.data_pipelines.exchange.card import check_card, write_card
from srpo_jax.errors import RunFailure, UserError
from srpo_jax.files import check_folder, check_writable
from srpo_jax.judge.roles import shared
from srpo_jax.judge.stage import REPLIES
from srpo_jax.owners import Owner

EVALUATOR = "evaluator"  # never asked here; named, so that it is another model
APART = ("writer", "arbiter", EVALUATOR)  # roles that one model may not silently have
NEVER = 1 << 62
# Of a role's settings what decides its answers.
_DECIDES = ("model", "temperature", "max_tokens", "structured", "image_max_side")


def data_construct(cfg: Config, options: Mapping[str, Any]) -> None:
    """Runs the verb with its options. Errors: UserError before anything is asked; RunFailure when
    rows are left without an answer, and then no record is written.
    """
    for name, said in (("in", "IN"), ("out", "OUT")):
        if not options[name]:
            raise UserError(f"{said} is missing, as in: srpo data construct pictures runs/ssui")
    if options["pilot"] < 0:
        raise UserError(f"--pilot={options['pilot']}: must not be negative")
    stages = load_stages(options["stages"])
    roles = _roles(cfg, stages, options)
    place, out = pathlib.Path(options["in"]), pathlib.Path(options["out"])
    if (out / RECORDS).exists() and not (out / ABOUT).exists():
        raise UserError(f"{out} holds records of another origin: name another folder")
    if place.is_dir() and out.resolve().is_relative_to(place.resolve()):
        raise UserError(f"{out} lies in {place}, whose pictures are read: name a folder elsewhere")
    check_card(out)
    check_folder(out / REPLIES)

    def rows() -> list[Row]:
        names = ("per_image", "license", "source")
        return rows_from(stages, place, **{name: options[name] for name in names})

    def guard() -> Guard:
        against = {}
        for name in filter(None, (each.strip() for each in options["against"].split(","))):
            against[name] = items_at(pathlib.Path(name), "", "", "reply")
        return Guard(against)

    def chat(dry_run: bool) -> RoleChat:
        return RoleChat(
            {name: each for name, each in roles.items() if name != EVALUATOR},
            # That of a dry run never writes.
            ReplyCache(out / REPLIES, every=NEVER, seconds=NEVER)
            if dry_run
            else ReplyCache(out / REPLIES),
            dry_run=dry_run,
            allow_upload=options["allow_upload"],
            log=out,
            digest=stages.digest,
        )

    def estimate() -> None:
        asker = chat(True)
        run(stages, rows(), asker, guard())
        say(table(asker.estimates))

    if options["dry_run"]:
        estimate()
        say("dry run: nothing was asked, nothing was written")
        return
    check_writable(out)
    with Owner(out / ".owner", str(out), "constructed into", "wait for it or name another OUT"):
        estimate()
        asker, made = chat(False), rows()
        pilot = made[: options["pilot"]] or made
        try:
            counts = run(stages, pilot, asker, guard())
        finally:
            asker.close()
        if options["pilot"]:
            say(f"pilot: {len(pilot)} of {len(made)} rows; for all of them, from now on:")
            estimate()
            return
        _refuse_waiting(made)
        records, last = finish(stages, made, out)
        about = _about(roles, len(made))
        write_out(out, stages, records, made, [*counts, last], about)
        write_card(out)
    rejected = sum(bool(row.why) for row in made)
    say(
        f"wrote {len(records)} records of {len(made) - rejected} of {len(made)} rows to "
        f"{out / RECORDS}; {rejected} others, with reasons, to rejects.jsonl"
    )
    say(f"next: srpo data review {out}")


def _refuse_waiting(rows: Sequence[Row]) -> None:
    waiting = [row for row in rows if row.waiting]
    if waiting:
        raise RunFailure(
            f"{len(waiting)} of {len(rows)} rows have no answer ({waiting[0].waiting[:200]}): no "
            "record is written; run the same command again, what was answered is kept"
        )


def _roles(cfg: Config, stages: StageList, options: Mapping[str, Any]) -> dict[str, JudgeSettings]:
    """The settings of every role that is asked, and of the evaluator. Errors: UserError."""
    found = {}
    for role in [*stages.roles(), EVALUATOR]:
        given = options[role].strip()
        if not given:
            raise UserError(
                f"--{role}=MODEL is missing: name the model as its server knows it, or a "
                "config file"
            )
        found[role] = _settings(cfg, given)
    about = {role: {"spec": {"model": each.model}} for role, each in found.items()}
    for one, other in itertools.combinations([role for role in APART if role in about], 2):
        same = shared(about[one], about[other])
        if same and not options["allow_same_model"]:
            raise UserError(
                f"{same} is --{one} and --{other}: a model that looks at its own work says less; "
                "name another, or --allow_same_model says that it is meant"
            )
    return found


def _settings(cfg: Config, given: str) -> JudgeSettings:
    """The section `judge` of a config file, or that of the command line with this model."""
    if not given.partition(":")[0].endswith(".py"):
        return dataclasses.replace(cfg.judge, model=given)
    unused = {field.name for field in FIELDS.values() if field.rule.required}
    settings = load_config(given, unused=unused).judge
    if not settings.model.strip():
        raise UserError(f"{given}: judge.model is empty")
    return settings


def _about(roles: Mapping[str, JudgeSettings], rows: int) -> dict[str, Any]:
    """What construct.json says of who was asked."""
    return {
        "created_by": f"srpo_jax {__version__}",
        "prompt": PROMPT,
        "rows": rows,
        "roles": {
            role: {name: getattr(each, name) for name in _DECIDES} for role, each in roles.items()
        },
    }
