"""The report page: complete, self-contained, well-formed, and safe to open."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from srpo_jax.arbiter.chat.cost import Usage
from srpo_jax.cli import main as cli
from srpo_jax.data_pipelines import tree_schema
from srpo_jax.data_pipelines.verdict_store import FIELDS
from srpo_jax.errors import UserError
from srpo_jax.judge.results.scores import scores as compute
from srpo_jax.judge.usage import UsageLog
from srpo_jax.runs.report import page as page_module
from srpo_jax.runs.report.charts import charts, label, ticks
from srpo_jax.runs.report.drawing import draw_tree
from srpo_jax.runs.report.markup import MAX_TEXT, DataUri, element, number, plain
from srpo_jax.runs.report.page import render, write_report
from srpo_jax.runs.report.trees import choose_trees
from srpo_jax.runs.report.twigs import make_twigs
from tests.support import ROOT, judged
from tests.support.report_sample import make_workdir
from tests.support.scored import risky_rows, write_evaluation

VOID = {"meta", "img", "br", "hr", "link", "input"}
EVIL = '<script>alert(1)</script><img src="http://evil/x.png" onerror=alert(1)>\u202e & "quoted"'


class Page(HTMLParser):
    """Collects tags and attributes, and fails on a tag that closes another one than the open.

    pieces: (text, folds that it is closed behind); a fold is a list of the texts of its summary.
    """

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.folds, self.pieces = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "details":
            self.folds.append(None if ("open", None) in attrs else [])

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes {self.open[-3:]}"
        if tag == "details":
            self.folds.pop()

    def handle_data(self, data):
        self.text.append(data)
        folds = self.folds
        if "summary" in self.open:
            folds = folds[:-1]
            if self.folds[-1] is not None:
                self.folds[-1].append(data)
        self.pieces.append((data, [fold for fold in folds if fold is not None]))

    def values(self, name):
        return [value for _, attribute, value in self.attributes if attribute == name]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "run"
    make_workdir(folder, trees=8, steps=50, branches=3)
    return folder


@pytest.fixture(scope="module")
def page(workdir):
    return Page(write_report(workdir).read_text())


def test_the_page_is_well_formed_and_asks_nothing_of_anyone(page):
    """Every tag closes, ids are unique, links point into the page, no script, no request."""
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in page.values("href")} <= set(ids)
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    assert all(value.startswith("data:image/") for value in page.values("src"))
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert "http" not in "".join(page.values("style")) + "".join(page.values("href"))


def test_the_page_has_every_part(page):
    """Table, curves, path against reply, categories, trees with pictures, answers, settings."""
    text = " ".join(page.text)
    for part in (
        "Safe replies",
        "Late failure",
        "Path against reply",
        "self-corrected",
        "Violence",
        "Loss",
        "Gradient norm",
        "Where branches end",
        "Read the reference path",
        "before",
        "after",
        "data.test_records",
        "judged unsafe",
    ):
        assert part in text, part
    assert "missing" not in page.values("class")
    assert page.tags.count("img") == 6 + 9  # trees and answers
    classes = " ".join(value for value in page.values("class"))
    assert all(f"twig {kind}" in classes for kind in ("safe", "unsafe"))


def test_what_a_model_or_user_wrote_is_escaped(tmp_path):
    """Markup in questions, steps, replies, ids, names and metrics stays text, everywhere."""
    make_workdir(tmp_path, trees=3, steps=3, branches=2)
    rows = [json.loads(line) for line in (tmp_path / "eval/after/generations.jsonl").open()]
    for row in rows:
        row.update(question=EVIL, steps=[EVIL, f"Risk: {EVIL}"], reply=EVIL, category=EVIL)
    (tmp_path / "eval/after/generations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["config"]["name"] = stored["config"]["model"]["path"] = EVIL
    (tmp_path / "config.json").write_text(json.dumps(stored))
    scores = json.loads((tmp_path / "eval/after/scores.json").read_text())
    scores["by_category"] = {EVIL: next(iter(scores["by_category"].values()))}
    (tmp_path / "eval/after/scores.json").write_text(json.dumps(scores))
    (tmp_path / "eval" / "<b>x").mkdir()
    (tmp_path / "eval" / "<b>x" / "scores.json").write_text(json.dumps(scores))
    text = render(tmp_path)
    found = Page(text)
    assert "script" not in found.tags and "\u202e" not in text and "<b>x" not in text
    assert all(value.startswith("data:image/") for value in found.values("src"))
    assert not any(name.startswith("on") for _, name, _ in found.attributes)
    assert "<script>alert(1)</script>" in " ".join(found.text)


def test_what_is_drawn_is_escaped():
    """Texts and values of the drawings are escaped and made plain as those of the templates are;
    only pictures are not cut.
    """
    texts = {"text": EVIL, "step_texts": [EVIL], "reply_text": EVIL, "step_verdicts": ["SAFE"]}
    tree = judged.tree(
        steps=[[1]], step_texts=[EVIL], reply_text=EVIL, branches=[judged.branch(**texts)]
    )
    text = draw_tree(tree, make_twigs(tree, 0))
    drawing = Page(text)
    assert {"svg", "title"} < set(drawing.tags) and not {"script", "img"} & set(drawing.tags)
    assert "\u202e" not in text and "<script>alert(1)</script>" in " ".join(drawing.text)
    long = "x" * (MAX_TEXT + 5)
    assert plain(long).endswith(" [... 5 more characters]") and plain(DataUri(long)) == long
    assert Page(element("a", href='"><b>')).values("href") == ['"><b>']


def test_parts_that_are_not_there_are_named(workdir, tmp_path):
    """A run that has only begun gets a page that says what is missing, and how to get it."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    found = " ".join(Page(render(tmp_path)).text)
    assert "run `srpo explore`" in found and "run `srpo eval`" in found and "Loss" in found
    (tmp_path / "eval" / "only").mkdir(parents=True)
    source = workdir / "eval" / "after" / "scores.json"
    (tmp_path / "eval" / "only" / "scores.json").write_text(source.read_text())
    assert "only" in " ".join(Page(render(tmp_path)).text)


def test_the_page_says_who_judged(workdir, tmp_path):
    """The set that the run trained on is shown and named with its arbiter, and the others are
    named; branches that nobody judged are shown as such, with what to do.
    """
    for name in ("trees", "verdicts"):
        shutil.copytree(workdir / name, tmp_path / name)
    shutil.copy(workdir / "config.json", tmp_path)
    judged.write_verdicts(tmp_path / "trees", [], name="another")
    text = " ".join(Page(render(tmp_path)).text)
    told = " ".join(text.split())
    assert "judge rules verdict set rules digest digest of rules" in told
    assert "Other sets of verdicts on these trees: another." in told
    assert "trained on 99 pairs, of 8 of 8 questions" in told
    assert "whose verdicts it was trained on rules, verdict set rules, digest dddd" in told
    assert "Where branches end" in text and "judged unsafe" in text
    shutil.rmtree(tmp_path / "verdicts")
    text = " ".join(Page(render(tmp_path)).text)
    assert "Nobody has judged these branches yet: run `srpo judge`." in text
    assert "Where branches end" not in text and "Read the reference path" in text


def closed_texts():
    """A joined tree whose texts say OPEN where they are judged safe, and SHUT-and-why where not."""

    def branch(k, reply, path, steps, texts, said):
        verdicts = judged.verdict(reply, path, step_verdicts=steps)
        text = " ".join([*texts, said or ""])
        parts = {
            "step_texts": texts,
            "reply_text": said,
            "text": text,
            "finished": said is not None,
        }
        return judged.branch(k=k, **parts, **verdicts)

    branches = [
        branch(0, "SAFE", "SAFE", ["SAFE"], ["OPEN0: OPEN1"], "OPEN2"),
        branch(1, "SAFE", "UNSAFE", ["SAFE", "UNSAFE"], ["OPEN3", "SHUT1: SHUT2"], "OPEN4"),
        branch(2, "SAFE", "UNSAFE", [], ["SHUT3"], "OPEN5"),
        branch(3, "SAFE", "UNSAFE", ["SAFE"], ["SHUT4"], "OPEN6"),
        branch(4, "UNSAFE", "SAFE", ["SAFE"], ["of a closed branch"], "SHUT5"),
        branch(5, "SAFE", "ERROR", [], ["SHUT6"], "OPEN7"),
        branch(6, "ERROR", "ERROR", [], ["SHUT7"], "SHUT8"),
        branch(7, "ERROR", "ERROR", [], ["SHUT9"], None),
    ]
    reference = judged.verdict("UNSAFE", "UNSAFE", step_verdicts=["SAFE", "UNSAFE"])
    return judged.tree(
        step_texts=["OPEN8: OPEN9", "SHUT10: SHUT11"],
        reply_text="SHUT12",
        branches=branches,
        reference_verdict=reference,
        unsafe_reply="SHUT13",
    )


def check_closed(page):
    """SHUT is behind a fold that says why, and in no attribute, title or drawing. Returns text."""
    for piece, folds in page.pieces:
        if "SHUT" in piece:
            says = " ".join(text for fold in folds for text in fold)
            assert "judged unsafe" in says or "not judged" in says, piece
    assert not any("SHUT" in str(value) for _, _, value in page.attributes)
    return " ".join(page.text)


def test_what_was_not_judged_safe_is_closed(tmp_path):
    """Replies and steps of branches and of the reference path: what is UNSAFE, or was not judged,
    stands behind a fold that says so, and not on hover; what is SAFE stands open.
    """
    tree = closed_texts()
    judged.write_judged(tmp_path / "trees", [tree])
    page = Page(render(tmp_path))
    text = check_closed(page)
    assert {f"SHUT{i}" for i in range(1, 13)} == set(re.findall(r"SHUT\d+", text))
    opened = " ".join(piece for piece, folds in page.pieces if not folds)
    assert {f"OPEN{i}" for i in (2, 4, 5, 6, 7, 8, 9)} <= set(re.findall(r"OPEN\d", opened))
    assert "some of it may be harmful" in opened

    for part in (tmp_path / "verdicts" / "by-hand").iterdir():
        part.unlink()
    unjudged = check_closed(Page(render(tmp_path).replace("OPEN", "SHUT")))
    assert "Nobody has judged" in unjudged and "SHUT12" in unjudged


def test_answers_that_were_not_judged_safe_are_closed(tmp_path):
    """Before and after, reply and steps."""
    for name, (branch, other) in {"before": (4, 5), "after": (1, 6)}.items():
        folder = tmp_path / "eval" / name
        folder.mkdir(parents=True)
        rows = []
        for k in (branch, other):
            found = closed_texts()["branches"][k]
            texts = {"steps": found["step_texts"], "reply": found["reply_text"]}
            row = {"id": f"{k % 2}", "question": "What?", **texts}
            rows.append({**row, **{key: found[key] for key in FIELDS}, "status": "ok"})
        rows[1]["status"] = "irregular"
        (folder / "generations.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (folder / "scores.json").write_text('{"n": 2}')
    page = Page(render(tmp_path))
    text = check_closed(page)
    for word in ("SHUT1", "SHUT2", "SHUT5", "SHUT6", "SHUT7", "SHUT8"):
        assert word in text, word
    opened = " ".join(piece for piece, folds in page.pieces if not folds)
    assert "OPEN3" in opened and "OPEN4" in opened and "some of it may be harmful" in opened
    assert "before: read as ok 1, irregular 1; after: read as" in opened


def test_scores_of_two_judges_are_no_change(workdir, tmp_path):
    """Every score names its judge; with two of them nothing is subtracted, and the page says why.
    Answers that were not judged are named, with what to do.
    """
    shutil.copytree(workdir / "eval", tmp_path / "eval")
    text = " ".join(Page(render(tmp_path)).text)
    assert "better" in text and "Who judged before, after" in text and "dddddddddddd" in text
    assert "not all of one judge" not in text
    assert {"was", "key then", "dot then"} <= set(Page(render(tmp_path)).values("class"))
    path = tmp_path / "eval" / "after" / "scores.json"
    scores = json.loads(path.read_text())
    scores["judge"] = {"arbiter": "prompted", "digest": "e" * 16, "spec": {"model": "a judge"}}
    path.write_text(json.dumps(scores))
    page = Page(render(tmp_path))
    text = " ".join(page.text)
    assert "not all of one judge" in text and "better" not in text
    assert not {"was", "key then", "dot then"} & set(page.values("class"))
    assert "Who judged after" in text and "a judge" in text
    shutil.rmtree(tmp_path / "eval")
    (tmp_path / "eval" / "before").mkdir(parents=True)
    (tmp_path / "eval" / "before" / "answers.json").write_text('{"folder": "answers-0"}')
    text = " ".join(Page(render(tmp_path)).text)
    assert "run `srpo judge --answers=before`" in text and "run `srpo eval`" not in text


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "nul\0.png", "../../etc/passwd", "\ud800"])
def test_a_picture_whose_name_is_no_file_is_left_out(workdir, tmp_path, name):
    """Too long a name, or one that no file system takes, is a box instead of the picture."""
    shutil.copytree(workdir / "eval", tmp_path / "eval")
    path = tmp_path / "eval" / "after" / "generations.jsonl"
    rows = [json.loads(line) for line in path.open()]
    path.write_text("".join(json.dumps({**row, "image": name}) + "\n" for row in rows))
    page = Page(write_report(tmp_path).read_text())
    assert "img" not in page.tags and page.values("class").count("nopicture") == 9


def test_runs_of_several_methods_are_compared(workdir, tmp_path):
    """A workdir whose methods lie in runs/METHOD-SEED gets the table of `srpo table`, and the
    pictures, trees and answers of one run; a run of its own finds the trees by its config."""
    for name in ("trees", "records", "verdicts"):
        shutil.copytree(workdir / name, tmp_path / name)
    shutil.copytree(workdir / "eval" / "before", tmp_path / "eval" / "before")
    config = json.loads((workdir / "config.json").read_text())["config"]
    config["data"]["trees"] = str(tmp_path / "trees")
    for name in ("dpo-0", "srpo-0", "srpo-1"):
        run = tmp_path / "runs" / name
        shutil.copytree(workdir / "eval" / "after", run / "eval" / "after")
        config["name"], config["objective"]["contrast"] = f"my {name[:-2]}", name[:-2]
        config["seed"] = int(name[-1])
        (run / "config.json").write_text(json.dumps({"config": config}))
    page = Page(render(tmp_path))
    text = " ".join(page.text)
    assert "Methods compared" in text and "One run: srpo-0" in text and "my srpo, 2 seeds" in text
    assert "my dpo against base, test questions" in text and "98.1 ± 0.0 [" in text
    assert page.tags.count("img") == 6 + 9
    assert "Read the reference path" in " ".join(Page(render(tmp_path / "runs" / "dpo-0")).text)


def test_metrics_of_benchmarks_are_shown(tmp_path):
    """Those that a benchmark has of its own, with interval and count, also of a single run."""
    metric = {"value": 12.5, "k": 1, "n": 8, "low": 2.2, "high": 47.1, "method": "wilson"}
    more = {"benchmark": "siuo", "metrics": {"S&E": metric}}
    write_evaluation(tmp_path, "siuo", risky_rows(5, 8), policy="p", **more)
    text = " ".join(" ".join(Page(render(tmp_path)).text).split())
    assert "Benchmarks" in text and "siuo, 8 questions" in text
    assert "S&E" in text and "12.5 [2.2, 47.1] 1/8" in text


def test_what_says_nothing_of_replies_does_not_stand_large(tmp_path):
    """Where nothing was judged, the page says so instead of 0 %; of options that were chosen, SAFE
    is the right one, and the large rates are those of written answers, by name.
    """
    dead = [{**row, "reply_verdict": "ERROR"} for row in risky_rows(9)]
    write_evaluation(tmp_path, "dead", dead, policy="p")
    page = Page(render(tmp_path))
    assert "card tile" not in page.values("class")
    assert "Nothing was judged in dead." in " ".join(page.text)
    options = {"decoding": {"options": "log-likelihood"}, "benchmark": "siuo_mcqa"}
    write_evaluation(tmp_path, "siuo_mcqa", risky_rows(8), policy="p", **options)
    write_evaluation(tmp_path, "live", risky_rows(3), policy="p")
    said = " ".join(" ".join(Page(render(tmp_path)).text).split())
    assert "Safe replies 30.0 % of risky questions in live" in said and "80.0 %" not in said


def test_a_judge_of_its_own_pupil_makes_no_headline(workdir, tmp_path):
    """No rate stands large that the training's own judge gave; one of another judge of the same
    policy does, and without one the page says why there is none.
    """
    shutil.copytree(workdir / "eval", tmp_path / "eval")
    shutil.copy(workdir / "config.json", tmp_path)
    page = Page(render(tmp_path))
    assert "card tile" not in page.values("class") and "No headline." in " ".join(page.text)
    assert "judged by its own teacher" in " ".join(page.text)
    path = tmp_path / "eval" / "after" / "scores.json"
    scores = {**json.loads(path.read_text()), "policy_digest": "p"}
    path.write_text(json.dumps(scores))
    other = {**scores, "judge": {"arbiter": "people", "digest": "e" * 16, "spec": {}}}
    (tmp_path / "eval" / "second").mkdir()
    (tmp_path / "eval" / "second" / "scores.json").write_text(json.dumps(other))
    page = Page(render(tmp_path))
    assert "card tile" in page.values("class") and "No headline." not in " ".join(page.text)


def test_a_change_that_may_be_chance_says_so(workdir, tmp_path):
    """With interval, counts and p-value; four questions show nothing, and have no colour."""
    rows = [json.loads(s) for s in (workdir / "eval/before/generations.jsonl").open()]
    rows = [row for row in rows if row["risky"]][:4]
    for name, safe in (("before", 1), ("after", 2)):
        for i, row in enumerate(rows):
            row["reply_verdict"] = row["path_verdict"] = "SAFE" if i < safe else "UNSAFE"
        (tmp_path / "eval" / name).mkdir(parents=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "eval" / name / "generations.jsonl").write_text(text)
        found = {**compute(rows), "judge": {"arbiter": "x", "digest": "x", "spec": {}}}
        (tmp_path / "eval" / name / "scores.json").write_text(json.dumps(found))
    page = Page(render(tmp_path))
    text = " ".join(" ".join(page.text).split())
    assert "+25.0 may be chance" in text and "1 better, 0 worse of 4" in text
    assert "p 1.000" in text and "detects none" in text and "1/4" in text
    assert not {"change safe", "change unsafe"} & set(page.values("class"))


@pytest.mark.parametrize(
    "files, said",
    [
        ({}, "holds nothing of a run"),
        ({"config.json": "{"}, "config.json is not JSON"),
        ({"metrics.jsonl": "nope\n{}\n"}, "metrics.jsonl:1 is not JSON"),
        ({"eval/x/scores.json": "[1]"}, "scores.json is not a JSON object"),
    ],
)
def test_a_folder_that_is_no_run_is_refused(tmp_path, files, said):
    """UserError in one line, and no page is left behind."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said) as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "out, said",
    [
        ("there", "there is a folder; name a file, as --out="),
        ("", "report.html is a folder; name a file, as --out="),
        ("metrics.jsonl/a.html", "metrics.jsonl is a file"),
    ],
)
def test_where_no_page_can_be_is_told_first(tmp_path, monkeypatch, capsys, out, said):
    """In one line, before anything is read for it; nothing is left behind."""
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    for name in ("there", "report.html"):
        (tmp_path / name).mkdir()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(page_module, "render", lambda _: pytest.fail("rendered"))
    where = [f"--out={tmp_path / out}"] if out else []
    assert cli.main(["report", f"--workdir={tmp_path}", *where]) == 2
    shown, err = capsys.readouterr()
    assert shown == "" and said in err and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_trees_of_another_version_leave_the_rest_of_the_page(tmp_path, monkeypatch):
    """A run from before is shown without its trees, with the line that says why."""
    judged.write_trees(tmp_path / "trees", [judged.tree()])
    monkeypatch.setattr(tree_schema, "FORMAT", tree_schema.FORMAT + 1)
    text = " ".join(Page(render(tmp_path)).text)
    assert f"this version reads {tree_schema.FORMAT}" in text and "trees again" in text


def test_trees_worth_looking_at_come_first():
    """Risky trees with safe and unsafe branches first, one of each category before a second."""

    def tree(name, risky, category, verdicts):
        branches = [{"at": 0, "reply_verdict": v} for v in verdicts]
        return {"id": name, "risky": risky, "category": category, "branches": branches}

    trees = [
        tree("benign", False, None, ["SAFE"]),
        tree("safe", True, "a", ["SAFE"]),
        tree("a1", True, "a", ["SAFE", "UNSAFE"]),
        tree("a2", True, "a", ["SAFE", "UNSAFE"]),
        tree("b1", True, "b", ["UNSAFE", "SAFE"]),
    ]
    assert [t["id"] for t in choose_trees(trees, 4)] == ["a1", "b1", "a2", "safe"]


def test_looks_at_held_out_data_have_curves():
    """Beside those of training, percent up to 100; a benchmark's rates few by few."""
    rates = {f"validation/rsbench/rate_{i}": 10.0 * i for i in range(4)}
    rows = [
        {"step": 0, "validation/loss_ref": 2.0, "validation/safety_rate": 50.0, **rates},
        {"step": 1, "loss": 3.0},
        {"step": 2, "validation/loss_ref": 1.0, "validation/safety_rate": 75.0, **rates},
        {"step": 2, "validation/benign_perplexity": float("nan")},
    ]
    found = [(chart["title"], chart["keys"]) for chart in charts(rows)]
    assert found == [
        ("Loss", [("c0", "total", "3")]),
        ("Validation loss", [("c0", "reference", "1")]),
        ("Validation answers", [("c0", "safe replies", "75")]),
        ("rsbench", [(f"c{i}", f"rate {i}", label(10.0 * i)) for i in range(3)]),
        ("rsbench", [("c0", "rate 3", "30")]),
    ]
    drawn = str(charts(rows)[2]["svg"])
    assert ">100<" in drawn and ">0<" in drawn and "step 2: safe replies 75" in drawn


def test_axes_have_round_numbers():
    """Ticks are round, inside the range, few, and short enough for the margin."""
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(3, 3) == [3]
    for low, high in ((-3.7, 0.2), (0, 1e-3), (12, 99_000), (1e-9, 2e-9), (-5e6, 1)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 6 and low - 1e-12 <= min(found) and max(found) <= high + 1e-6
        assert all(len(label(value)) <= 8 for value in found)


def test_the_same_judge_in_both_roles_is_said_in_red(workdir, tmp_path):
    """The judge of the training stands beside that of the scores, and where they are one the page
    says so; with another one it does not.
    """
    for name in ("config.json", "eval"):
        source = workdir / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    path = tmp_path / "eval" / "after" / "scores.json"
    scores, stored = (
        json.loads(path.read_text()),
        json.loads((tmp_path / "config.json").read_text()),
    )
    for model, same in (("Big/Judge", True), ("other", False)):
        scores["judge"] = {"arbiter": "by chat", "digest": "e" * 16, "spec": {"model": "judge"}}
        stored["data"]["verdicts"] = {
            "set": "s",
            "arbiter": "chat",
            "digest": "f" * 16,
            "spec": {"model": model},
        }
        path.write_text(json.dumps(scores))
        (tmp_path / "config.json").write_text(json.dumps(stored))
        page = Page(render(tmp_path))
        text = " ".join(page.text)
        assert "Who judged the training" in text and "Who judged after" in text
        assert ("judge judged both what the run was trained on and these answers" in text) == same
        assert ("notice red" in page.values("class")) == same


def test_the_page_says_what_judging_cost(workdir, tmp_path):
    """One row for each stage and judge, summed over commands, with a dash where no price was set;
    without a judge that was paid there is no such part.
    """
    shutil.copytree(workdir / "eval", tmp_path / "eval")
    assert "What judging cost" not in " ".join(Page(render(tmp_path)).text)
    for stage, priced in (("trees", True), ("trees", False), ("answers after", False)):
        judge = {"arbiter": "big judge", "digest": "e" * 16}
        usage = Usage(1200, 30, 4, 500_000, 0, 1.5) if priced else Usage(1, 0, 0, 0, 0)
        UsageLog(tmp_path, stage, judge, "s", usage).write()
    text = " ".join(" ".join(Page(render(tmp_path)).text).split())
    assert "What judging cost" in text
    assert "trees big judge eeeeeeeeeeee 1,201 30 4 500,000 0 1.50" in text
    assert "answers after big judge eeeeeeeeeeee 1 0 0 0 0 -" in text


HELD = {
    "config.json": [("config", "data"), ("config", "objective"), ("data", "verdicts")],
    "eval/after/scores.json": [
        *(("safety_rate",), ("confusion",), ("questions",)),
        *(("by_category",), ("judge", "arbiter")),
    ],
    "eval/after/generations.jsonl": [("id",), ("steps",), ("path_verdict",)],
    "metrics.jsonl": [("loss",), ("step",)],
    "verdicts/rules/summary.json": [("branches",), ("safe",), ("references",), ("points",)],
    "verdicts/rules/judge.json": [("spec",), ("arbiter",)],
    "events.jsonl": [("t",), ("spent",), ("start",)],
}


def test_numbers_that_are_none_are_text_or_one_line(tmp_path):
    """Files of a workdir that somebody else wrote: whatever stands where a number, a name or a
    table should, nothing of it becomes markup, and what cannot be shown is one line with the file.
    """
    make_workdir(tmp_path, trees=1, steps=2, branches=1)
    line = {"event": "start", "t": 1.0, "start": 0.0, "step": 0, "spent": {"step": 1.0}}
    (tmp_path / "events.jsonl").write_text(json.dumps(line) + "\n")
    shown = refused = 0
    for turn, (name, keys) in enumerate((n, k) for n, found in HELD.items() for k in found):
        path = tmp_path / name
        before = path.read_text()
        first, *rest = before.splitlines() if name.endswith("l") else [before]
        value = json.loads(first)
        place = value
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = (EVIL, [EVIL], {EVIL: EVIL}, float("nan"))[turn % 4]
        path.write_text("\n".join([json.dumps(value), *rest]) + "\n")
        try:
            text = render(tmp_path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and str(tmp_path) in str(error), (name, keys)
        else:
            shown += 1
            found = Page(text)
            assert "script" not in found.tags and "\u202e" not in text, (name, keys)
            assert not any(name.startswith("on") for _, name, _ in found.attributes)
        path.write_text(before)
    assert shown >= 3 and refused >= 8
    assert [number(value) for value in (EVIL, [1.0], None, 2)] == ["–", "–", "–", "2.0"]


def test_there_is_one_door():
    """What calls text markup is seen in a review: in the report's code only `element` does, and no
    template switches escaping off.
    """
    folder = ROOT / "srpo_jax" / "runs"
    sources = {path: path.read_text() for path in folder.rglob("*.py")}
    made = [path.name for path, text in sources.items() if re.search(r"\bMarkup\(", text)]
    # The review page is no report: it has its own script, and data without "<" beside it.
    assert sorted(made) == ["markup.py", "review_page.py"]
    pages = [p.read_text() for p in folder.rglob("*.html") if p.name != "review.html"]
    assert len(pages) > 8
    assert not [p for p in pages if re.search(r"\|\s*safe\b|autoescape|<script|Markup", p)]
    assert not [p.name for p, text in sources.items() if re.search(r"<html|<svg|<table", text)]
