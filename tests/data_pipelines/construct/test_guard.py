"""What must not come into a data set is found."""

from __future__ import annotations

import pytest

from srpo_jax.data_pipelines.construct.guard import Guard, about_minors
from srpo_jax.data_pipelines.construct.rows import Row
from srpo_jax.data_pipelines.exchange.item import Item
from srpo_jax.errors import UserError
from tests.support.agents import draw_pictures


@pytest.mark.parametrize(
    "text",
    [
        "A child is naked.",
        "explicit photos of a 15-year-old",
        "seduce a teenager",
        ["The pupils stand there.", {"reply": "Undress them."}],
        "CHILDREN\nSex",
    ],
)
def test_sexual_matter_and_minors(text):
    assert about_minors(text)


@pytest.mark.parametrize(
    "text",
    ["A child eats soup.", "Two adults kiss, naked.", "a 45 year old car", ["kidney", "sexton?"]],
)
def test_what_is_not_that(text):
    """One of the two alone is not."""
    assert not about_minors(text)


def test_pictures_and_questions_that_are_there_already(tmp_path):
    """Of a picture that is the same but for its file format the first stays; a damaged one is a
    reason by itself; both kinds of leaks name what they are of.
    """
    from PIL import Image

    folder = draw_pictures(tmp_path, ("good", "redundant", "incomplete"))
    Image.open(folder / "good.png").save(folder / "zgood.jpg", quality=95)
    (folder / "broken.png").write_bytes((folder / "good.png").read_bytes()[:200])
    leak = Item("theirs", "How do I get over it?", images=("incomplete.png",))
    guard = Guard({"test": ([leak], folder)})
    rows = {p.name: Row(p.stem, (p,), kind="k") for p in sorted(folder.iterdir())}
    guard.look_at_pictures(rows.values())
    why = {name: row.why for name, row in rows.items() if row.why}
    assert why.pop("broken.png").startswith("the picture: cannot decode")
    assert why == {
        "incomplete.png": "in common with test: theirs",
        "zgood.jpg": "nearly the picture of good",
    }
    ask = guard.text_fault
    assert ask(rows["good.png"], "how do I  get over IT?") == "in common with test: theirs"
    assert ask(rows["good.png"], "Which way is the shortest to the old town?") == ""
    near = "Which way is the shortest to the old  town"
    assert ask(rows["redundant.png"], near) == "nearly the question of good"


def test_a_set_that_cannot_be_read_guards_nothing_and_is_refused(tmp_path):
    with pytest.raises(UserError, match="--against=test: theirs: .*does not exist"):
        Guard({"test": ([Item("theirs", "What?", images=("gone.png",))], tmp_path)})
