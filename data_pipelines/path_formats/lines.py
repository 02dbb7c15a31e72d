"""The format `lines`: one step a line, then a line that announces the reply."""

from __future__ import annotations

from collections.abc import Sequence

from srpo_jax.data_pipelines.path_formats.base import Parsed, PathFormat, Reading, newlines
from srpo_jax.data_pipelines.path_formats.cutting import reply_mark, walk_lines
from srpo_jax.data_pipelines.path_formats.statuses import EMPTY_REPLY, NO_REPLY, OK

REPLY = "Reply:"


class Lines(PathFormat):
    """One line a step, then "Reply: ...", which runs to the end of the turn.

    The reader takes any usual announcement of a reply (cutting.reply_mark) outside blocks of code,
    the first one; steps and reply lose white space at their ends. With options.strict it takes
    exactly "Reply:" at the start of a line, everything else stays as it is, and nothing is merged.
    """

    name = "lines"
    advice = (
        "a step is one line there, no fence, and does not begin like a reply (Reply:, Answer:); "
        "set format.kind=think for steps of several lines"
    )

    @property
    def instruction(self) -> str:
        return (
            "{question}\n\n"
            "Think before you answer, and write each step of your thinking on a line of its own: "
            "what the picture shows, what is asked, what the two mean together, and what could "
            f'follow. Then start a new line with "{REPLY}" and write your reply behind it.'
        )

    def pieces(self, steps: Sequence[str], reply: str, *, opened: bool = False) -> list[str]:
        lines = [f"{self.tidied(step)}\n" for step in steps]
        return [*lines, f"{REPLY} {self.tidied(reply)}"]

    def parse(
        self, text: str, *, finished: bool = True, opened: bool = False, given: int = 0
    ) -> Parsed:
        given = len(text) if self.options.strict else given
        return super().parse(text, finished=finished, opened=opened, given=given)

    def tidied(self, text: str) -> str:
        return text if self.options.strict else super().tidied(text)

    def read(self, text: str, *, opened: bool = False) -> Reading:
        if self.options.strict:
            return _read_strict(text)
        text = newlines(text)
        steps = []
        for line in walk_lines(text):
            mark = None if line.inside else reply_mark(line.text)
            if mark is not None:
                reply = text[line.start + mark :].strip()
                status = OK if reply else EMPTY_REPLY
                return Reading(tuple(steps), reply or None, line.start, status)
            if not line.fence and (step := line.text.strip()):
                steps.append((line.start + line.text.index(step), step))
        return Reading(tuple(steps), None, None, NO_REPLY)


def _read_strict(text: str) -> Reading:
    """The first line that starts with "Reply:" starts the reply, which may be empty."""
    steps = []
    for line in walk_lines(text):
        if line.text.startswith(REPLY):
            reply = text[line.start + len(REPLY) :].removeprefix(" ")
            status = OK if reply.strip() else EMPTY_REPLY
            return Reading(tuple(steps), reply, line.start, status)
        if line.text.strip():
            steps.append((line.start, line.text))
    return Reading(tuple(steps), None, None, NO_REPLY)
