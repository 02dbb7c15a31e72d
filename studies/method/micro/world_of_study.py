"""The micro world as the protocol wants it."""

from __future__ import annotations

import pathlib
from typing import Any

from studies.method.micro import run
from studies.method.micro.data import Cell
from studies.method.micro.methods import METHODS
from studies.method.micro.recipes import Recipe
from studies.method.protocol import Outcome, Setting


class Micro:
    """name, methods, cells, run: see protocol.World. folder: keeps the base policy."""

    name = "micro"
    methods = METHODS
    cells = {
        "scarce": Cell(questions=64, references=0.25),
        "all": Cell(questions=64, references=1.0),
        "wrong": Cell(questions=64, references=1.0, wrong=0.3),
        "tenth": Cell(questions=64, references=0.1),
        "few": Cell(questions=16, references=1.0),
        "noisy": Cell(questions=64, references=0.25, flips=0.1),
        "common": Cell(questions=64, references=0.25, common=True),
    }

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def run(
        self, setting: Setting, cell: Any, seed: int, splits: tuple[str, ...]
    ) -> dict[str, Outcome]:
        return run.run(self.folder, Recipe(**setting), cell, seed, splits)
