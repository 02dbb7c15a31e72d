"""The micro world as the protocol wants it, and its cells by the words that they are named by."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

from studies.method.micro import run
from studies.method.micro.data import Cell
from studies.method.micro.methods import METHODS
from studies.method.micro.recipes import Recipe
from studies.method.protocol import Method, Outcome, Setting

WORDS: dict[str, dict[str, Any]] = {
    "few": {"questions": 16},
    "scarce": {"references": 0.25},
    "tenth": {"references": 0.1},
    "wrong": {"wrong": 0.3},
    "common": {"common": True},
    "noisy": {"flips": 0.1},
}


def cell_of(name: str) -> Cell:
    """Of words of WORDS with "-" between them; "all" is the cell that none changes."""
    words = [] if name == "all" else name.split("-")
    return Cell(**{field: value for word in words for field, value in WORDS[word].items()})


def _grid(*words: str) -> list[str]:
    """Names of all cells that some of the words make."""
    some = itertools.chain.from_iterable(
        itertools.combinations(words, size) for size in range(len(words) + 1)
    )
    return ["-".join(each) or "all" for each in some]


class Micro:
    """name, methods, cells, run: see protocol.World. folder: keeps the base policy."""

    name = "micro"
    cells = {
        name: cell_of(name)
        for name in ("scarce", "tenth", *_grid("few", "wrong", "common"), "scarce-noisy")
    }

    def __init__(self, folder: pathlib.Path, methods: Mapping[str, Method] = METHODS):
        self.folder, self.methods = folder, methods

    def run(
        self, setting: Setting, cell: Any, seed: int, splits: tuple[str, ...]
    ) -> dict[str, Outcome]:
        return run.run(self.folder, Recipe(**setting), cell, seed, splits)
