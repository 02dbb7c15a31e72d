"""Rubric files: those that come along, and what is said of wrong ones."""

from __future__ import annotations

import pytest
import yaml

from srpo_jax.arbiter.prompted.rubric_file import FOLDER, load_rubric, load_rubrics, shipped
from srpo_jax.errors import UserError
from tests.support import ROOT

GOOD = yaml.safe_load((FOLDER / "reply_safety.yaml").read_text())
OF_BENCHMARKS = {
    "rsbench": {"steps", "reply", "effective"},
    "siuo_safety": {"reply"},
    "siuo_effectiveness": {"effective"},
    "refusal": {"reply"},
    "refusal_benign": set(),
    "mssbench": {"reply"},
    "goal_safety": {"reply"},
    "safebench_juror": {"reply"},
    "safemlrm_thinking": {"path"},
    "safemlrm_answer": {"reply"},
    "safemlrm_whole": set(),
}


def test_the_rubrics_that_come_along():
    """All load; each says what it judges, and asks for evidence before the verdict. Those that are
    not of one benchmark need no field of a record that a test set lacks.
    """
    judged = {name: set(load_rubric(name).judges) for name in shipped()}
    assert judged == {
        "reply_safety": {"reply"},
        "path_safety": {"steps", "reply"},
        "effectiveness": {"effective"},
        "three_class": {"reply"},
        "graded_reply": {"reply"},
        "question_alone": {"question"},
        **OF_BENCHMARKS,
    }
    for name in shipped():
        rubric = load_rubric(name)
        keys = list(rubric.schema(0)["required"])
        assert "evidence" in keys[:-1] and rubric.votes == 1 and rubric.unsure == "drop"
        if name not in OF_BENCHMARKS:
            assert rubric.reads == () and keys[-2:] == ["evidence", "verdict"]


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


RATED = {"rating": {"text": "How safe.", "grades": {"of": 5, "first": 1, "high": "safe"}}}


def test_grades_may_stand_beside_the_verdict(tmp_path):
    """Then they are the score and kept as a label, and judge nothing by themselves."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(GOOD | {"answer": GOOD["answer"] | RATED}))
    part = load_rubric(str(path)).graded
    assert part is not None and part.grades is not None and part.about == "rating"
    assert [label.name for label in part.labels] == ["1", "2", "3", "4", "5"]
    assert [part.grades.score(str(n)) for n in (1, 3, 5)] == [1.0, 0.5, 0.0]
    assert {part.means(label.name) for label in part.labels} == {None}


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
        ({"asks": "all"}, "asks must be risky or benign"),
        ({"shows": ["reply", "meta."]}, "shows must be a list of some of"),
        ({"answer": {"reply": {"labels": {}}}}, "answer.reply is the name of what is judged"),
        ({"answer": {"tone": GOOD["answer"]["verdict"] | {"judges": None}}}, "without judges only"),
        (
            verdict(labels=LABELS | {"bad": {"means": {"risky": "SAFE"}, "when": "x"}}),
            "labels.bad.means must be one word, or have risky and benign",
        ),
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
        (graded(first=2), "grades first: must be 0 or 1"),
        ({"answer": RATED | GOOD["answer"] | {"more": RATED["rating"]}}, "must have grades once"),
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


KEPT = {"tone": {"labels": {"kind": {"when": "it is kind"}, "cold": {"when": "it is not"}}}}


def test_labels_that_judge_nothing_are_asked_and_kept(tmp_path):
    """They stand in schema and layout, also where labels alone are left, and mean nothing."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(GOOD | {"answer": KEPT | GOOD["answer"]}, sort_keys=False))
    rubric = load_rubric(str(path))
    assert set(rubric.judges) == {"reply"}
    assert rubric.schema(0)["properties"]["tone"]["enum"] == ["kind", "cold"]
    assert '"cold": it is not' in rubric.layout()
    assert [part.about for part in rubric.labels_only().parts] == ["tone", "reply"]


TWOFOLD = {"complies": {"means": {"risky": "UNSAFE", "benign": "SAFE"}, "when": "it does it"}}


def test_what_a_label_means_may_depend_on_the_question(tmp_path):
    """The judge is asked the same; then risky belongs to what is read, and must be known."""
    refuses = {"refuses": {"means": "SAFE", "when": "it declines"}}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(GOOD | verdict(labels=TWOFOLD | refuses)))
    rubric = load_rubric(str(path))
    assert rubric.reads == ("risky",)
    risky, benign = rubric.for_question(True), rubric.for_question(False)
    assert risky and benign and risky.layout() == benign.layout()
    assert risky.judges["reply"].means("complies") == "UNSAFE"
    assert benign.judges["reply"].means("complies") == "SAFE"
    with pytest.raises(ValueError, match="must know whether the question is risky"):
        rubric.for_question(None)


def test_a_rubric_may_be_asked_about_some_questions_alone(tmp_path):
    """Two that judge the same may stand beside each other if no question is asked by both."""
    for risk in ("risky", "benign"):
        text = yaml.safe_dump(GOOD | {"name": f"of_{risk}", "asks": risk})
        (tmp_path / f"{risk}.yaml").write_text(text)
    both = f"{tmp_path}/risky.yaml,{tmp_path}/benign.yaml"
    of_risky, of_benign = load_rubrics(both)
    assert of_risky.for_question(False) is None and of_benign.for_question(False) is of_benign
    assert of_risky.reads == ("risky",)
    with pytest.raises(UserError, match="both judge the reply"):
        load_rubrics(f"{both},reply_safety")
    with pytest.raises(UserError, match="judges no reply of benign questions"):
        load_rubrics(f"{tmp_path}/risky.yaml")
