"""The switches of SSUI-mini as a source of records, and how they are spelled.

`wrong=0.3,steps=8,style=common`: names and values, in any order, each at most once.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from srpo_jax.data_pipelines.ssui_mini.reasoning_paths import HEADINGS, WORDINGS


@dataclass(frozen=True)
class Options:
    """How a split is drawn. ValueError for a value that is not allowed."""

    wrong: float = 0.0  # share of the risky references that lose sight of the risk, 0 to 1
    steps: int = len(HEADINGS)  # of a reference path: 6, or up to 12 with a check after a step
    style: str = "rare"  # the wording of references, of reasoning_paths.WORDINGS
    variants: int = 2  # pictures of each risky combination
    seed: int = 0  # of the pictures, the order, and which references are wrong

    def __post_init__(self):
        low, high = len(HEADINGS), 2 * len(HEADINGS)
        if not 0 <= self.wrong <= 1:
            raise ValueError(f"wrong={self.wrong} is a share, from 0 to 1")
        if not low <= self.steps <= high:
            raise ValueError(f"steps={self.steps} is not from {low} to {high}")
        if self.style not in WORDINGS:
            raise ValueError(f"style={self.style} is not one of {', '.join(WORDINGS)}")
        if self.variants < 1:
            raise ValueError(f"variants={self.variants} is less than 1")

    @property
    def wording(self) -> int:
        """The index of the style in reasoning_paths.WORDINGS."""
        return WORDINGS.index(self.style)

    @property
    def num_checks(self) -> int:
        """How many steps of a path are followed by a check."""
        return self.steps - len(HEADINGS)

    def spelled(self) -> str:
        """What parse_options reads back, in one fixed form; defaults are left out."""
        given = [
            f"{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return ",".join(given)


DEFAULTS = Options()


def parse_options(text: str) -> Options:
    """The options that a text spells; "" spells the defaults. ValueError says what is wrong."""
    fields = {field.name: type(field.default) for field in dataclasses.fields(Options)}
    found = {}
    for part in text.split(",") if text else ():
        name, equals, value = part.partition("=")
        if name not in fields or not equals:
            raise ValueError(f"{part!r} is not NAME=VALUE with one of {', '.join(fields)}")
        if name in found:
            raise ValueError(f"{name} is given twice")
        try:
            found[name] = fields[name](value)
        except ValueError:
            raise ValueError(f"{part}: {value!r} is not a number") from None
    if not math.isfinite(found.get("wrong", 0.0)):
        raise ValueError(f"wrong={found['wrong']} is a share, from 0 to 1")
    return Options(**found)
