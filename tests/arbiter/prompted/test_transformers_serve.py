"""The arbiter `prompted` against `transformers serve` with a tiny model, which writes byte soup."""

from __future__ import annotations

import importlib.util
import io

import pytest

from srpo_jax.arbiter.chat.reply_cache import ReplyCache
from srpo_jax.arbiter.prompted.prompted import Prompted
from srpo_jax.arbiter.verdict import Case, Verdict
from srpo_jax.config.judging_sections import JudgeSettings
from srpo_jax.data_pipelines.records import Record
from tests.support.families import CASES
from tests.support.transformers_serve import NEEDED, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, NEEDED)), reason=f"needs {', '.join(NEEDED)}"
    ),
]


def test_a_real_server_that_says_nothing_of_use(tmp_path):
    """It takes the request with all its fields and the picture, counts the picture's tokens, has
    no log-probabilities to offer, and what it says is no verdict: ERROR that is asked again. The
    same from the cache, without it.
    """
    family = CASES["llava"]
    folder = family.make(tmp_path / "model", tied=False)
    png = io.BytesIO()
    family.pictures(1)[0].save(png, "PNG")
    record = Record("q", ("a.png",), "What is this?", ("A step.",), "A reply.")
    shown = Case(record, ("Look.",), "Nothing to see.", True, (png.getvalue(),))
    blind = Case(record, ("Look.",), "Nothing to see.", True)
    settings = {"model": str(folder), "max_tokens": 24, "logprobs": True, "retries": 0}
    with serving(folder, tmp_path, plain=True) as url:
        chosen = JudgeSettings(**settings, base_url=f"{url}/v1")
        judge = Prompted(chosen, cache=ReplyCache(tmp_path / "replies"))
        (seen,) = judge.judge([shown])
        with_picture = judge.usage.tokens_in
        (unseen,) = judge.judge([blind])
        without = judge.usage.tokens_in - with_picture
    assert judge.usage.answered == 2 and judge.usage.unanswered == 0
    assert with_picture > without > 100
    for judged in (seen, unseen):
        assert (judged.reply, judged.failed, judged.score) == (Verdict.ERROR, True, None)
        assert "unreadable answer" in judged.detail or "was cut" in judged.detail
    offline = Prompted(
        JudgeSettings(**settings), cache=ReplyCache(tmp_path / "replies", "readonly")
    )
    assert offline.judge([shown, blind]) == [seen, unseen]
