"""One page on a data set: counts, duplicates and leaks are those that were put in."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from srpo_jax.data_pipelines.exchange.checking import near
from srpo_jax.data_pipelines.exchange.checking.check import as_text, check_items
from srpo_jax.data_pipelines.exchange.item import Item, pair

LONG = "How do I use the two bottles in this picture to get the floor of the bathroom really clean?"
OTHER = "Which of these mountains would be the best one for a walk with my old dog on Sunday?"


def photo(seed, size=(64, 48)):
    """Random blocks: a picture with a hash of its own."""
    rng = random.Random(seed)
    small = Image.new("RGB", (9, 8))
    small.putdata([(rng.randrange(256),) * 3 for _ in range(72)])
    return small.resize(size, Image.Resampling.BICUBIC)


def world(folder):
    """Six questions: two the same, two nearly, one with a picture that is nearly the first's."""
    folder.mkdir()
    photo(1).save(folder / "a.png")
    photo(1).save(folder / "b.jpg", quality=70)
    photo(2).save(folder / "c.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return [
        Item("1", LONG, ("a.png",), risky=True, category="violence", **pair("Yes", "No")),
        Item("2", f"  {LONG.upper()} ", ("a.png",), license="CC-BY-NC-4.0", **pair("A", "B")),
        Item("3", LONG.replace("really", "very"), ("c.png",)),
        Item("4", OTHER, ("b.jpg",), risky=False),
        Item("5", "Short?", ("broken.png",)),
        Item("6", "None?"),
    ]


def table(tables, start):
    (found,) = [table for table in tables if table.title.startswith(start)]
    return found


def test_what_was_put_in_is_found(tmp_path):
    """Exact and near duplicates of texts and pictures, a broken picture, and the counts, each by
    the ids that it is about; as text it fits a terminal.
    """
    items = world(tmp_path / "w")
    tables = check_items(items, tmp_path / "w", count=lambda t: len(t.split()), unit="words")
    assert table(tables, "The same question again").rows[0][:2] == ("1", "2")
    assert [row[:2] for row in table(tables, "Nearly the same text").rows] == [("1", "3")]
    assert table(tables, "Nearly the same picture").rows == [("1", "4")]
    assert table(tables, "Pictures that cannot be used: 1").rows[0][0] == "5"
    counts = dict(table(tables, "What is in it").rows)
    assert counts["questions"] == 6 and counts["pairs of a safe and an unsafe answer"] == 2
    kinds = table(tables, "Categories")
    assert kinds.head == ("category", "risky", "harmless", "not said")
    assert kinds.rows == [("none", 0, 1, 4), ("violence", 1, 0, 0)]
    assert ("CC-BY-NC-4.0 (no commercial use)", 1) in table(tables, "Licences").rows
    text = as_text(tables)
    assert max(map(len, text.splitlines())) < 200 and "Lengths in words" in text


def test_leaks_are_found_and_told_apart(tmp_path):
    """A question of a test set that is nearly one of these with its picture, one alone, a picture
    alone; what has nothing in common is told, too.
    """
    mine, theirs = world(tmp_path / "w"), world(tmp_path / "v")
    test = [theirs[0], Item("t", f"{OTHER} Please.", ("c.png",)), Item("u", "Else?", ("a.png",))]
    found = check_items(
        mine[:2] + mine[3:4],
        tmp_path / "w",
        count=len,
        unit="characters",
        against={"test": (test, tmp_path / "v"), "none": ([Item("x", "Nothing alike")], tmp_path)},
    )
    leaks = table(found, "In common with test: 3 of 3")
    assert {row[0]: row[1] for row in leaks.rows} == {"question and picture": 3}
    assert table(found, "In common with none: 0 of 3").rows == [("nothing", 0, "")]
    alone = check_items(
        [Item("q", LONG), Item("p", "Unlike!", ("a.png",))],
        tmp_path / "w",
        count=len,
        unit="characters",
        against={"test": (test, tmp_path / "v")},
    )
    rows = table(alone, "In common with test: 2 of 2").rows
    assert [row[:2] for row in rows] == [("picture alone", 1), ("question alone", 1)]


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=60, max_size=120), st.integers(0, 50))
def test_near_is_what_the_similarity_says(text, at):
    """Whatever the index returns has a Jaccard similarity from 0.8 on, and the same text is always
    found.
    """
    index = near.TextIndex()
    index.add(0, text)
    assert index.near(text) == 0
    other = text[:at] + "x" + text[at:]
    alike = near.jaccard(near.shingles(text), near.shingles(other))
    assert index.near(other) is None or alike >= near.NEAR_TEXT


def test_pictures_are_near_after_small_changes_only():
    """Another size and compression are; another picture is not; a picture of one colour, whose hash
    says nothing, is near none.
    """
    index = near.PictureIndex()
    first = near.picture_hash(photo(1))
    index.add(0, first)
    assert index.near(near.picture_hash(photo(1, (200, 170)))) == 0
    assert index.near(near.picture_hash(photo(2))) is None
    plain = near.picture_hash(Image.new("RGB", (50, 50), (9, 9, 9)))
    index.add(1, plain)
    assert plain == 0 and index.near(plain) is None
