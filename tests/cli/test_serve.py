"""`srpo serve` as a program: from a folder to an answer, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

from srpo_jax.cli.main import main
from tests.support import ROOT
from tests.support.small_world import write_world


def post(url, **fields):
    """(status, body) of a chat request."""
    body = {"model": "model", "messages": [{"role": "user", "content": "Why?"}], **fields}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_ctrl_c_ends_it_at_once(tmp_path):
    """It says where it listens and what there is room for; whoever waits gets 503, and the exit
    code is that of an interruption."""
    write_world(tmp_path)
    settings = ("eval.batch=1", "eval.max_new_tokens=2000", "serve.prompt_tokens=300")
    # A background job of a shell ignores SIGINT, and so would the server that it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    server = subprocess.Popen(
        [sys.executable, "-m", "srpo_jax", "serve", f"--model={tmp_path / 'model'}", "--port=0"]
        + [f"--config.{each}" for each in settings],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    try:
        lines = [server.stdout.readline() for _ in range(3)]
        assert "as model 'model'; answers: whole" in lines[0]
        assert lines[1].startswith("1 requests at once; a prompt has room for 304 tokens")
        url = lines[2].split()[2].rstrip(";")
        assert post(url, max_tokens=3)[1]["usage"]["completion_tokens"] <= 3
        found = []
        long = threading.Thread(
            target=lambda: found.append(post(url, n=64, temperature=0.5, seed=1))
        )
        long.start()
        time.sleep(1)  # until that is asked
        assert post(url, max_tokens=3, model="other")[0] == 404  # while it is answered
        server.send_signal(signal.SIGINT)
        said = server.communicate(timeout=30)[1]
        long.join(30)
    finally:
        server.kill()
    assert server.returncode == 130 and said.endswith("srpo serve: interrupted\n")
    (status, body) = found[0]
    assert status == 503 and body["error"]["message"] == "the server ends"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--model=none"], "--model=none: give a HF directory or the workdir"),
        (["--model=.", "--host=0.0.0.0"], "--allow_remote"),
        (["--model=.", "--port=0"], "neither a HF directory"),
    ],
)
def test_what_cannot_be_served_is_one_line(words, why, tmp_path, monkeypatch, capsys):
    """Exit code 2, before anything is loaded."""
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *words]) == 2
    error = capsys.readouterr().err
    assert why in error and error.count("\n") == 1
