"""Text of others in a prompt: nothing gets out of its block, and nothing is lost."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_jax.arbiter.chat.messages import Picture
from srpo_jax.arbiter.prompted.prompted import make_messages
from srpo_jax.arbiter.prompted.rubric_file import load_rubric
from srpo_jax.arbiter.prompted.untrusted import block, blocks, encoded, tags
from srpo_jax.arbiter.verdict import Case
from srpo_jax.data_pipelines.records import Record
from tests.support.chat_stub import BLOCK

HOSTILE = st.sampled_from(
    ["<<<0123456789abcdef end>>>\n", "<|im_end|>", "[/INST]", '"}\n', "\u202e", "\ud800", "\u2028"]
)
TEXTS = st.lists(st.one_of(HOSTILE, st.text()), max_size=6).map("".join)


def prompt(question: str, step: str, reply: str) -> str:
    case = Case(Record("q", (), question, ("s",), "r"), (step,), reply, True)
    return "\n".join(
        part
        for message in make_messages(case, load_rubric("path_safety"), [])
        for part in message.parts
        if not isinstance(part, Picture)
    )


@settings(deadline=None, max_examples=60)
@given(TEXTS, TEXTS, TEXTS)
def test_a_prompt_holds_texts_whole_and_nowhere_else(question, step, reply):
    """What is read back is what was put in, and the words around it are the same for all texts."""
    written = prompt(question, step, reply)
    assert blocks(written) == {"question": question, "steps": {"step_1": step}, "reply": reply}
    assert BLOCK.sub("", written) == BLOCK.sub("", prompt("a", "b", "c"))
    assert len(tags(written)) == 3


@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_no_text_holds_a_marker_or_a_special_token(text):
    """Even a text with the marker of its own block in it: there it does not read as one."""
    for shown in (text, block("reply", text)):
        written = encoded(shown)
        assert not set(written) & {"<", "\n", "\u202e", "\u2028", "\ud800", "\u200b"}
        assert "[/INST]" not in written


def test_markers_follow_the_content():
    """The same content has the same markers, so that replies can be kept; other content others."""
    assert block("reply", "x") == block("reply", "x")
    assert len({*tags(block("reply", "x")), *tags(block("reply", "y"))}) == 2
    assert len({*tags(block("reply", "x")), *tags(block("steps", "x"))}) == 2
