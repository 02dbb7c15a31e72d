"""srpo_jax/arbiter/in_process/policy_chat.py: labels are transformers' own, whatever the family."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from srpo_jax.arbiter.chat.messages import ChatRequest, Picture
from srpo_jax.arbiter.in_process.closed_set import form_of, split_choices
from srpo_jax.arbiter.in_process.policy_chat import PolicyChat, without_thinking
from srpo_jax.arbiter.prompted.prompted import make_messages
from srpo_jax.arbiter.prompted.rubric_file import load_rubric
from srpo_jax.arbiter.prompted.score import p_unsafe
from srpo_jax.arbiter.verdict import Case
from srpo_jax.cli.main import main
from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.images import load_image
from srpo_jax.data_pipelines.records import Record
from srpo_jax.data_pipelines.verdict_store import VerdictSet, set_names
from srpo_jax.errors import UserError
from srpo_jax.models.hf.chat import chat_template
from tests.support import tiny
from tests.support.families import CASES, oracle, reset
from tests.support.judged import tree, write_trees

RUBRIC = load_rubric("three_class").labels_only()
STEPS = load_rubric("path_safety").labels_only()
FAST = ("qwen2_5_vl",)
EVERY = [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in CASES]


def request_of(number: int, rubric=RUBRIC, *, pictures: int = 1, **fields) -> ChatRequest:
    """A judge's question about a short path with so many pictures."""
    shown = []
    for i in range(pictures):
        out = io.BytesIO()
        tiny.picture(112 - 28 * i, 84, seed=number + i).save(out, "PNG")
        shown.append(Picture(out.getvalue()))
    record = Record(f"q{number}", (), f"What is {number}?", (), "")
    case = Case(record, ("Look.", "Think."), f"It is {number}.", True)
    values = {"temperature": 0.0, "max_tokens": 5, "seed": 0, **fields}
    return ChatRequest(
        "m",
        make_messages(case, rubric, shown),
        schema=rubric.schema(2),
        labels=("unsafe",),
        **values,
    )


def by_transformers(case, folder: pathlib.Path, chat: PolicyChat, request: ChatRequest):
    """(text, {label: log-probability} of its last place): each label by a plain forward pass of
    transformers over prompt and answer, the likeliest one taken at every place.
    """
    torch = pytest.importorskip("torch")
    form, chosen, scores = form_of(request.schema or {}), [], {}
    prompt = chat._encode(request).tokens.tolist()
    pictures = [load_image(p.data, what="a picture") for p in request.pictures()]
    model = oracle(folder)
    for words in form.words:
        answers = [chat.processor.encode(text) for text in form.texts(chosen)]
        given, texts = split_choices(answers)
        scores = {}
        for word, text in zip(words, texts, strict=True):
            ids = [*prompt, *given.tolist(), *text.tolist()]
            reset(model)
            with torch.no_grad():
                logits = model(**case.module.oracle_inputs(folder, ids, pictures)).logits[0]
            logp = torch.log_softmax(logits.float(), -1).numpy()
            places = range(len(ids) - len(text), len(ids))
            scores[word] = float(sum(logp[i - 1, ids[i]] for i in places))
        chosen.append(max(scores, key=lambda word: scores[word]))
    return form.written(chosen), scores


@pytest.mark.parametrize("name", EVERY)
def test_labels_are_those_of_transformers(tmp_path, name):
    """Every family, with and without pictures, in batches of two: the same answer, the same
    log-probability of every label, and the score that follows from them.
    """
    case = CASES[name]
    folder = case.make(tmp_path / "judge")
    chat = PolicyChat(str(folder), Config(), labels=True, batch=2)
    requests = [request_of(0), request_of(1, pictures=0), request_of(2, STEPS, pictures=2)]
    for request, reply in zip(requests, chat.complete(requests), strict=True):
        text, expected = by_transformers(case, folder, chat, request)
        assert reply.error is None and reply.finish_reason == "stop"
        assert reply.text == text
        assert "".join(token for token, _ in reply.logprobs or ()) == text
        found = [others for _, others in reply.logprobs or () if others][-1]
        assert {f'{word}"': pytest.approx(v, abs=2e-4) for word, v in expected.items()} == found
        rubric = STEPS if request is requests[2] else RUBRIC
        part, label = rubric.judges["reply"], json.loads(text)["verdict"]
        unsafe = np.exp([v for k, v in expected.items() if part.means(k) == "UNSAFE"]).sum()
        safe = np.exp([v for k, v in expected.items() if part.means(k) == "SAFE"]).sum()
        score = p_unsafe(text, reply.logprobs or (), part, label)
        assert score == pytest.approx(unsafe / (unsafe + safe), abs=1e-4)
        assert reply.tokens_in == len(chat._encode(request).tokens)


@pytest.mark.multi_device
@pytest.mark.parametrize("names", [FAST, pytest.param(tuple(CASES), marks=pytest.mark.slow)])
def test_eight_devices_say_the_same(tmp_path, names):
    """On a mesh of data 2, fsdp 2 and tensor 2 the same texts and log-probabilities as on one."""
    for name in names:
        CASES[name].make(tmp_path / name)
    flags = "--xla_force_host_platform_device_count=8"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PJRT_NPROC": "32"}
    command = [sys.executable, "-m", "tests.support.in_process_run", str(tmp_path), *names]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    spread = json.loads(done.stdout.splitlines()[-1])
    assert spread["devices"] == 8 and spread["sharded"]
    for name in names:
        chat = PolicyChat(str(tmp_path / name), Config(), labels=True, batch=2)
        replies = chat.complete([request_of(i, STEPS) for i in range(3)])
        for reply, (text, tokens) in zip(replies, spread[name], strict=True):
            assert reply.text == text
            for (piece, others), (same, theirs) in zip(reply.logprobs or (), tokens, strict=True):
                assert piece == same
                for word, logprob in (others or {}).items():
                    assert theirs[word] == pytest.approx(logprob, abs=1e-4)


def test_an_answer_is_written_as_the_policy_samples_it(tmp_path):
    """Greedy writing is transformers' greedy answer; with a temperature a vote on a case is its own
    draw, and the same one again; what did not end is cut.
    """
    torch = pytest.importorskip("torch")
    folder = CASES["qwen2_5_vl"].make(tmp_path / "judge")
    chat = PolicyChat(str(folder), Config(), labels=False, batch=2)
    request = request_of(0)
    (reply,) = chat.complete([request])
    prompt = chat._encode(request).tokens.tolist()
    pictures = [load_image(p.data, what="a picture") for p in request.pictures()]
    model = oracle(folder)
    reset(model)
    with torch.no_grad():
        ids = model.generate(
            **tiny.oracle_inputs(folder, prompt, pictures),
            max_new_tokens=5,
            do_sample=False,
            suppress_tokens=list(chat.processor.suppress_ids),
            eos_token_id=list(chat.processor.eos_ids),
        )[0, len(prompt) :].tolist()
    assert reply.text == chat.processor.decode(ids) and reply.tokens_out == len(ids)
    assert (reply.finish_reason == "stop") == (ids[-1] in chat.processor.eos_ids)
    hot = [request_of(i // 2, temperature=5.0, seed=i % 2) for i in range(4)]
    first, again = (chat.complete(requests) for requests in (hot, hot[::-1]))
    assert [r.text for r in first] == [r.text for r in again[::-1]]
    assert len({r.text for r in first}) == 4
    thought = "<think>Is it {safe}?</think>\n\nSAFE"
    assert without_thinking(thought) == "SAFE" and without_thinking("SAFE") == "SAFE"


def test_a_request_that_cannot_be_put_is_an_error_of_its_own(tmp_path):
    """A broken picture, or a prompt longer than the model's positions, ends neither the batch nor
    the process; a template without system messages
    is told the rubric in the user's message; a folder that is none is one line.
    """
    folder = CASES["llava"].make(tmp_path / "judge")
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    template = refuses + chat_template(folder)
    (folder / "chat_template.json").unlink(missing_ok=True)
    (folder / "chat_template.jinja").write_text(template)
    chat = PolicyChat(str(folder), Config(), labels=True, batch=2)
    good = request_of(0)
    system, user = good.messages
    broken = (system, dataclasses.replace(user, parts=(Picture(b"\x89PNG\r\n\x1a\n"), "x")))
    bad = dataclasses.replace(good, messages=broken)
    told: dict[int, str | None] = {}
    replies = chat.complete([bad, good], lambda i, reply: told.update({i: reply.error}))
    assert (replies[0].error or "").startswith("cannot be asked: ")
    assert replies[1].error is None and set(told) == {0, 1}
    limit = dataclasses.replace(chat.processor.config.text, max_positions=1500)
    chat.processor.config = dataclasses.replace(chat.processor.config, text=limit)
    record = Record("long", (), "Why? " * 500, (), "")
    long = make_messages(Case(record, ("Look.",), "It is.", True), RUBRIC, [])
    replies = chat.complete([dataclasses.replace(good, messages=long), good])
    assert "positions" in (replies[0].error or "") and replies[1].error is None
    (told_first, *_) = chat._messages(good.messages)
    assert told_first.role == "user" and RUBRIC.role in "".join(map(str, told_first.parts))
    with pytest.raises(UserError, match="is no folder"):
        PolicyChat(str(tmp_path / "none"), Config(), labels=True, batch=2)
    (folder / "srpo_prompt.json").write_text("{}")
    with pytest.raises(UserError, match="has a prompt in its chat template"):
        PolicyChat(str(folder), Config(), labels=True, batch=2)


def test_pictures_are_opened_as_they_are_sent(tmp_path):
    """A picture that is shrunk for a server is shrunk for the model here, too."""
    folder = CASES["qwen2_5_vl"].make(tmp_path / "judge")
    chat = PolicyChat(str(folder), Config(), labels=True, batch=1)
    out = io.BytesIO()
    Image.new("RGB", (280, 280), (9, 9, 9)).save(out, "PNG")
    sizes = []
    for side in (0, 56):
        request = request_of(0, pictures=0)
        system, user = request.messages
        shown = (Picture(out.getvalue(), side), *user.parts)
        messages = (system, dataclasses.replace(user, parts=shown))
        sizes.append(len(chat._encode(dataclasses.replace(request, messages=messages)).patches))
    assert sizes == [400, 16]


def test_a_workdir_is_judged_without_a_server(tmp_path, capsys):
    """`srpo judge` with arbiter.kind=policy: every branch has a verdict with a score, or is ERROR
    for want of an opinion; asked again nothing is computed; another checkpoint is another judge.
    """
    folder = CASES["qwen2_5_vl"].make(tmp_path / "judge")
    write_trees(tmp_path / "run" / "trees", [tree("t0"), tree("t1", question="And this?")])
    typed = [
        "judge",
        "--config=configs/common.py",
        f"--workdir={tmp_path / 'run'}",
        "--config.arbiter.kind=policy",
        f"--config.judge.model={folder}",
        "--config.judge.concurrency=2",
        "--config.arbiter.max_error_fraction=1",
    ]
    assert main([*typed, "--dry_run"]) == 0
    told = capsys.readouterr().out
    assert "requests to localhost" in told and "s a request" not in told
    assert main(typed) == 0, capsys.readouterr().err
    (name,) = set_names(tmp_path / "run" / "trees")
    rows = VerdictSet(tmp_path / "run" / "verdicts" / name).rows()
    assert rows and not any(row["failed"] for row in rows)
    assert all(0 <= row["score"] <= 1 for row in rows if row["reply_verdict"] != "ERROR")
    assert name.startswith("judge-reply_safety-")
    capsys.readouterr()
    assert main(typed) == 0
    assert "was asked about 0 cases" in capsys.readouterr().out
    assert main([*typed, "--config.judge.temperature=0.7"]) == 2
    assert "takes the likeliest label" in capsys.readouterr().err
    other = CASES["qwen2_5_vl"].make(tmp_path / "other" / "judge", seed=9)
    assert main([*typed, f"--config.judge.model={other}"]) == 0
    assert len(set_names(tmp_path / "run" / "trees")) == 2
