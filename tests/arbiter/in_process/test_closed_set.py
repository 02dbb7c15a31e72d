"""srpo_jax/arbiter/in_process/closed_set.py: what is written, what is compared, what is chosen."""

from __future__ import annotations

import json

import numpy as np
import pytest

from srpo_jax.arbiter.chat.messages import ChatReply
from srpo_jax.arbiter.in_process.closed_set import Filling, form_of, split_choices
from srpo_jax.arbiter.prompted.answers import Answer, read_answer
from srpo_jax.arbiter.prompted.rubric_file import load_rubric, shipped
from srpo_jax.errors import UserError


def test_the_answer_is_the_json_that_the_schema_asks_for():
    """Whatever labels are chosen, a rubric's parser reads exactly them back, for every rubric."""
    for name in shipped():
        rubric = load_rubric(name).labels_only()
        for pick in (0, -1):
            filling = Filling(rubric.schema(2), lambda text: list(text.encode()))
            while filling.open:
                texts = filling.question()[1]
                scores = np.full(len(texts), -2.0)
                scores[pick] = -1.0
                filling.choose(scores)
            answer = read_answer(ChatReply(text=filling.answer()), rubric, 2)
            assert isinstance(answer, Answer)
            for subject, label in answer.labels.items():
                part = next(part for part in rubric.parts if part.about == subject)
                assert label == part.labels[pick].name
            assert len(answer.steps) == (2 if "steps" in rubric.judges else 0)
            assert "".join(token for token, _ in filling.tokens()) == filling.answer()


def test_texts_are_cut_to_what_tells_them_apart():
    """The common beginning is given; of the common end one token stays, which ends the label."""
    given, texts = split_choices([[1, 2, 7, 9, 4], [1, 2, 7, 8, 9, 4], [1, 2, 5, 9, 4]])
    assert given.tolist() == [1, 2]
    assert [text.tolist() for text in texts] == [[7, 9], [7, 8, 9], [5, 9]]
    given, texts = split_choices([[1, 2], [1, 3]])
    assert (given.tolist(), [t.tolist() for t in texts]) == ([1], [[2], [3]])
    with pytest.raises(UserError, match="cannot be told apart"):
        split_choices([[1, 2], [1, 2]])


def test_free_text_cannot_be_chosen():
    """A rubric with evidence in its answer is one line, with the way out."""
    with pytest.raises(UserError, match="judge.answer=generate"):
        form_of(load_rubric("reply_safety").schema(0))
    form = form_of(load_rubric("effectiveness").labels_only().schema(0))
    assert json.loads(form.written(["serves"])) == {"verdict": "serves"}
