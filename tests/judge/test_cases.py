"""From trees to cases: whole paths, and of the record only what the judge says it reads."""

from __future__ import annotations

import dataclasses
import hashlib

from srpo_jax.arbiter.contract import reduced
from srpo_jax.data_pipelines.tree_schema import record_of
from srpo_jax.judge.asking import READABLE
from srpo_jax.judge.cases import cases_of_tree, once
from tests.support.judged import branch, plain, tree

IMAGE = {"name": "a.png", "sha256": hashlib.sha256(b"z").hexdigest(), "data": b"z"}
FULL = {
    "images": [IMAGE],
    "category": "violence",
    "risky": True,
    "unsafe_reply": "Sure.",
    "source": "web",
    "license": "CC0",
    "meta": {"scene": "s"},
}


def whole(**changes) -> dict:
    branches = [
        branch(0, 0, None, step_texts=["x", "y", "z"], reply_text="r0"),
        branch(1, 0, None, step_texts=["y"], reply_text="r1"),
        branch(1, 1, None, finished=False),
    ]
    return plain(tree(**{"branches": branches, **FULL, **changes}))


def test_a_case_is_a_whole_path():
    """The reference path first; then each branch behind the steps that it was sampled after, with
    the pictures' bytes; what has no end is left out.
    """
    cases = [case for _, case in cases_of_tree(whole(), ())]
    assert [(case.steps, case.reply) for case in cases] == [
        (("a", "b"), "c"),
        (("x", "y", "z"), "r0"),
        (("a", "y"), "r1"),
    ]
    assert all(case.images == (b"z",) and case.finished for case in cases)
    roots = whole(
        steps=[], reply=[], step_texts=[], reply_text="", branches=[whole()["branches"][0]]
    )
    assert [case.reply for _, case in cases_of_tree(roots, ())] == ["r0"]


def test_an_arbiter_sees_what_it_says_it_reads():
    """Every other field of the record is blank, so that no verdict can depend on what its key
    leaves out; each that is read is shown, and is in the key.
    """
    record = record_of(whole())
    blank = reduced(record, ())
    assert (blank.id, blank.question, blank.images) == (record.id, record.question, record.images)
    fields = {field.name for field in dataclasses.fields(record)}
    assert fields == {*READABLE, "id", "question", "images", "root"}
    assert not any(getattr(blank, name) for name in READABLE)
    plain_keys = [key for key, _ in cases_of_tree(whole(), ())]
    for name in READABLE:
        shown = reduced(record, (name,))
        assert getattr(shown, name) == getattr(record, name) and getattr(shown, name)
        assert not any(getattr(shown, other) for other in READABLE if other != name)
        keys = [key for key, _ in cases_of_tree(whole(), (name,))]
        assert not set(keys) & set(plain_keys)


def test_equal_contents_are_one_case():
    """In the order of their first occurrence; a record's id is no part of the content, its pictures
    are.
    """
    two = [*cases_of_tree(whole(), ()), *cases_of_tree(whole(id="other"), ())]
    assert len(two) == 6 and list(once(two)) == [key for key, _ in two[:3]]
    data = b"another"
    image = {**IMAGE, "data": data, "sha256": hashlib.sha256(data).hexdigest()}
    assert len(once([*two, *cases_of_tree(whole(images=[image]), ())])) == 6
