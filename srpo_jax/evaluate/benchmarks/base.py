"""What a safety benchmark is: it reads its items, says who judges the answers, and counts."""

from __future__ import annotations

import abc
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from srpo_jax.arbiter.verdict import Arbiter
from srpo_jax.data_pipelines.records import Record
from srpo_jax.judge.results.intervals import Rate

Row = Mapping[str, Any]


class Published(NamedTuple):
    """Figures that others printed, in percent by the names of our rates. source: where."""

    model: str
    figures: Mapping[str, float]
    source: str


class Benchmark(abc.ABC):
    """One benchmark. A subclass says `records` and `measure`, and of itself:

    name, title: for people, in a few words. source: where its data is to be had. license: of the
    data. layout: what the user's folder must hold. protocol: whose rules are followed. departures:
    where and why they are not. published: figures to compare with. rubrics: by which a judge that
    asks a chat model judges, as judge.rubric; "" for a benchmark with an arbiter of its own.
    tested: those of its rates of which `srpo table` tests what changed: shares of the same answers
    or questions whatever is answered, of which more is better; (): the rates that all evaluations
    have. samples, temperature: how its protocol answers, used unless the config says otherwise.
    own_data: items that come with srpo_jax.
    """

    name: str
    title: str
    source: str
    license: str
    layout: str
    protocol: str
    departures: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()
    rubrics: str = "reply_safety"
    tested: Sequence[str] = ()
    samples: int = 1
    temperature: float = 0.0
    own_data: pathlib.Path | None = None

    @abc.abstractmethod
    def records(self, data: pathlib.Path, pictures: pathlib.Path) -> list[Record]:
        """Its questions, from the user's folder (or file). Pictures that have no file of their own
        there are written below the folder `pictures`. Errors: UserError for anything that is
        missing or wrong, with its place.
        """

    @abc.abstractmethod
    def measure(self, rows: Sequence[Row]) -> dict[str, Rate]:
        """Its rates, of rows of generations.jsonl: several of a question are its samples. What is
        ERROR is never a good answer: it counts as a miss where more is better, and is left out
        where less is.
        """

    def choices(self, record: Record) -> tuple[str, ...]:
        """The texts of which the policy has to choose the likeliest one; (): it writes."""
        return ()

    def arbiter(self) -> Arbiter | None:
        """Who judges, where that is no matter of opinion; None: whom the config names."""
        return None
