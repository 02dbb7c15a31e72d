"""Formats by name: every case of cases.json, names that do not exist, a user's own class."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from srpo_jax.data_pipelines.path_formats.lines import Lines
from srpo_jax.data_pipelines.path_formats.registry import FORMATS, make_format
from srpo_jax.errors import UserError

CASES = json.loads(pathlib.Path(__file__).with_name("cases.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"][:30])
def test_what_models_write(case):
    """The shapes in which models are known to write each format, and what each must be read as."""
    path_format = make_format(case["format"])
    read = path_format.parse(
        case["text"], finished=case.get("finished", True), opened=case.get("opened", False)
    )
    assert [list(read.steps), read.reply, read.status] == [
        case["steps"],
        case["reply"],
        case["status"],
    ]


def test_names_are_those_of_the_formats():
    assert {name: made.name for name, made in FORMATS.items()} == {name: name for name in FORMATS}


def test_a_format_of_ones_own():
    """A subclass of PathFormat gets the options; another thing is refused in one line."""

    class Mine(Lines):
        name = "mine"

    assert make_format(Mine, max_steps=3).options.max_steps == 3
    others: list[Any] = ["thinking", dict, 3]
    for kind in others:
        with pytest.raises(UserError, match="format.kind"):
            make_format(kind)
    with pytest.raises(UserError, match="two different tags"):
        make_format("think", markers=("<a>",))
