"""Text cut into lines and steps, and the marks at the start of a line, for all formats."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# What may stand in front of a heading: quote, bullet, number, Markdown heading, bold, italic.
# All quantifiers are possessive: no text makes these expressions slow.
DECORATION = r"(?P<decoration>[ \t]*+(?:(?:[>#*_+•-]|\d{1,3}[.)])[ \t]*+)*+)"
EMPHASIS = r"[ \t]*+[*_]*+[ \t]*+"
COLON = rf"{EMPHASIS}[:：]"
ALONE = rf"{EMPHASIS}#*+[ \t]*+$"

_WORDS = r"(?:(?:final[ \t]++)?(?:reply|response|answer)|回复|答复|回答|最终回答|最终回复)"
_REPLY = re.compile(rf"{DECORATION}{_WORDS}(?:{COLON}|(?P<alone>{ALONE}))", re.IGNORECASE)
_FENCE = re.compile(r"[ \t]*+(?:```[^`]*+|~~~.*+)$")
_PARAGRAPH = re.compile(r"\n[ \t]*+\n\s*+")
_LINE = re.compile(r"\n")
# The end of a sentence: with a space behind it, but for Chinese marks, which have none.
_SENTENCE = re.compile(r"\n|(?<![.!?])[.!?]++[\"')\]*_]*+(?=[ \t])|[。！？]++[”’」』）]*+")
_NUMBER = re.compile(r"[ \t]*+\d{1,3}\.")
_ABBREVIATIONS = re.compile(r"(?i)(?<![^\W\d_])(?:e\.g|i\.e|cf|vs|mr|mrs|ms|dr|st|fig|approx)\.$")


@dataclass(frozen=True)
class Line:
    """start: its offset. fence: it opens or closes a block of code. inside: it is code."""

    start: int
    text: str
    fence: bool
    inside: bool


def walk_lines(text: str) -> Iterator[Line]:
    """The lines of a text with their offsets, and whether they stand in a fenced block of code."""
    start, inside = 0, False
    for line in text.split("\n"):
        fence = is_fence(line)
        yield Line(start, line, fence, inside and not fence)
        inside ^= fence
        start += len(line) + 1


def is_fence(line: str) -> bool:
    """Whether a line opens or closes a block of code."""
    return _FENCE.match(line) is not None


def reply_mark(line: str) -> int | None:
    """Where the reply begins in a line that announces it, else None.

    Such a line starts with reply, response or answer (in English, in any case, or Chinese) and a
    colon, whatever Markdown is around the word. As a Markdown heading or in bold the word needs
    no colon if it stands alone.
    """
    found = _REPLY.match(line)
    if found is None:
        return None
    decoration = found["decoration"]
    if found["alone"] is not None and not any(mark in decoration for mark in ("#", "**", "__")):
        return None
    return mark_end(found)


def mark_end(found: re.Match[str]) -> int:
    """Where a mark at the start of a line ends, with bold or italic signs that it closes."""
    end = found.end()
    if "*" in found.group() or "_" in found.group():
        end += len(found.string[end:]) - len(found.string[end:].lstrip("*_"))
    return end


def cut_steps(text: str, split: str, start: int = 0) -> list[tuple[int, str]]:
    """(offset, step) of the paragraphs, lines or sentences of a text, stripped.

    split: "paragraph", "line" or "sentence". start is added to the offsets. What is blank or only
    the fence of a block of code is no step.
    """
    steps, begin = [], 0
    for end in [*_ends(text, split), len(text)]:
        piece = text[begin:end]
        step = piece.strip()
        if step and not is_fence(step):
            steps.append((start + begin + piece.index(step), step))
        begin = end
    return steps


def _ends(text: str, split: str) -> Iterator[int]:
    if split != "sentence":
        pattern = _PARAGRAPH if split == "paragraph" else _LINE
        yield from (found.end() for found in pattern.finditer(text))
        return
    for found in _SENTENCE.finditer(text):
        if found.group()[0] not in ".!?" or _ends_sentence(text, found.start(), found.end()):
            yield found.end()


def _ends_sentence(text: str, mark: int, end: int) -> bool:
    """Whether a full stop (at `mark`, with what belongs to it up to `end`) ends a sentence.

    It does not behind an abbreviation or the number of a list, nor before a small letter.
    """
    if text[mark] != ".":
        return True
    head = text[max(0, mark - 12) : mark + 1].rpartition("\n")[2]
    if _NUMBER.fullmatch(head) or _ABBREVIATIONS.search(head):
        return False
    return not text[end : end + 80].lstrip(" \t")[:1].islower()
