"""The formats `ssui` and `mulberry`: sections under headings of their own, then the reply."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from srpo_jax.data_pipelines.path_formats.base import PathFormat, Reading, newlines
from srpo_jax.data_pipelines.path_formats.cutting import (
    ALONE,
    COLON,
    DECORATION,
    EMPHASIS,
    mark_end,
    reply_mark,
    walk_lines,
)
from srpo_jax.data_pipelines.path_formats.lines import REPLY
from srpo_jax.data_pipelines.path_formats.statuses import EMPTY_REPLY, IRREGULAR, NO_REPLY, OK

# The six headings of SSUI's paths (arXiv 2508.08926).
SSUI = (
    "Analyze Visual Context",
    "Analyze Textual Request",
    "Synthesize Visual and Textual Cues",
    "Determine Deeper Intent and Categorize Risk",
    "Evaluate Potential Consequences",
    "Formulate Safety-Aligned Response Strategy",
)
# Behind a heading: a colon, a dash, or the end of the line.
_BEHIND = rf"(?:{COLON}|[ \t]*+[*_]*+[ \t]*+[-–—](?=\s)|{ALONE})"
_SSUI = re.compile(
    rf"{DECORATION}(?:step[ \t]*+\d{{1,3}}(?:{COLON}|[.)]){EMPHASIS})?"
    rf"(?P<key>{'|'.join(map(re.escape, SSUI))}){_BEHIND}",
    re.IGNORECASE,
)
_LEAD_IN = "let's think step by step"
_MULBERRY = re.compile(
    rf"{DECORATION}(?P<key>image description|rationales?|let['’]?s think step by step\.?|"
    rf"step[ \t]*+\d{{1,3}}){_BEHIND}",
    re.IGNORECASE,
)
_FINAL = re.compile(rf"{DECORATION}(?:the )?final answer(?: is)?{_BEHIND}", re.IGNORECASE)


@dataclass
class _Section:
    """One heading in the text: its offset, its normal form, and the lines under it."""

    start: int
    key: str
    lines: list[str] = field(default_factory=list)


class HeadingFormat(PathFormat):
    """Sections in a fixed order, whatever Markdown their headings wear; blocks of code have none.

    Text in front of the first heading is left out. The reply counts only behind a section.
    """

    @abstractmethod
    def heading(self, line: str) -> tuple[str, int] | None:
        """(normal form, offset behind it) of a heading that a line begins with."""

    @abstractmethod
    def regular(self, sections: Sequence[_Section]) -> bool:
        """Whether these are the sections that there must be, in order, none of them empty."""

    @abstractmethod
    def step(self, section: _Section) -> str:
        """The text of the step that a section is; empty for one that is none."""

    def reply_start(self, line: str) -> int | None:
        """Where the reply begins in a line that announces it."""
        return reply_mark(line)

    def read(self, text: str, *, opened: bool = False) -> Reading:
        text = newlines(text)
        sections: list[_Section] = []
        reply, reply_at = None, None
        for line in walk_lines(text):
            found = None if line.inside else self.heading(line.text)
            if found:
                sections.append(_Section(line.start, found[0], [line.text[found[1] :]]))
                continue
            mark = None if line.inside or not sections else self.reply_start(line.text)
            if mark is not None:
                reply, reply_at = text[line.start + mark :].strip(), line.start
                break
            if sections:
                sections[-1].lines.append(line.text)
        status = OK if self.regular(sections) else IRREGULAR
        if not reply:
            status = NO_REPLY if reply is None else EMPTY_REPLY
        return Reading(self._steps(sections), reply or None, reply_at, status)

    def _steps(self, sections: Sequence[_Section]) -> tuple[tuple[int, str], ...]:
        """The steps with their offsets. An empty section begins the piece of the next step."""
        steps, start = [], None
        for section in sections:
            start = section.start if start is None else start
            if step := self.step(section):
                steps.append((start, step))
                start = None
        return tuple(steps)


class Ssui(HeadingFormat):
    """SSUI's six steps, each a line `Heading: text`, then a line `Reply: ...`.

    A step is read with its heading, as records have it; lines under a heading are joined by spaces.
    """

    name = "ssui"
    advice = (
        "there must be SSUI's six steps in order, each one line that begins with its heading and a "
        f"colon ({SSUI[0]}: ...); set format.kind=lines or think for other steps"
    )

    @property
    def instruction(self) -> str:
        headings = "\n".join(f"{heading}: ..." for heading in SSUI)
        return (
            "{question}\n\n"
            "Answer in seven lines: six steps of thinking, each behind its heading, and your "
            f"reply.\n{headings}\n{REPLY} ..."
        )

    def pieces(self, steps: Sequence[str], reply: str, *, opened: bool = False) -> list[str]:
        return [*(f"{self.tidied(step)}\n" for step in steps), f"{REPLY} {self.tidied(reply)}"]

    def heading(self, line: str) -> tuple[str, int] | None:
        found = _SSUI.match(line)
        if found is None:
            return None
        return next(h for h in SSUI if h.lower() == found["key"].lower()), mark_end(found)

    def regular(self, sections: Sequence[_Section]) -> bool:
        return tuple(s.key for s in sections) == SSUI and all(map(_content, sections))

    def step(self, section: _Section) -> str:
        return f"{section.key}: {_content(section)}".removesuffix(": ")


class Mulberry(HeadingFormat):
    """Mulberry's headings: image description, rationales, steps by number, the final answer.

    A path has three steps or more: the first two are the description and the rationales. Steps are
    read without their headings and may have several lines.
    """

    name = "mulberry"
    advice = (
        "there must be three steps or more, and no line of them may begin like a heading of this "
        "format or like a reply"
    )

    @property
    def instruction(self) -> str:
        return (
            "{question}\n\n"
            "Use these headings, in this order: '### Image Description:' for what the picture "
            "shows; '### Rationales:' for what matters about it and the question; "
            "'### Let's think step by step.'; below it '### Step 1:', '### Step 2:' and so on, one "
            "for each thought; '### The final answer is:' for your reply."
        )

    def pieces(self, steps: Sequence[str], reply: str, *, opened: bool = False) -> list[str]:
        headings = ["Image Description:", "Rationales:", "Let's think step by step.\n\n### Step 1:"]
        headings += [f"Step {number}:" for number in range(2, len(steps))]
        texts = [f"### {head}\n{self.tidied(step)}\n\n" for head, step in zip(headings, steps)]
        return [*texts, f"### The final answer is: {self.tidied(reply)}"]

    def heading(self, line: str) -> tuple[str, int] | None:
        found = _MULBERRY.match(line)
        if found is None:
            return None
        key = " ".join(found["key"].lower().replace("’", "'").rstrip(".").split())
        key = {"rationale": "rationales", "lets think step by step": _LEAD_IN}.get(key, key)
        return key.replace("step ", "step") if key != _LEAD_IN else key, mark_end(found)

    def reply_start(self, line: str) -> int | None:
        found = _FINAL.match(line)
        return mark_end(found) if found else reply_mark(line)

    def regular(self, sections: Sequence[_Section]) -> bool:
        named = [s for s in sections if s.key != _LEAD_IN]
        numbers = [f"step{number}" for number in range(1, len(named) - 1)]
        return (
            len(numbers) > 0
            and [s.key for s in named] == ["image description", "rationales", *numbers]
            and all(map(self.step, named))
        )

    def step(self, section: _Section) -> str:
        return "\n".join(section.lines).strip()


def _content(section: _Section) -> str:
    """The lines of a section on one line."""
    return " ".join(line.strip() for line in section.lines if line.strip())
