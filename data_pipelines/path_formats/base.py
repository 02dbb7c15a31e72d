"""What a path format is: it writes steps and a reply as pieces of text, and reads a turn back."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from srpo_jax.data_pipelines.path_formats.statuses import (
    ANSWER_BEFORE_THINKING,
    NO_THINKING,
    OK,
    UNFINISHED,
)

BARE = "{question}"  # the instruction that adds nothing
UNMERGED = 1 << 30  # `given` of a text whose steps are all kept as they are


@dataclass(frozen=True)
class FormatOptions:
    """The fields of the config's section `format`, but for its kind; each format reads some."""

    split: str = "paragraph"
    max_steps: int = 12
    open: str = "auto"
    markers: tuple[str, ...] = ("<think>", "</think>")
    strict: bool = False


@dataclass(frozen=True)
class Parsed:
    """A turn as it was read. reply: None where nothing says what it would be. status: one of
    path_formats/statuses.py.
    """

    steps: tuple[str, ...]
    reply: str | None
    status: str


@dataclass(frozen=True)
class Reading:
    """A turn as a format finds it, before steps are merged.

    steps: (offset of the step's text, its text), in order. reply_at: offset where the last piece
    begins, with the mark in front of the reply if that belongs to it; None without a reply.
    status: if the turn has ended.
    """

    steps: tuple[tuple[int, str], ...]
    reply: str | None
    reply_at: int | None
    status: str


class PathFormat(abc.ABC):
    """One way to write a path. A subclass says `name`, `instruction`, `pieces` and `read`.

    markers: texts that the tokenizer must let pass as they are when the policy writes them, and
    that its decoding must keep. opening: what the policy's turn begins with, unless the prompt
    already holds it. advice: ends the message about a record that cannot be written.
    """

    name: ClassVar[str]
    advice: ClassVar[str] = "rephrase it, or set another format.kind"
    markers: tuple[str, ...] = ()
    opening: str = ""

    def __init__(self, options: FormatOptions | None = None):
        self.options = options or FormatOptions()

    @property
    @abc.abstractmethod
    def instruction(self) -> str:
        """A short text that tells a policy how to answer, with {question} in it once."""

    @abc.abstractmethod
    def pieces(self, steps: Sequence[str], reply: str, *, opened: bool = False) -> list[str]:
        """The text of each of n steps, then of the reply. Joined they are the assistant's turn.

        A piece depends on its step and those before it, and on whether a step follows. Newlines
        belong to the end of the piece before them. The end-of-turn token follows as an id, never
        as text. opened: the prompt already holds `opening`.
        """

    @abc.abstractmethod
    def read(self, text: str, *, opened: bool = False) -> Reading:
        """What is found in a whole turn that has ended: the inverse of joining `pieces`."""

    def parse(
        self, text: str, *, finished: bool = True, opened: bool = False, given: int = 0
    ) -> Parsed:
        """The steps and the reply of a whole turn: a forced prefix and what the policy added.

        finished: False for a turn that the token limit cut. opened: the prompt already holds
        `opening`. given: the number of steps that the forced prefix holds. They stay as they are;
        the others are merged, so that there are no more than options.max_steps in all, but at
        least one besides the given ones.
        """
        reading = self.read(text, opened=opened)
        steps = merged([step for _, step in reading.steps], self.options.max_steps, given)
        reply, status = reading.reply, reading.status
        if not finished and status != ANSWER_BEFORE_THINKING:
            # Text without any tag would have been a reply; cut, it may as well be thinking.
            reply = None if status == NO_THINKING else reply
            status = UNFINISHED
        return Parsed(steps, reply, status)

    def parse_behind(
        self, steps: Sequence[str], text: str, *, finished: bool = True, opened: bool = False
    ) -> Parsed:
        """What a turn says behind the steps that it was given: its own steps and the reply.

        steps: the first ones of a reference path, which the turn begins with; text: what the policy
        added. They are read together, because what a text says can depend on what it goes on with.
        """
        # One more step, which is not used: none of the given ones is the last.
        prefix = "".join(self.pieces([*steps, ""], "", opened=opened)[: len(steps)])
        count = len(steps)
        parsed = self.parse(prefix + text, finished=finished, opened=opened, given=count)
        own = parsed.steps[count:]
        if steps and parsed.steps[count - 1 : count]:
            # Where only headings begin steps, the policy may have added to the last one.
            added = parsed.steps[count - 1].removeprefix(self.tidied(steps[-1])).strip()
            own = (added, *own) if added else own
        return Parsed(own, parsed.reply, parsed.status)

    def settings(self) -> dict[str, Any]:
        """All that decides how texts are written and read, as JSON has it."""
        fields = dataclasses.asdict(self.options)
        return {"kind": self.name, **fields, "markers": list(self.options.markers)}

    def check(self, steps: Sequence[str], reply: str) -> None:
        """ValueError, with the reason, for a path that would be read back as another one."""
        want = tuple(self.tidied(step) for step in steps)
        read = self.parse("".join(self.pieces(steps, reply)), given=UNMERGED)
        same_reply = read.reply == self.expected_reply(steps, reply)
        if read.steps == want and same_reply and read.status == OK:
            return
        for i, step in enumerate(want):
            if read.steps[i : i + 1] != (step,):
                raise ValueError(
                    f"reference.steps[{i}] cannot be read back as format.kind={self.name}: "
                    f"{self.advice}"
                )
        what = "the reference path" if same_reply else "reference.reply"
        raise ValueError(f"{what} cannot be read back as format.kind={self.name}: {self.advice}")

    def tidied(self, text: str) -> str:
        """A step or reply as it is written and read: without white space at its ends, its line
        ends as newlines.
        """
        return newlines(text).strip()

    def expected_reply(self, steps: Sequence[str], reply: str) -> str:
        """The reply that is read back from `pieces(steps, reply)`."""
        return self.tidied(reply)

    def opened_by(self, prompt: str) -> bool:
        """Whether a prompt holds `opening` already: options.open decides, and if that is "auto",
        how the prompt ends.
        """
        if not self.opening or self.options.open != "auto":
            return bool(self.opening) and self.options.open == "prompt"
        return prompt.rstrip().endswith(self.opening.strip())


def newlines(text: str) -> str:
    """The text with every line end as one newline."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def merged(steps: Sequence[str], limit: int, given: int = 0) -> tuple[str, ...]:
    """The steps, those behind the first `given` joined by newlines into groups of equal size.

    There are at most max(limit, given + 1) then; the last group may be smaller. (VisualPRM merges
    the paragraphs of a solution in this way.)
    """
    kept, own = steps[:given], steps[given:]
    room = max(1, limit - len(kept))
    size = -(-len(own) // room) or 1
    groups = ["\n".join(own[i : i + size]) for i in range(0, len(own), size)]
    return (*kept, *groups)
