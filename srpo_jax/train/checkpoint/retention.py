"""Which steps of a run stay on disk: the newest, and those with the best metric."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from srpo_jax.config.sections import BEST_METRICS
from srpo_jax.train.checkpoint.folder import open_folder
from srpo_jax.train.checkpoint.seal import Damaged, read_meta


@dataclasses.dataclass
class Keep:
    """orbax's preservation policy: the `newest` steps and the `best` ones by score."""

    newest: int
    best: int
    metric: str
    scores: dict[int, float]  # more is better; a step that has none is never among the best

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Which of orbax's checkpoints, oldest first, stay."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.newest :], *ranked(steps, self.scores)[: self.best]}
        return [step in kept for step in steps]

    def note(self, step: int, metrics: dict[str, float]) -> None:
        """Takes the step's score from its metrics, if they have it."""
        if self.metric in metrics:
            self.scores[step] = BEST_METRICS[self.metric] * metrics[self.metric]


def ranked(steps: Sequence[int], scores: dict[int, float]) -> list[int]:
    """The steps that have a score, best first; of equals the later one."""
    known = (step for step in steps if step in scores)
    return sorted(known, key=lambda step: (scores[step], step), reverse=True)


def keep_of(directory: str | os.PathLike, newest: int, best: int, metric: str) -> Keep:
    """The policy, with the scores of the steps on disk whose meta can be read."""
    keep, folder = Keep(newest, best, metric, {}), open_folder(directory)
    for step in folder.steps():
        with contextlib.suppress(Damaged, OSError):
            meta = read_meta((folder / str(step)).path, step)
            keep.note(step, meta.get("metrics", {}))
    return keep
