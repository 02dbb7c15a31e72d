"""What judging cost, for the report: one row for each stage and judge, of usage.jsonl."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Any

from srpo_jax.judge.usage import read_usage, summed


def cost_table(folders: Iterable[pathlib.Path]) -> list[dict[str, Any]]:
    """What templates/cost.html shows of these folders, each read once: {"stage", "arbiter",
    "digest", "cells": calls, cache hits, requests without an answer, tokens in and out, dollars}.
    [] where no chat model was asked.
    """
    places = dict.fromkeys(folder.resolve() for folder in folders)
    rows = [row for place in sorted(places) for row in read_usage(place)]
    return [
        {
            **{name: row[name] for name in ("stage", "arbiter", "digest")},
            "cells": [
                *(
                    f"{row[name]:,}"
                    for name in ("answered", "cached", "unanswered", "tokens_in", "tokens_out")
                ),
                _money(row),
            ],
        }
        for row in summed(rows)
    ]


def _money(row: dict[str, Any]) -> str:
    if row["dollars"] is None:
        return "-"
    return f"{row['dollars']:.2f}{' and more' if row['unpriced'] else ''}"
