"""`srpo data check`: one page on a data set, in the terminal and as HTML."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from srpo_jax.buckets.fetch import local_folder
from srpo_jax.cli.data.exporting import items_at
from srpo_jax.config.fields import Config
from srpo_jax.console import say
from srpo_jax.data_pipelines.exchange.checking.check import as_text, check_items
from srpo_jax.errors import UserError
from srpo_jax.inference.prompting import load_asking
from srpo_jax.judge.questions import judge_questions, question_judge
from srpo_jax.models.registry import load_model_config
from srpo_jax.runs.data_check_page import write_page


def data_check(cfg: Config, options: Mapping[str, Any]) -> None:
    """Runs the verb with its options; lengths are in tokens if cfg names a policy, and questions
    are judged by their text if that is asked for.
    """
    if not options["in"]:
        raise UserError("IN is missing, as in: srpo data check runs/mine")
    place = pathlib.Path(options["in"])
    items, root = items_at(place, options["from"], options["verdicts"], "reply")
    against = {}
    for name in filter(None, (each.strip() for each in options["against"].split(","))):
        against[name] = items_at(pathlib.Path(name), "", "", "reply")
    home = place if place.is_dir() else place.parent
    judge = question_judge(cfg, home) if options["ask_judge"] else None  # or what is wrong with it
    count, unit = _counter(cfg)
    tables = check_items(items, root, count=count, unit=unit, against=against)
    if judge is not None:
        again, _ = items_at(place, options["from"], options["verdicts"], "reply")
        found = judge_questions(cfg, judge, again, say)
        tables += [table for table in found if table.rows]
    say(as_text(tables))
    page = pathlib.Path(options["out"] or home / "check.html")
    say(f"\nwrote {write_page(page, tables, place.name)}")


def _counter(cfg: Config) -> tuple[Callable[[str], int], str]:
    """How long a text is, and in what: tokens of the policy, if there is one."""
    if not cfg.model.path:
        return lambda text: len(text.split()), "words"
    family = load_model_config(local_folder(cfg.model.path, weights=False), cfg.model.family).family
    processor = load_asking(
        cfg, local_folder(cfg.model.path, weights=False), family, bare=True
    ).encoder.processor
    return lambda text: len(processor.encode(text)), "tokens"
