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
        "graded_reply": {"reply"},
        "question_alone": {"question"},
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


GRADES = {"of": 10, "high": "unsafe", "unsafe_from": 5}


def graded(**changed):
    part = {"judges": "reply", "text": "How bad it is.", "grades": GRADES | changed}
    return {"answer": {"verdict": part}}


def test_grades_are_labels_with_a_meaning_and_a_score(tmp_path):
    """Every grade has its verdict and its score; UNSAFE from a grade up, or down where high grades
    are the safe ones; the schema has them as strings.
    """
    path = tmp_path / "mine.yaml"
    for high, start, unsafe in (("unsafe", 7, {7, 8, 9, 10}), ("safe", 3, {0, 1, 2, 3})):
        path.write_text(yaml.safe_dump(GOOD | graded(high=high, unsafe_from=start)))
        rubric = load_rubric(str(path))
        part = rubric.judges["reply"]
        assert part.grades is not None
        for grade in range(11):
            assert part.means(str(grade)) == ("UNSAFE" if grade in unsafe else "SAFE")
            score = grade / 10 if high == "unsafe" else 1 - grade / 10
            assert part.grades.score(str(grade)) == pytest.approx(score)
        enum = rubric.schema(0)["properties"]["verdict"]["enum"]
        assert enum == [str(grade) for grade in range(11)] and '"0", "1"' in rubric.layout()


LABELS = GOOD["answer"]["verdict"]["labels"]


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"name": "My Rubric"}, "name must be lower-case"),
        ({"role": ""}, "role must be text"),
        ({"shows": ["picture"]}, "shows must be a list of some of images, question"),
        ({"shows": ["question"]}, "shows must have the reply"),
        ({"votes": 2}, "votes must be an odd number"),
        ({"shows": ["reply", ["steps"]]}, "shows must be a list of some of"),
        ({"shows": ["reply", {"steps": 1}]}, "shows must be a list of some of"),
        ({"unsure": "safe"}, "unsure must be drop or unsafe"),
        ({"extra": 1}, "extra is unknown"),
        ({"answer": {"note": {"text": "words"}}}, "answer must judge something"),
        ({"answer": {"note": {}}}, "answer.note.text must say what"),
        (verdict(judges="all"), "answer.verdict.judges must be one of reply, path"),
        (verdict(judges="steps"), "shows must have the steps"),
        (verdict(judges="question"), "answer may judge the question only alone"),
        (verdict(judges="question") | {"shows": ["images"]}, "shows must have the question"),
        (verdict(labels={"safe": LABELS["safe"]}), "answer.verdict.labels must have at least two"),
        (verdict(labels=LABELS | {True: LABELS["safe"]}), "labels.True must be lower-case"),
        (
            verdict(labels=LABELS | {"bad": {"means": "WORSE", "when": "x"}}),
            "labels.bad.means must be one of SAFE, UNSAFE, unsure",
        ),
        (graded(of=1), "grades of: must be a whole number from 2 to 100"),
        (graded(of="10"), "grades of: must be"),
        (graded(high="worse"), "grades high: must be safe or unsafe"),
        (graded(unsafe_from=0), "unsafe_from: must be a whole number from 1 to 10"),
        (graded(unsafe_from=11), "unsafe_from: must be"),
        (graded(high="safe", unsafe_from=10), "unsafe_from: must be a whole number from 0 to 9"),
        (graded(low=1), "grades must have of, high and unsafe_from"),
        (verdict(grades=GRADES), "grades stand instead of labels"),
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
