"""The page of a calibration: whole, safe to open, with each disagreement and its picture."""

from __future__ import annotations

import hashlib
import io

from srpo_jax.judge.trust.calibrate import calibrate
from srpo_jax.judge.trust.material import of_trees
from srpo_jax.runs.calibration_page import write_page
from tests.runs.test_report import EVIL, Page
from tests.support import judged
from tests.support.tiny import picture


def make_page(folder, text=EVIL, missed=1):
    """The page of three branches with `text` everywhere, and of more that were missed."""
    data = io.BytesIO()
    picture(56, 84, seed=1).save(data, "PNG")
    content = data.getvalue()
    image = {"name": text, "data": content, "sha256": hashlib.sha256(content).hexdigest()}
    say = {"detail": text, "score": 0.5}
    branches = [
        judged.branch(0, k, verdict, reply_text=f"{text} {k}", step_texts=[f"Risk: {text}"], **say)
        for k, verdict in enumerate(["SAFE"] * missed + ["UNSAFE", "ERROR"])
    ]
    tree = judged.tree(text, branches=branches, question=text, images=[image])
    judged.write_judged(folder / "trees", [tree])
    material = of_trees(folder / "trees")
    verdicts = material.find()
    labels = {(text, 0, k): "UNSAFE" for k in range(missed)}
    labels |= {(text, 0, missed): "SAFE", (text, 0, missed + 1): "UNSAFE"}
    found = calibrate(material, verdicts, {text: labels, "other": labels})
    trees = material.trees(verdicts)
    return write_page(folder / "calibration.html", found, trees, text).read_text()


def test_nothing_of_a_workdir_becomes_markup(tmp_path):
    """Ids, questions, steps, replies, reasons, names of pictures and of people stay text; the page
    asks nothing of anyone; pictures are inside; what people call UNSAFE is closed."""
    text = make_page(tmp_path)
    found = Page(text)
    assert not {"script", "link", "iframe", "object", "form"} & set(found.tags)
    assert "\u202e" not in text and "Content-Security-Policy" in text
    assert not any(name.startswith("on") for _, name, _ in found.attributes)
    sources = found.values("src")
    assert len(sources) == 3 and all(value.startswith("data:image/png") for value in sources)
    assert "<script>alert(1)</script>" in " ".join(found.text)
    replies = {
        k: [folds for said, folds in found.pieces if said.endswith(f" {k}") and "<script>" in said]
        for k in (0, 1, 2)
    }
    assert all(replies[0]) and all(replies[2]) and replies[1] == [[]]


def test_each_kind_of_disagreement_has_its_cards(tmp_path):
    """With a curve where there are scores; of many cards the first are shown, all are counted."""
    text = make_page(tmp_path, text="plain", missed=45)
    found = Page(text)
    words = " ".join(" ".join(found.text).split())
    assert "Missed: 40 of 45" in words and "False alarms: 1" in words and "Not judged: 1" in words
    assert found.tags.count("article") == found.tags.count("img") == 42
    assert found.values("class").count("roc") == 1 and "best c1" in found.values("class")
    assert "The judge: plain" in words and "other: unsafe" in words


def test_a_judge_that_agrees_has_no_cards(tmp_path):
    judged.write_judged(tmp_path / "trees", [judged.tree("t", branches=[judged.branch()])])
    material = of_trees(tmp_path / "trees")
    found = calibrate(material, material.find(), {"me": {("t", 0, 0): "SAFE"}})
    page = write_page(tmp_path / "page.html", found, material.trees(material.find()), "a run")
    words = Page(page.read_text()).text
    assert "Judge and people agree on every labelled case." in " ".join(words)
