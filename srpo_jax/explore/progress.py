"""What `srpo explore` prints while it is at work."""

from __future__ import annotations

import time


class Progress:
    """Prints how many of `total` questions are done, how fast, and when the rest will be.

    To be called when some are done; it prints about once a second, and at the end.
    """

    def __init__(self, total: int):
        self.total, self.done, self.branches = total, 0, 0
        self.start = self.last = time.monotonic()

    def skip(self, questions: int) -> None:
        """So many of the questions were made by another worker."""
        self.total -= questions

    def __call__(self, questions: int, branches: int) -> None:
        self.done += questions
        self.branches += branches
        now = time.monotonic()
        if now - self.last < 1 and self.done < self.total:
            return
        self.last, spent = now, max(now - self.start, 1e-9)
        left = spent / self.done * (self.total - self.done)
        print(
            f"explore: {self.done}/{self.total} questions, {self.branches} branches, "
            f"{self.branches / spent:.1f} branches/s, {left:.0f} s left",
            flush=True,
        )
