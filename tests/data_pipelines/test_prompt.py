"""data_pipelines/prompt.py: settings become messages, and what must not be shown is refused."""

from __future__ import annotations

import dataclasses
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo_jax.data_pipelines.path_formats.registry import make_format
from srpo_jax.data_pipelines.prompt import (
    BARE,
    SAFETY,
    Demonstration,
    Message,
    Picture,
    Prompt,
    check_disjoint,
    make_prompt,
    question_parts,
)
from srpo_jax.data_pipelines.records import CATEGORIES, Record, read_records, write_records
from srpo_jax.errors import UserError
from tests.support.tiny import picture


def png(seed: int) -> bytes:
    file = io.BytesIO()
    picture(40, 20, seed=seed).save(file, "PNG")
    return file.getvalue()


def shown(messages: list[Message]) -> list[tuple]:
    """(role, parts ...) of every message."""
    return [(message.role, *message.joined) for message in messages]


@pytest.fixture
def demos(tmp_path):
    """Three records with a picture each; the second says where it stands."""
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    asks = ("What is it?", "Is <image> safe?", "Why?")
    records = [
        Record(f"d{i}", (f"{i}.png",), asks[i], ("I look.", "I think."), "Yes.") for i in range(3)
    ]
    write_records(records, tmp_path / "demos.jsonl")
    return tmp_path / "demos.jsonl"


def test_the_bare_question_is_one_message():
    """Without settings nothing but the question is said: pictures first, or where it says so."""
    inside, front = Picture(inside=True), Picture()
    for question, count, parts in (
        ("Why?", 0, ("Why?",)),
        ("Why?", 2, (front, front, "Why?")),
        ("A <image> or <image>", 2, ("A ", inside, " or ", inside)),
        (" <image>\nWhy?", 1, (" ", front, "\nWhy?")),
        ("", 1, (front,)),
    ):
        assert BARE.messages(question, count) == [Message("user", parts)]
    with pytest.raises(UserError, match="1 <image> markers and 2 pictures"):
        BARE.messages("<image>", 2)


def test_an_instruction_stands_around_the_question(demos):
    """It is said once in every question; braces that are not {question} are plain text."""
    prompt = make_prompt(
        make_format("lines"), system=" Be kind. ", instruction="{a} {question} {{b}}"
    )
    assert shown(prompt.messages("Is <image> safe?", 1)) == [
        ("system", "Be kind."),
        ("user", "{a} Is ", Picture(inside=True), " safe? {{b}}"),
    ]
    assert prompt.messages("Why?", 1)[1].joined == (Picture(), "{a} Why? {{b}}")
    assert prompt.messages("", 1)[1].joined == (Picture(), "{a}  {{b}}")
    assert make_prompt(make_format("lines"), instruction="none") == BARE
    auto = make_prompt(make_format("lines"))
    assert auto.before + "{question}" + auto.after == make_format("lines").instruction
    for text in ("", "no question", "{question} {question}", "{question} <image>"):
        with pytest.raises(UserError, match="prompt.instruction"):
            make_prompt(make_format("lines"), instruction=text)


@given(st.text("ab <image>\n", max_size=30), st.integers(0, 3))
def test_no_word_of_a_question_is_lost(question, pictures):
    """Whatever it is: its texts and pictures in order are the question."""
    try:
        parts = question_parts(question, pictures)
    except UserError:
        assert question.count("<image>") not in (0, pictures)
        return
    joined = "".join("<image>" if isinstance(part, Picture) else part for part in parts)
    assert joined.removeprefix("<image>" * pictures) == question.removeprefix("<image>" * pictures)
    assert sum(isinstance(part, Picture) for part in parts) == pictures
    told = Prompt(before="X", after="Y").ask(question, pictures)
    words = "".join(part for part in told if isinstance(part, str))
    assert words.count("X") == words.count("Y") == 1


def test_demonstrations_as_turns(demos):
    """The first records, each asked as the question is and answered in the path format."""
    prompt = make_prompt(make_format("lines"), instruction="{question}!", demos=demos, num_demos=2)
    assert shown(prompt.messages("And this?", 1)) == [
        ("user", Picture(), "What is it?!"),
        ("assistant", "I look.\nI think.\nReply: Yes."),
        ("user", "Is ", Picture(inside=True), " safe?!"),
        ("assistant", "I look.\nI think.\nReply: Yes."),
        ("user", Picture(), "And this?!"),
    ]
    bare = make_prompt(
        make_format("lines"), demos=demos, num_demos=2, demo_images="drop", instruction="none"
    )
    assert [m.parts[0] for m in bare.messages("Q", 0)[::2]] == ["What is it?", "Is safe?", "Q"]
    assert not bare.pictures()


def test_demonstrations_as_text(demos):
    """One message: pictures in front of each example, numbered, as a template may move them."""
    prompt = make_prompt(
        make_format("lines"), instruction="none", demos=demos, num_demos=2, demo_layout="text"
    )
    (message,) = prompt.messages("See <image>!", 1)
    kinds = ["picture" if isinstance(part, Picture) else "text" for part in message.joined]
    assert kinds == ["picture", "text", "picture", "text", "picture", "text"]
    first, second, last = message.texts
    assert "(picture 1)" in first and "What is it?" in first and "Reply: Yes." in first
    assert "(picture 2)" in second and "Is picture 2 safe?" in second
    assert second.endswith("Now answer this question (picture 3).\n\nSee ") and last == "!"
    plain = make_prompt(
        make_format("lines"),
        demos=demos,
        num_demos=2,
        demo_layout="text",
        demo_images="drop",
        instruction="none",
    )
    (message,) = plain.messages("Why?", 1)
    examples, place, question = message.joined
    assert examples == plain.shown_text() and place == Picture()
    assert question == plain.question_label() + "Why?" and "(picture" not in examples + question


def test_pictures_of_demonstrations_are_shrunk(demos):
    """To the longest side of demo_max_side, never enlarged; 0 leaves them."""
    for side, size in ((10, (10, 5)), (336, (40, 20)), (0, (40, 20))):
        prompt = make_prompt(make_format("lines"), demos=demos, num_demos=1, demo_max_side=side)
        assert [small.size for small in prompt.pictures()] == [size]


def test_settings_that_say_half_are_refused(demos, tmp_path):
    """Demonstrations without a number, a number without them, more than there are."""
    for settings, says in (
        ({"demos": demos}, "num_demos=0"),
        ({"num_demos": 2}, "num_demos=2"),
        ({"demos": demos, "num_demos": 4}, "has 3 records"),
        ({"demos": tmp_path / "none.jsonl", "num_demos": 1}, "none.jsonl"),
    ):
        with pytest.raises(UserError, match=says):
            make_prompt(make_format("lines"), **settings)


def test_a_demonstration_is_no_record_of_the_data(demos, tmp_path):
    """Found by its id and by its question and pictures, whatever the id; others are fine."""
    prompt = make_prompt(make_format("lines"), demos=demos, num_demos=2)
    records = read_records(demos)
    check_disjoint(prompt, records[2:], "data.train_records")
    check_disjoint(BARE, records, "data.train_records")
    renamed = dataclasses.replace(records[1], id="new", question="is <image>  SAFE?")
    other_picture = dataclasses.replace(renamed, images=("0.png",))
    check_disjoint(prompt, [other_picture], "data.train_records")
    for record, name in ((records[0], "d0"), (renamed, "new")):
        with pytest.raises(UserError, match=f"is record '{name}' of data.test_records"):
            check_disjoint(prompt, [records[2], record], "data.test_records")
    dropped = make_prompt(make_format("lines"), demos=demos, num_demos=2, demo_images="drop")
    with pytest.raises(UserError, match="is record 'new'"):
        check_disjoint(dropped, [renamed], "data.test_records")


def test_the_digest_names_everything_that_is_told():
    """Another text, picture, place or size is another prompt."""
    demo = Demonstration("d", "q", "a", (png(1),), ("1",))
    prompt = Prompt("s", "b", "a", (demo,))
    others = [
        prompt,
        *(dataclasses.replace(prompt, **{name: "x"}) for name in ("system", "before", "after")),
        dataclasses.replace(prompt, layout="text"),
        dataclasses.replace(prompt, max_side=10),
        dataclasses.replace(prompt, demos=()),
        dataclasses.replace(prompt, demos=(demo, demo)),
        dataclasses.replace(prompt, demos=(dataclasses.replace(demo, images=(png(2),)),)),
        dataclasses.replace(prompt, demos=(dataclasses.replace(demo, answer="x"),)),
    ]
    assert len({other.digest() for other in others}) == len(others)
    assert dataclasses.replace(prompt).digest() == prompt.digest()


def test_damaged_pictures_name_the_demonstration():
    """A file that is no picture is one error with the demonstration's name."""
    prompt = Prompt(demos=(Demonstration("d7", "q", "a", (b"no picture",)),))
    with pytest.raises(UserError, match="demonstration 'd7'"):
        prompt.pictures()


def test_the_safety_prompt_is_a_system_message():
    """By its name; another text stays what it is."""
    prompt = make_prompt(make_format("lines"), system=" safety ", instruction="none")
    assert shown(prompt.messages("Why?", 0)) == [("system", SAFETY), ("user", "Why?")]
    assert make_prompt(make_format("lines"), system="safety first").system == "safety first"


@pytest.fixture
def sorted_demos(tmp_path):
    """Twelve records: four harmless ones and four of each of two categories, without pictures."""
    kinds = (None, *CATEGORIES[:2])
    records = [
        Record(f"d{i}", (), f"Why {i}?", ("I look.",), "So.", category=kinds[i % 3])
        for i in range(12)
    ]
    write_records(records, tmp_path / "sorted.jsonl")
    return tmp_path / "sorted.jsonl"


def test_demonstrations_are_drawn_by_a_seed(sorted_demos):
    """The same ones for the same seed, others for another; without drawing the first."""

    def ids(**settings):
        prompt = make_prompt(make_format("lines"), demos=sorted_demos, num_demos=3, **settings)
        return [demo.id for demo in prompt.demos]

    assert ids() == ["d0", "d1", "d2"]
    draws = [tuple(ids(demo_select="random", demo_seed=seed)) for seed in range(8)]
    assert draws[3] == tuple(ids(demo_select="random", demo_seed=3))
    assert len(set(draws)) > 4 and all(len(set(draw)) == 3 for draw in draws)


def test_demonstrations_of_the_questions_category(sorted_demos):
    """Each question sees those of its own category, harmless ones see harmless ones; who is asked
    without a category to go by, or for one that is not there, is refused.
    """
    settings = {"demos": sorted_demos, "num_demos": 2, "demo_select": "category"}
    prompt = make_prompt(make_format("lines"), **settings)
    known = {record.id: record.category for record in read_records(sorted_demos)}
    assert len(prompt.demos) == 6
    for category in (None, *CATEGORIES[:2]):
        own = prompt.of_category(category)
        assert [known[demo.id] for demo in own.demos] == [category] * 2
        assert len(own.messages("Why?", 0)) == 5
    with pytest.raises(UserError, match=f"category {CATEGORIES[2]}, only of {CATEGORIES[0]}, "):
        prompt.of_category(CATEGORIES[2])
    with pytest.raises(UserError, match="use demo_select=first or random"):
        prompt.messages("Why?", 0)
    with pytest.raises(UserError, match="has at most 4 records of a category"):
        make_prompt(make_format("lines"), **settings | {"num_demos": 5})
    with pytest.raises(UserError, match="demonstration 'd.' of prompt.demos is record"):
        check_disjoint(prompt, read_records(sorted_demos), "the test records")
    plain = make_prompt(make_format("lines"), demos=sorted_demos, num_demos=2)
    assert plain.of_category("any") is plain
    assert len({prompt.digest(), plain.digest(), prompt.of_category(None).digest()}) == 3
