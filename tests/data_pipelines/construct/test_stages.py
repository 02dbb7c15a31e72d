"""Lists of stages: those that come with srpo_jax are whole, and every mistake in one is named."""

from __future__ import annotations

import shutil

import pytest
import yaml

from srpo_jax.data_pipelines.construct.stages import FOLDER, load_stages, shipped
from srpo_jax.data_pipelines.records import CATEGORIES
from srpo_jax.errors import UserError


@pytest.fixture
def ssui(tmp_path):
    """A copy of the list to spoil: (its contents, a function that writes and loads it)."""
    shutil.copy(FOLDER / "categories.yaml", tmp_path)
    data = yaml.safe_load((FOLDER / "ssui.yaml").read_text())

    def load():
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
        return load_stages(str(tmp_path / "mine.yaml"))

    return data, load


def test_the_lists_that_come_with_it():
    """SSUI has a kind for each category; MSR-Align twenty policies, each with an objective and
    rules.
    """
    assert shipped() == ["msr_align", "ssui"]
    assert [each["category"] for each in load_stages("ssui").kinds.values()] == list(CATEGORIES)
    policies = load_stages("msr_align").kinds.values()
    assert len(policies) == 20 and all(p["objective"] and p["rules"] for p in policies)


def test_the_digest_is_of_the_contents(ssui):
    """A copy has the digest of the original, and a word more makes it another list."""
    data, load = ssui
    assert load().digest == load_stages("ssui").digest
    data["stages"][1]["prompt"] += " Be brief."
    assert load().digest != load_stages("ssui").digest


def spoil(path, value):
    """A function that puts `value` at a place of the contents."""

    def change(data):
        *way, last = path
        for step in way:
            data = data[step]
        data[last] = value

    return change


WRONG = [
    (("starts_from",), "videos", "starts_from must be one of"),
    (("kinds",), "../secrets.yaml", "kinds must be the name of a YAML file beside"),
    (("stages", 0, "role"), "king", "stages[0].role must be one of writer"),
    (("stages", 1, "name"), "picture", "stages[1].name must be one word that no other"),
    (("stages", 1, "shows"), ["pair.verdict"], "stages[1].shows has ['pair.verdict']"),
    (("stages", 0, "shows"), ["question"], "stages[0].shows has ['question']"),
    (("stages", 3, "shows"), ["query.question", "text.question"], "stages[3].shows has"),
    (("stages", 0, "prompt"), " ", "stages[0].prompt must be text"),
    (("stages", 0, "answer", "caption"), {"text": "x"}, "answer.caption must say what"),
    (("stages", 0, "answer", "caption"), {"prose": "x"}, "answer.caption must be a text or list"),
    (("stages", 5, "answer", "steps", "count"), 0, "answer.steps must have a count"),
    (("stages", 0, "answer", "verdict", "labels"), {"safe": "x"}, "labels must be at least two"),
    (("stages", 0, "keep", 0, "is"), ["good"], "keep[0].is must be labels of that key"),
    (("stages", 0, "keep", 0, "of"), "boredom", "keep[0].of is none of dangerous_behavior"),
    (("record", "reply"), "summary.nothing", "record.reply is 'summary.nothing', which no stage"),
    (("record", "steps"), "summary.reply", "record.steps must be a list"),
    (("record", "twin"), {"question": "twin.question"}, "record.twin must have question"),
    (("record", "headings"), "roman", "record.headings must be one of ssui, none"),
]


@pytest.mark.parametrize("path, value, said", WRONG, ids=[said[:40] for _, _, said in WRONG])
def test_a_mistake_is_named_with_file_and_key(ssui, tmp_path, path, value, said):
    data, load = ssui
    spoil(path, value)(data)
    with pytest.raises(UserError) as error:
        load()
    assert str(error.value).startswith(f"{tmp_path / 'mine.yaml'}: ") and said in str(error.value)


def test_a_key_that_is_given_twice_is_no_list(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: a\nname: b\n")
    with pytest.raises(UserError, match="name is given twice"):
        load_stages(str(tmp_path / "mine.yaml"))
