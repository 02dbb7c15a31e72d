"""The report page: complete, self-contained, well-formed, and safe to open."""

import json
import shutil
from html.parser import HTMLParser

import pytest

from srpo_jax.errors import UserError
from srpo_jax.runs.report.charts import label, ticks
from srpo_jax.runs.report.drawing import draw_tree
from srpo_jax.runs.report.markup import MAX_TEXT, DataUri, element, plain
from srpo_jax.runs.report.page import render, write_report
from srpo_jax.runs.report.trees import choose_trees
from srpo_jax.runs.report.twigs import make_twigs
from tests.support import judged
from tests.support.report_sample import make_workdir

VOID = {"meta", "img", "br", "hr", "link", "input"}
EVIL = '<script>alert(1)</script><img src="http://evil/x.png" onerror=alert(1)>\u202e & "quoted"'


class Page(HTMLParser):
    """Collects tags and attributes, and fails on a tag that closes another one than the open."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes {self.open[-3:]}"

    def handle_data(self, data):
        self.text.append(data)

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
    assert page.tags.count("img") == 6 + 8  # trees and answers
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
    assert "Judged by rules, set rules. Other sets of verdicts: another." in text
    assert "Where branches end" in text and "judged unsafe" in text
    shutil.rmtree(tmp_path / "verdicts")
    text = " ".join(Page(render(tmp_path)).text)
    assert "Nobody has judged these branches yet: run `srpo judge`." in text
    assert "Where branches end" not in text and "Read the reference path" in text


def test_runs_of_several_methods_are_compared(workdir, tmp_path):
    """A workdir whose methods lie in runs/METHOD-SEED gets one table of means and deviations, and
    the pictures, trees and answers of one run; a run of its own finds the trees by its config."""
    for name in ("trees", "records", "verdicts"):
        shutil.copytree(workdir / name, tmp_path / name)
    shutil.copytree(workdir / "eval" / "before", tmp_path / "eval" / "before")
    config = json.loads((workdir / "config.json").read_text())["config"]
    config["data"]["trees"] = str(tmp_path / "trees")
    for name in ("dpo-0", "srpo-0", "srpo-1"):
        run = tmp_path / "runs" / name
        shutil.copytree(workdir / "eval" / "after", run / "eval" / "after")
        (run / "config.json").write_text(json.dumps({"config": config}))
    page = Page(render(tmp_path))
    text = " ".join(page.text)
    assert "Methods compared" in text and "One run: srpo-0" in text and "2 seeds" in text
    assert page.tags.count("img") == 6 + 8
    assert "Read the reference path" in " ".join(Page(render(tmp_path / "runs" / "dpo-0")).text)


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


def test_axes_have_round_numbers():
    """Ticks are round, inside the range, few, and short enough for the margin."""
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(3, 3) == [3]
    for low, high in ((-3.7, 0.2), (0, 1e-3), (12, 99_000), (1e-9, 2e-9), (-5e6, 1)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 6 and low - 1e-12 <= min(found) and max(found) <= high + 1e-6
        assert all(len(label(value)) <= 8 for value in found)
