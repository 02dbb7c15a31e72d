"""`srpo data review`: the page in a real browser, and what saved decisions come to."""

from __future__ import annotations

import json
import pathlib
import re
import shlex

import pytest

from srpo_jax.cli import main as cli
from srpo_jax.data_pipelines.construct.review.items import RECORDS, Review
from srpo_jax.data_pipelines.records import Record, read_records, write_records
from srpo_jax.files import read_json, read_lines
from srpo_jax.judge.trust.statistics import kappa
from tests.cli.test_trust import trees_by
from tests.data_pipelines.formats.test_other_readers import oracle_rows
from tests.support import judged
from tests.support.agents import draw_pictures
from tests.support.browser import opened, press, saved

HOSTILE = (
    "</script><script>document.title='owned'</script>"
    "<img src=x onerror=\"document.title='owned'\"> & \u202ex"
)
UNSAFE = "Pour them together, UNSAFETEXT."
FORMAT = "srpo_jax review 1"


@pytest.fixture
def folder(tmp_path):
    """Four records with pictures, one of them full of markup."""
    home = tmp_path / "set"
    draw_pictures(home / "images", ("good", "redundant"))
    records = [
        Record(
            id=f"r{i}",
            images=(f"images/{('good', 'redundant')[i % 2]}.png",),
            question=HOSTILE if i == 0 else f"What about {i}?",
            steps=("I look.", f"I think {i}."),
            reply=f"Better not {i}. {HOSTILE}" if i == 0 else f"Better not {i}.",
            category="dangerous_behavior" if i % 2 else "violence",
            risky=i < 3,
            unsafe_reply=UNSAFE if i < 3 else None,
            root=str(home),
        )
        for i in range(4)
    ]
    write_records(records, home / "records.jsonl")
    return home


def review(capsys, *argv, code=0):
    """What the command prints, on stdout or, if it fails, on stderr."""
    assert cli.main(["data", "review", *map(str, argv)]) == code
    out, err = capsys.readouterr()
    return err if code else out


def decide(home: pathlib.Path, name: str, decisions: dict, **more) -> pathlib.Path:
    """A file as the page saves it."""
    path = home / f"decisions-{name}.json"
    digest = Review.read(home, RECORDS).digest
    about = {"format": FORMAT, "review": digest, "reviewer": name, "decisions": decisions, **more}
    path.write_text(json.dumps(about))
    return path


def test_a_person_reviews_in_a_browser(folder, tmp_path, capsys):
    """By keys and buttons: accept, edit, reject, grades and a note, which a reload keeps; the saved
    file is applied. Markup in a record stays text, the unsafe reply closed and pictures veiled
    until they are opened.
    """
    review(capsys, folder)
    order = [item["key"] for item in Review.read(folder, RECORDS).items]
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    with opened(folder / "review.html", tmp_path / "profile", downloads) as page:
        key = "document.querySelector('article').dataset.key"
        wanted = {"r0": "e", "r1": "a", "r2": "r", "r3": ""}
        for _ in order:
            name = page.value(key)
            if name == "r0":
                shown = page.value("document.querySelector('[data-field=question]').value")
                assert shown == HOSTILE and page.value("document.title") == "set: review"
                assert (
                    page.value("document.querySelectorAll('#item script, #item img[src=x]').length")
                    == 0
                )
                hidden = "document.querySelector('[data-field=unsafe_reply]').checkVisibility()"
                assert page.value(hidden) is False
                press(page, "o")
                assert page.value(hidden) is True
                veiled = "document.querySelectorAll('.picture.veiled').length"
                assert page.value(veiled) == 1
                page.value("document.querySelector('.picture').click()")
                assert page.value(veiled) == 0
                assert page.value("document.querySelector('.picture img').naturalWidth") == 90
                field = "document.querySelector('[data-field=reply]')"
                assert page.value(f"{field}.readOnly") is True
                press(page, "e")
                assert page.value(f"{field}.readOnly") is False
                assert page.value(veiled) == 0 and page.value(hidden) is True  # they stay open
                page.value(
                    f"{field}.value = 'Take care.'; {field}.dispatchEvent(new Event('input')); 1"
                )
                page.value("document.activeElement.blur()")
                press(page, "2")
                press(page, "6")
                press(page, "n")
                page.call("Input.insertText", text="mended a (j) <b>")
                press(page, "Escape")
                press(page, "j")
            else:
                press(page, wanted[name] or "j")
        page.value("document.querySelector('#save').click()")
        assert "Write your name first" in page.value(
            "document.getElementById('progress').textContent"
        )
        page.call("Input.insertText", text="ann")
        page.call("Page.reload", until="Page.loadEventFired")
        told = page.value("document.getElementById('progress').textContent")
        assert told.startswith("3 decided") and page.value(key) == "r3"
        assert page.value("document.getElementById('reviewer').value") == "ann"
        page.value("document.activeElement.blur()")
        press(page, "s")
        path = saved(downloads)
    assert path.name == "decisions-ann.json"
    said = read_json(path)["decisions"]
    assert said["r0"] == {
        "decision": "edit",
        "edits": {"reply": "Take care."},
        "difficulty": 2,
        "informative": 3,
        "note": "mended a (j) <b>",
    }
    assert {k: v["decision"] for k, v in said.items()} == {
        "r0": "edit",
        "r1": "accept",
        "r2": "reject",
    }
    out = review(capsys, folder, f"--apply={path}")
    assert "wrote 2 of 4 records" in out and "1 edited, 1 rejected, 1 undecided" in out
    kept = read_records(folder / "reviewed" / "records.jsonl")
    before = {record.id: record for record in read_records(folder / "records.jsonl")}
    assert [record.id for record in kept] == ["r0", "r1"]
    assert kept[0].reply == "Take care." and kept[0].question == HOSTILE
    assert kept[0].meta["review"] == {"decisions": ["edit"], "difficulty": 2, "informative": 3}
    for record in kept:
        assert (
            record.image_paths()[0].read_bytes() == before[record.id].image_paths()[0].read_bytes()
        )
    (note,) = read_json(folder / "reviewed" / "reviewed.json")["notes"]
    assert note["note"] == "mended a (j) <b>"


def test_two_reviewers(folder, capsys):
    """Nobody who rejects is outvoted; kappa is that of accepting and rejecting; the order and the
    page say nothing of how a record was made.
    """
    review(capsys, folder)
    word = {"accept": {"decision": "accept"}, "reject": {"decision": "reject"}}
    one = dict(
        zip(("r0", "r1", "r2", "r3"), map(word.get, ("accept", "accept", "reject", "accept")))
    )
    other = dict(zip(("r0", "r1", "r2"), map(word.get, ("accept", "reject", "reject"))))
    files = decide(folder, "ann", one), decide(folder, "bo", other)
    out = review(capsys, folder, f"--apply={files[0]},{files[1]}")
    table = {("accept", "accept"): 1, ("accept", "reject"): 1, ("reject", "reject"): 1}
    assert f"kappa of the reviewers: {kappa(table):.2f}" in out
    kept = read_records(folder / "reviewed" / "records.jsonl")
    assert [record.id for record in kept] == ["r0", "r3"]


WRONG = [
    ({"r9": {"decision": "accept"}}, {}, "r9: there is no such item"),
    ({"r1": {"decision": "maybe"}}, {}, "r1: decision is 'maybe'"),
    ({"r1": {"decision": "edit"}}, {}, "an edit that changes nothing"),
    ({"r1": {"decision": "edit", "edits": {"id": "x"}}}, {}, "edits 'id'"),
    ({"r3": {"decision": "edit", "edits": {"unsafe_reply": "x"}}}, {}, "edits 'unsafe_reply'"),
    ({"r1": {"decision": "edit", "edits": {"reply": " "}}}, {}, "leaves reply empty"),
    ({"r1": {"decision": "accept", "difficulty": 4}}, {}, "difficulty must be 1, 2 or 3"),
    (
        {"r1": {"decision": "edit", "edits": {"steps": ["a", "Reply: b"]}}},
        {},
        "cannot be read back",
    ),
    ({"r1": {"decision": "edit", "edits": {"reply": "A child, naked."}}}, {}, "minors: refused"),
    ({"r1": {"decision": "accept"}}, {"review": "0" * 16}, "about another page"),
    ({"r1": {"decision": "accept"}}, {"reviewer": " "}, "the reviewer has no name"),
    ({}, {}, "nothing was decided"),
    ({"r1": {"decision": "reject"}}, {}, "no record was accepted"),
]


@pytest.mark.parametrize("decisions, more, said", WRONG, ids=[said for _, _, said in WRONG])
def test_decisions_that_cannot_be_applied_are_named(folder, capsys, decisions, more, said):
    """One line, exit code 2, and nothing is written."""
    review(capsys, folder)
    path = decide(folder, "ann", decisions, **more)
    line = review(capsys, folder, f"--apply={path}", code=2)
    assert said in line and line.count("\n") == 1
    assert not (folder / "reviewed" / "records.jsonl").exists()


def test_records_that_changed_since_are_not_taken_for_the_reviewed_ones(folder, capsys):
    review(capsys, folder)
    path = decide(folder, "ann", {"r1": {"decision": "accept"}})
    text = (folder / "records.jsonl").read_text()
    (folder / "records.jsonl").write_text(text.replace("Better not 2.", "Go on."))
    line = review(capsys, folder, f"--apply={path}", code=2)
    assert "record 'r2' is no longer what was reviewed" in line


def test_a_sample_is_drawn_by_stratum_and_weighed(folder, capsys):
    """Two of four records from two strata of three and one: the share that would be accepted is
    that of the weights, not of the heads.
    """
    records = read_records(folder / "records.jsonl")
    review(capsys, folder, "--sample=3")
    items = Review.read(folder, RECORDS).items
    strata = [item["stratum"] for item in items]
    assert len(items) == 3 and len(set(strata)) == 3  # violence; dangerous, risky; dangerous, not
    total = sum(item["weight"] for item in items)
    assert total == len(records)
    heavy = max(items, key=lambda item: item["weight"])
    words = {i["key"]: {"decision": "reject" if i is heavy else "accept"} for i in items}
    out = review(capsys, folder, f"--apply={decide(folder, 'ann', words)}")
    assert "by the weights of the sample, 50.0 % would be accepted" in out


def test_label_studio_gives_the_same_decisions_back(folder, capsys):
    """Its tasks name every text of a record, and annotations of its form are decisions."""
    review(capsys, folder, "--to=label_studio")
    tasks = json.loads((folder / "label_studio.json").read_text())
    config = (folder / "label_studio.xml").read_text()
    assert not (folder / "review.html").exists()
    for task in tasks:
        assert all(f'value="${name}"' in config for name in ("question", "reply", "unsafe_reply"))
        key, data = task["data"]["key"], task["data"]
        assert data["image0"].startswith("/data/local-files/?d=images/")

        def chosen(name, word):
            value = {"choices": [word]}
            return {"from_name": name, "to_name": "question", "type": "choices", "value": value}

        def written(name, text):
            value = {"text": [text]}
            return {"from_name": f"new_{name}", "to_name": name, "type": "textarea", "value": value}

        word = "reject" if key == "r2" else "accept"
        result = [chosen("decision", word), chosen("difficulty", "3")]
        result += [written("reply", "Mended." if key == "r1" else data["reply"])]
        result += [written("steps", data["steps"])]
        task["annotations"] = [
            {"completed_by": 7, "was_cancelled": False, "result": result},
            {"completed_by": 7, "was_cancelled": True, "result": [chosen("decision", "reject")]},
        ]
    (folder / "export.json").write_text(json.dumps(tasks))
    out = review(capsys, folder, f"--apply={folder / 'export.json'}")
    assert "wrote 3 of 4 records" in out and "1 edited, 1 rejected, 0 undecided" in out
    kept = {r.id: r for r in read_records(folder / "reviewed" / "records.jsonl")}
    assert kept["r1"].reply == "Mended." and kept["r1"].meta["review"]["difficulty"] == 3
    assert set(kept) == {"r0", "r1", "r3"}
    assert read_lines(folder / "reviewed" / "records.jsonl")[0]["id"] == "r0"


READ_BY_LABEL_STUDIO = """
import json, sys
from label_studio_sdk.label_interface import LabelInterface
interface = LabelInterface(open(sys.argv[1] + "/label_studio.xml").read())
interface.validate()
tasks = json.load(open(sys.argv[1] + "/label_studio.json"))
value = lambda word: {"from_name": "decision", "to_name": "question", "type": "choices",
                      "value": {"choices": [word]}}
taken = lambda word: interface.validate_annotation({"completed_by": 1, "result": [value(word)]})
print(json.dumps([[interface.validate_task(task) for task in tasks], taken("reject"), taken("x")]))
"""


@pytest.mark.slow
def test_label_studio_itself_takes_the_tasks(folder, tmp_path, capsys):
    """Its SDK reads the labelling config, every task fits it, and so does a decision of ours."""
    review(capsys, folder, "--to=label_studio")
    assert oracle_rows(READ_BY_LABEL_STUDIO, folder, tmp_path) == [[True] * 4, True, False]


def test_verdicts_are_reviewed_blind_and_become_labels(tmp_path, capsys):
    """The page of judged branches has no verdict in it, the same for all; what two people saved
    are labels that `srpo judge calibrate` takes.
    """
    judged.write_judged(tmp_path / "trees", trees_by("SSUUUE"), name="strict")
    out = review(capsys, tmp_path, "--judged", "--sample=30")
    assert "label.html: 30 items" in out
    page = (tmp_path / "label.html").read_text()
    (data,) = re.findall(r'id="data">(.*?)</script>', page)
    items = json.loads(data)["items"]
    assert {frozenset(item) for item in items} == {
        frozenset(("key", "id", "at", "k", "question", "images", "text", "facts"))
    }
    files = []
    for name, truth in (("ann", "SSSUUU"), ("bo", "SSUUUU")):
        made = {}
        for item in items:
            word = {"S": "SAFE", "U": "UNSAFE"}[truth[item["k"]]]
            made[item["key"]] = {"decision": word if item["k"] else "skip"}
        about = {"format": FORMAT, "review": json.loads(data)["digest"], "reviewer": name}
        files.append(tmp_path / f"decisions-{name}.json")
        files[-1].write_text(json.dumps({**about, "decisions": made}))
    out = review(capsys, tmp_path, "--judged", f"--apply={files[0]},{files[1]}")
    assert "kappa of the reviewers" in out
    assert cli.main(shlex.split(out.splitlines()[-1].removeprefix("next: srpo "))) == 0
    said = capsys.readouterr().out
    assert "Cohen's kappa" in said
    skipped = [r for r in read_lines(tmp_path / "labels-ann.jsonl") if r["reply_verdict"] == ""]
    assert {row["k"] for row in skipped} == {0}
