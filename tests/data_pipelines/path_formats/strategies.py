"""Valid paths of every format, for hypothesis: as free as the format says, not as its reader is."""

from __future__ import annotations

from hypothesis import strategies as st

from srpo_jax.data_pipelines.path_formats.headings import SSUI
from srpo_jax.data_pipelines.path_formats.registry import make_format

_ANY = st.text(st.characters(exclude_characters="\n\r<", exclude_categories=["Cs"]), max_size=12)
# Begins with a word that is no mark of any format; its end may be white space.
LINE = _ANY.map(lambda text: f"look {text}")
BLOCK = st.lists(LINE, min_size=1, max_size=3).map("\n".join)
SENTENCE = st.text("abc ,", max_size=9).map(lambda text: f"Look {text.strip()}.")
REPLY = st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"])).filter(
    lambda text: text.strip()
)
SSUI_STEPS = st.tuples(*(LINE.map(lambda text, h=head: f"{h}: {text}") for head in SSUI))


def _some(step, least=1):
    return st.lists(step, min_size=least, max_size=5).map(tuple)


def _free_reply(step):
    return step.map(str.strip)


# name: (format, steps, replies)
VALID = {
    "lines": (make_format("lines"), _some(LINE), REPLY),
    "think": (make_format("think"), _some(BLOCK), REPLY),
    "think by line": (make_format("think", split="line"), _some(LINE), REPLY),
    "think by sentence": (make_format("think", split="sentence"), _some(SENTENCE), REPLY),
    "think, other tags": (make_format("think", markers=("◁t▷", "◁/t▷")), _some(BLOCK), REPLY),
    "ssui": (make_format("ssui"), SSUI_STEPS, REPLY),
    "llava_cot": (make_format("llava_cot"), st.tuples(BLOCK, BLOCK, BLOCK), REPLY),
    "mulberry": (make_format("mulberry"), _some(BLOCK, 3), REPLY),
    "free": (make_format("free"), _some(BLOCK), _free_reply(BLOCK)),
    "free by sentence": (make_format("free", split="sentence"), _some(SENTENCE), SENTENCE),
}
