"""srpo_jax/runs/appended.py: what a hard death leaves of a file that is appended to."""

from __future__ import annotations

import io
import json

import pytest

from srpo_jax.runs import appended
from srpo_jax.runs.appended import Appended
from srpo_jax.runs.ledger import Ledger, read
from srpo_jax.runs.metrics import Metrics


@pytest.fixture
def bucket(monkeypatch):
    """Files as on a mounted bucket: others see, and a hard death keeps, what was there when the
    file was last closed.
    """

    class Object(io.BytesIO):
        def __init__(self, path, mode, buffering):
            assert (mode, buffering) == ("ab", 0)
            super().__init__()
            self.path = path

        def close(self):
            if not self.closed:
                with open(self.path, "ab") as file:
                    file.write(self.getvalue())
            super().close()

    monkeypatch.setattr(appended, "open", Object, raising=False)


def test_a_hard_death_costs_half_a_minute(bucket, tmp_path):
    """Lines come every 7 s: at any time the object holds all of them but those of the last 30 s,
    and is changed no more often than a bucket likes.
    """
    now, changes, path = [0.0], 0, tmp_path / "f"
    file = Appended(path, clock=lambda: now[0])
    for i in range(100):
        before = path.read_bytes() if path.exists() else b""
        assert file.write(b"%3d\n" % i) == 4
        kept = path.read_bytes()
        changes += kept != before
        assert len(kept) >= 4 * (i + 1 - 30 // 7 - 1)
        now[0] += 7
    assert changes == 20
    file.close()
    assert path.read_bytes().split() == [b"%d" % i for i in range(100)]


def test_a_line_is_there_at_once(tmp_path):
    """On a disk a killed process keeps every line, closed or not."""
    now = [0.0]
    file = Appended(tmp_path / "f", clock=lambda: now[0])
    for line in (b"a\n", b"b\n", b"c\n"):
        file.write(line)
        assert (tmp_path / "f").read_bytes().endswith(line)
        now[0] += 1


def test_slow_steps_are_seen_while_the_run_goes_on(bucket, tmp_path, capsys, monkeypatch):
    """Ledger and metrics of a run with a step a minute: each line is there when it is written."""
    now = [0.0]
    monkeypatch.setattr(appended.time, "monotonic", lambda: now[0])
    with Ledger(tmp_path / "events.jsonl", clock=lambda: now[0], wall=lambda: 5.0) as ledger:
        ledger.open(0)
        log = Metrics(tmp_path, steps=3, start=0, report_to="none")
        log._file = Appended(tmp_path / "metrics.jsonl", clock=lambda: now[0])
        with log:
            for step in (1, 2, 3):
                ledger.enter("step")
                now[0] += 60
                ledger.steps(step)
                ledger.enter("data")
                log.write(step, {"loss": 1.0})
                assert read(tmp_path / "events.jsonl")[-1]["step"] == step
                lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
                assert json.loads(lines[-1])["step"] == step
    assert read(tmp_path / "events.jsonl")[-1]["event"] == "end"
