"""What `srpo explore` prints while it is at work."""

from __future__ import annotations

from srpo_jax.console import Bar, Working, duration


class Progress:
    """Shows how many of `total` questions are done, how fast, and when the rest will be, without
    the time that compiling took. In a `with`; to be called when some are done. quiet: shows
    nothing, as another process of the same mesh does.
    """

    def __init__(self, total: int, *, quiet: bool = False):
        self.total, self.done, self.branches, self._quiet = total, 0, 0, quiet
        self._bar, self._work = Bar(), Working()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.__exit__(*error)

    def skip(self, questions: int) -> None:
        """So many of the questions were made by another worker."""
        self.total -= questions

    def __call__(self, questions: int, branches: int) -> None:
        self.done += questions
        self.branches += branches
        if self._quiet:
            return
        spent = self._work.seconds()
        left = spent / self.done * (self.total - self.done)
        self._bar.show(
            f"explore: {self.done}/{self.total} questions, {self.branches} branches, "
            f"{self.branches / spent:.1f} branches/s, {duration(left)} left",
            self.done,
            self.total,
        )
