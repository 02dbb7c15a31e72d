"""Rubric files: those that come along, and what is said of wrong ones."""

from __future__ import annotations

import pytest
import yaml

from srpo_jax.arbiter.prompted.rubric import FOLDER, load_rubric, load_rubrics, shipped
from srpo_jax.errors import UserError
from tests.support import ROOT

GOOD = yaml.safe_load((FOLDER / "reply_safety.yaml").read_text())


def test_the_rubrics_that_come_along():
    """All load; each says what it judges, needs no field of a record that a test set lacks, and
    asks for evidence before the verdict.
    """
    judged = {name: set(load_rubric(name).judges) for name in shipped()}
    assert judged == {
        "reply_safety": {"reply"},
        "path_safety": {"steps", "reply"},
        "effectiveness": {"effective"},
        "three_class": {"reply"},
    }
    for name in shipped():
        rubric = load_rubric(name)
        assert rubric.reads == () and rubric.votes == 1 and rubric.unsure == "drop"
        assert list(rubric.schema(0)["required"])[-2:] == ["evidence", "verdict"]


def test_the_schema_is_in_the_strict_subset():
    """Every object names all of its keys as required and allows no other, at any depth."""
    schema = load_rubric("path_safety").schema(2)
    assert schema["required"] == ["step_1", "step_2", "evidence", "verdict"]
    objects = [schema, schema["properties"]["step_1"]]
    for found in objects:
        assert found["additionalProperties"] is False
        assert found["required"] == list(found["properties"])


def test_a_file_of_ones_own(tmp_path):
    """By its path; another byte in it is another digest; what it shows is read of the record."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(GOOD | {"name": "mine", "shows": ["reply", "unsafe_reply"]}))
    rubric, other = load_rubrics(f"{path},effectiveness")
    assert (rubric.name, rubric.reads, other.name) == ("mine", ("unsafe_reply",), "effectiveness")
    path.write_text(path.read_text() + "# a comment\n")
    assert load_rubric(str(path)).sha256 != rubric.sha256


def test_the_example_of_the_docs(tmp_path):
    page = (ROOT / "docs" / "judges.md").read_text()
    path = tmp_path / "kitchen.yaml"
    path.write_text(page.split("```yaml\n")[1].split("```")[0])
    assert set(load_rubric(str(path)).judges) == {"reply"}


def verdict(**changed):
    return {"answer": {"verdict": GOOD["answer"]["verdict"] | changed}}


LABELS = GOOD["answer"]["verdict"]["labels"]


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"name": "My Rubric"}, "name must be lower-case"),
        ({"role": ""}, "role must be text"),
        ({"shows": ["picture"]}, "shows must be a list of some of images, question"),
        ({"shows": ["question"]}, "shows must have the reply"),
        ({"votes": 2}, "votes must be an odd number"),
        ({"unsure": "safe"}, "unsure must be drop or unsafe"),
        ({"extra": 1}, "extra is unknown"),
        ({"answer": {"note": {"text": "words"}}}, "answer must judge something"),
        ({"answer": {"note": {}}}, "answer.note.text must say what"),
        (verdict(judges="all"), "answer.verdict.judges must be one of reply, path"),
        (verdict(judges="steps"), "shows must have the steps"),
        (verdict(labels={"safe": LABELS["safe"]}), "answer.verdict.labels must have at least two"),
        (verdict(labels=LABELS | {True: LABELS["safe"]}), "labels.True must be lower-case"),
        (
            verdict(labels=LABELS | {"bad": {"means": "WORSE", "when": "x"}}),
            "labels.bad.means must be one of SAFE, UNSAFE, unsure",
        ),
        (
            verdict(labels={"a": LABELS["safe"], "b": LABELS["safe"]}),
            "labels must have one for each of the two verdicts",
        ),
    ],
)
def test_what_is_wrong_is_one_line_with_file_and_key(tmp_path, changed, said):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(GOOD | changed))
    with pytest.raises(UserError) as caught:
        load_rubric(str(path))
    line = str(caught.value)
    assert line.startswith(str(path)) and said in line and "\n" not in line


@pytest.mark.parametrize("text", ["a: [", "a: 1\na: 2\n", "!!python/object:os.x {}", "just text"])
def test_what_is_no_rubric_is_one_line(tmp_path, text):
    """A key that is given twice, too: the first would be lost without a word."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_rubric(str(path))
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
