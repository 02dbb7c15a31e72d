"""The format `llava_cot`: LLaVA-CoT's four sections between tags (arXiv 2411.10440)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from srpo_jax.data_pipelines.path_formats.base import PathFormat, Reading, newlines
from srpo_jax.data_pipelines.path_formats.statuses import EMPTY_REPLY, IRREGULAR, NO_REPLY, OK

SECTIONS = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
_OPEN = re.compile(rf"<({'|'.join(SECTIONS)})>", re.IGNORECASE)
_TAG = re.compile(rf"</?(?:{'|'.join(SECTIONS)})>", re.IGNORECASE)


class LlavaCot(PathFormat):
    """Three steps (summary, caption, reasoning), then the conclusion, which is the reply.

    Each section begins at its tag; one that is not closed ends where the next begins. The
    conclusion runs to the end of the turn, because a user sees what stands behind it too.
    """

    name = "llava_cot"
    advice = "there must be three steps (summary, caption, reasoning) without the format's tags"
    markers = tuple(f"<{slash}{name}>" for name in SECTIONS for slash in ("", "/"))

    @property
    def instruction(self) -> str:
        return (
            "{question}\n\n"
            "Answer in four parts, each between its tags: <SUMMARY> how you will go about it "
            "</SUMMARY> <CAPTION> what the picture shows </CAPTION> <REASONING> your thinking, "
            "and what could follow </REASONING> <CONCLUSION> your reply </CONCLUSION>"
        )

    def pieces(self, steps: Sequence[str], reply: str, *, opened: bool = False) -> list[str]:
        def part(name, text):
            return f"<{name}>{self.tidied(text)}</{name}>"

        texts = [part(name, step) + "\n\n" for name, step in zip(SECTIONS[:-1], steps)]
        return [*texts, part(SECTIONS[-1], reply)]

    def read(self, text: str, *, opened: bool = False) -> Reading:
        text = newlines(text)
        steps, names = [], []
        tags = list(_OPEN.finditer(text))
        ends = [tag.start() for tag in tags[1:]] + [len(text)]
        for tag, end in zip(tags, ends):
            name = tag[1].upper()
            names.append(name)
            if name == SECTIONS[-1]:
                reply = _without_closing(text[tag.end() :], name)
                regular = tuple(names) == SECTIONS and len(steps) == 3 and not _TAG.search(reply)
                status = EMPTY_REPLY if not reply else OK if regular else IRREGULAR
                return Reading(tuple(steps), reply or None, tag.start(), status)
            if step := _without_closing(text[tag.end() : end], name):
                steps.append((tag.start(), step))
        return Reading(tuple(steps), None, None, NO_REPLY)


def _without_closing(text: str, name: str) -> str:
    """The text of a section without the first closing tag of its name."""
    return re.sub(f"</{name}>", "", text, count=1, flags=re.IGNORECASE).strip()
