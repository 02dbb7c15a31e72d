"""What `srpo explore` prints while it is at work, and how the sampling went at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from srpo_jax.console import Bar, Working, duration, say
from srpo_jax.inference.engine.counts import Counts, roofline_share


class Progress:
    """Shows how many of `total` questions are done, how fast, and when the rest will be, without
    the time that compiling took. In a `with`; to be called when a question is done. engine: what
    samples, if anything does; its end says what it did. quiet: shows nothing, as another process of
    the same mesh does.
    """

    def __init__(self, total: int, engine: Any, *, quiet: bool = False):
        self.total, self.done, self.branches, self.distinct = total, 0, 0, 0
        self._engine, self._quiet = engine, quiet
        self._bar, self._work = Bar(), Working()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.__exit__(*error)
        if self._engine is not None and self.branches and error[0] is None and not self._quiet:
            say(f"explore: {self._sampled(self._engine.counts)}")

    def skip(self, questions: int) -> None:
        """So many of the questions were made by another worker."""
        self.total -= questions

    def __call__(self, tree: Mapping[str, Any] | None) -> None:
        """tree: of the question that is done; None when it was left out."""
        self.done += 1
        branches = tree["branches"] if tree is not None else ()
        self.branches += len(branches)
        self.distinct += len({(b["at"], tuple(b["tokens"])) for b in branches})
        if self._quiet:
            return
        # Not those of the tree: of a further part it has earlier ones, too.
        sampled = 0 if self._engine is None else self._engine.counts.branches
        spent = self._work.seconds()
        left = spent / self.done * (self.total - self.done)
        self._bar.show(
            f"explore: {self.done}/{self.total} questions, {sampled} branches, "
            f"{sampled / spent:.1f} branches/s, {duration(left)} left",
            self.done,
            self.total,
        )

    def _sampled(self, counts: Counts) -> str:
        seconds = max(counts.seconds, 1e-9)
        said = (
            f"{counts.branches} branches, {self.distinct / self.branches:.0%} distinct, "
            f"{counts.finished / max(counts.branches, 1):.0%} finished; "
            f"{counts.branches / seconds:.1f} branches/s, {counts.tokens / seconds:.0f} tokens/s, "
            f"slots in use {counts.slots_in_use:.0%}"
        )
        share = roofline_share(counts, self._engine.params)
        return said if share is None else f"{said}, {share:.0%} of the roofline"
