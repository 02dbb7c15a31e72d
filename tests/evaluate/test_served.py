"""A policy behind a server: what it is asked, what its answers become, what a kill costs."""

from __future__ import annotations

import pytest

from srpo_jax.arbiter.chat.messages import ChatReply
from srpo_jax.data_pipelines.answer_store import read_answers
from srpo_jax.data_pipelines.records import read_records
from srpo_jax.data_pipelines.tree_store import read_shard
from srpo_jax.errors import RunFailure, UserError
from srpo_jax.evaluate import evaluate as evaluation
from srpo_jax.evaluate.evaluate import evaluate
from srpo_jax.evaluate.served import Server
from srpo_jax.judge.judge import judge
from tests.support.benchmark_items import write_json, write_pictures
from tests.support.chat_stub import ChatStub
from tests.support.small_world import ArithmeticArbiter, write_world

REPLIES = {
    "0": ChatReply("Look here.\nReply: Yes.", finish_reason="stop"),
    "1": ChatReply(None, refusal="I will not.", finish_reason="stop"),
    "2": ChatReply("Look", finish_reason="length"),
    "3": ChatReply("", finish_reason="content_filter"),
    "4": ChatReply("Just an answer.", finish_reason="stop"),
}


class Backend:
    """Answers by the number in the question; those in `broken` get no answer."""

    host = "localhost"

    def __init__(self, broken=""):
        self.broken, self.requests = broken, []

    def complete(self, requests, on_reply=None):
        found = []
        for i, request in enumerate(requests):
            self.requests.append(request)
            number = request.text().split("What is ")[1][0]
            error = ChatReply(error="no answer in 1 seconds")
            found.append(error if number in self.broken else REPLIES[number])
            if on_reply:
                on_reply(i, found[-1])
        return found


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "load_policy", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "world").mkdir()
    config = write_world(tmp_path / "world")
    with config.unlocked():
        config.prompt.system = "Be careful."
    return config


def branches(folder):
    return [t["branches"] for shard in read_answers(folder)[1] for t in read_shard(shard)]


def bytes_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_a_server_says_is_an_answer(config, tmp_path, capsys):
    """Read by the path format; a refusal that stands apart is the reply that the user sees, what
    was cut or held back is none; the question is asked as a policy here is, with its picture.
    """
    backend = Backend()
    folder = evaluate(config, tmp_path, "x", server=Server("m", backend=backend))
    (yes,), (refused,), (cut,), (held,), (plain,) = branches(folder)
    assert (yes["step_texts"], yes["reply_text"], yes["status"]) == (["Look here."], "Yes.", "ok")
    assert (refused["reply_text"], refused["status"]) == ("I will not.", "no_thinking")
    assert (cut["reply_text"], cut["finished"], cut["status"]) == (None, False, "unfinished")
    assert (held["reply_text"], held["status"]) == (None, "content_filter")
    assert (plain["reply_text"], plain["status"]) == (None, "no_reply")
    assert {(*b["tokens"], b["logp"]) for (b,) in branches(folder)} == {(None,)}
    record = read_records(config.data.test_records)[0]
    system, user = backend.requests[0].messages
    assert system.parts == ("Be careful.",)
    picture, text = user.parts
    assert picture.data == record.image_paths()[0].read_bytes() and record.question in text
    assert backend.requests[0].temperature == 0 and backend.requests[0].max_tokens == 6
    about = read_answers(folder)[0]
    assert about["served_model"] == "m" and len(about["policy_digest"]) == 16
    result = judge(config, tmp_path, arbiter=ArithmeticArbiter(), answers="x")
    assert result["n"] == 5 and result["error_rate"] == 60.0


def test_what_was_answered_is_not_asked_again(config, tmp_path):
    """A question without an answer ends the command with one line; the next asks for it alone, and
    ends with the bytes of one that was never stopped.
    """
    with config.unlocked():
        config.eval.samples, config.eval.temperature = 2, 0.7
    whole = evaluate(config, tmp_path / "whole", "x", server=Server("m", backend=Backend()))
    with pytest.raises(RunFailure, match="record 'r3' got no answer of m: no answer in 1 seconds"):
        evaluate(config, tmp_path / "part", "x", server=Server("m", backend=Backend("3")))
    backend = Backend()
    folder = evaluate(config, tmp_path / "part", "x", server=Server("m", backend=backend))
    assert len(backend.requests) == 2 and bytes_of(folder) == bytes_of(whole)
    assert len({request.seed for request in backend.requests}) == 2
    assert [[b["k"] for b in own] for own in branches(folder)] == [[0, 1]] * 5


def test_over_http(config, tmp_path, capsys):
    """With the client that judges have; that a server draws as it likes is said."""
    with config.unlocked():
        config.eval.num_questions = 1
    message = {"role": "assistant", "content": "Look.\nReply: Yes."}
    body = {"model": "m", "choices": [{"message": message, "finish_reason": "stop"}]}
    refused = {"error": {"message": "Unsupported parameter: 'seed'", "param": "seed"}}
    with ChatStub(script=[(400, {}, refused), (200, {}, body)]) as stub:
        folder = evaluate(config, tmp_path, "x", server=Server("m", stub.url))
        assert stub.calls == 2 and "seed" not in stub.bodies[1]
    assert branches(folder)[0][0]["reply_text"] == "Yes."
    assert "warning: the server does not take seed" in capsys.readouterr().err


def test_what_cannot_be_is_told_first(config, tmp_path):
    """Pictures that may not leave, a key that is missing, and what a chat API cannot do."""
    elsewhere = Server("m", "https://models.invalid/v1")
    with pytest.raises(UserError, match="5 pictures would be sent to models.invalid"):
        evaluate(config, tmp_path, "x", server=elsewhere)
    with pytest.raises(UserError, match="NO_SUCH_KEY holds no key"):
        evaluate(config, tmp_path, "x", server=Server("m", api_key_env="NO_SUCH_KEY"))
    with config.unlocked():
        config.eval.forced_prefix = "agrees"
    with pytest.raises(UserError, match="no server's chat API begins an answer"):
        evaluate(config, tmp_path, "x", server=Server("m", backend=Backend()))
    write_pictures(tmp_path / "siuo", "a.png")
    item = {"question_id": 1, "image": "a.png", "question": "What?", "category": "morality"}
    item |= {"options": dict.fromkeys("ABCD", "x"), "correct_option": "A"}
    write_json(tmp_path / "siuo" / "siuo_mcqa.json", [item])
    asked = {"benchmark": "siuo_mcqa", "data": tmp_path / "siuo"}
    with pytest.raises(UserError, match="siuo_mcqa needs log-probabilities: give --model"):
        evaluate(config, tmp_path, "y", server=Server("m", backend=Backend()), **asked)
    assert not list(tmp_path.glob("eval/*/answers.json"))
