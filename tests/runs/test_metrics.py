"""srpo_jax/runs/metrics.py."""

from __future__ import annotations

import errno
import io
import json
import re
import sys
import types

import pytest

from srpo_jax.console import duration
from srpo_jax.errors import UserError
from srpo_jax.runs.metrics import FILE, Metrics, line

VALUES = {
    "loss": 0.41234,
    "srpo/loss_ref": 0.3,
    "srpo/loss_exp": 0.11,
    "rewards/margins": 0.831,
    "rewards/accuracies": 0.91,
    "grad_norm": 1.2,
    "learning_rate": 5e-6,
    "perf/questions_per_second": 3.14,
    "perf/pairs_per_second": 75.4,
    "perf/tokens_per_second": 12300.0,
    "perf/model_tflops_per_second": 412.77,
    "perf/mfu": 0.4171,
    "perf/data_share": 0.03,
    "perf/eta_seconds": 72.0,
}


def test_line_is_readable():
    """The line people watch: fixed order, fixed digits and columns, no field that a run does not
    have, and never wider than 120 columns; what can be spared goes first.
    """
    full = line(120, 2000, VALUES)
    assert full == (
        "step  120/2000 loss  0.4123 ref  0.3000 exp 0.1100 margin  0.83 acc 0.91 gnorm  1.20 "
        " 12.3k tok/s MFU 41.7% ETA  1m12s"
    )
    assert line(1, 2, {"loss": 1.0}) == "step 1/2 loss  1.0000"
    unlike = {**VALUES, "loss": 17.25, "perf/tokens_per_second": 7.0, "perf/eta_seconds": 11100.0}
    other = line(7, 2000, unlike)
    assert [m.start() for m in re.finditer("loss|acc|tok/s|MFU|ETA", other)] == [
        m.start() for m in re.finditer("loss|acc|tok/s|MFU|ETA", full)
    ]
    assert "lr" in line(1, 9, {k: v for k, v in VALUES.items() if k != "perf/mfu"})
    wild = {key: -1e30 for key in VALUES}
    assert len(line(10**9, 10**9, {**VALUES, "grad_norm": 1e30})) <= 120
    assert line(1, 9, wild).startswith("step 1/9 loss -1000")
    assert [duration(s) for s in (7, 72, 11100)] == ["7s", "1m12s", "3h05m"]


def test_a_full_disk_is_told_by_the_files_name(tmp_path, monkeypatch):
    """The file is written to for hours: the system's error of a write alone names none."""
    metrics = Metrics(tmp_path, steps=9, start=0, report_to="none")
    monkeypatch.setattr(metrics, "_file", open("/dev/full", "ab", buffering=0))
    with pytest.raises(OSError) as caught:
        metrics.write(1, {"loss": 1.0})
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / FILE)


def test_a_terminal_shows_the_end_of_the_line_too(tmp_path, monkeypatch):
    """Beside the bar there is less room, so columns are left out and none is cut."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    for columns in (100, 120, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        with Metrics(tmp_path, steps=2000, start=0, report_to="none") as metrics:
            metrics.write(120, VALUES)
        seen = terminal.getvalue().rpartition("\r")[2].replace("\x1b[K", "").rstrip("\n")
        assert seen.startswith("[#-------------------] step  120/2000 loss  0.4123 ")
        assert seen.endswith("ETA  1m12s") and len(seen) < columns
        assert "acc" in seen and ("lr" in seen) == (columns == 200)


def test_resume_drops_the_lines_of_steps_run_again(tmp_path, capsys):
    """After a restart from step 2 no step stands twice, and a torn last line does no harm."""
    with Metrics(tmp_path, steps=9, start=0, report_to="none") as metrics:
        for step in (1, 2, 3, 4):
            metrics.write(step, {"loss": float(step)})
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 5, "lo')
    with Metrics(tmp_path, steps=9, start=2, report_to="none") as metrics:
        metrics.write(3, {"loss": -3.0})
        on_disk = (tmp_path / FILE).read_text()  # before closing: lines are flushed as they come
    rows = [json.loads(row) for row in on_disk.splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, -3.0)]
    assert capsys.readouterr().out.count("\n") == 5


def test_tensorboard_is_an_extra(tmp_path, monkeypatch):
    """With the package it writes an event file; without it the message says what to install."""
    pytest.importorskip("tensorboardX")
    with Metrics(tmp_path, steps=1, start=0, report_to="tensorboard") as metrics:
        metrics.write(1, VALUES)
    assert list((tmp_path / "tensorboard").glob("events*"))
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"srpo_jax\[report\]"):
        Metrics(tmp_path, steps=1, start=0, report_to="tensorboard")


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    """A service that goes down is named in one line and dropped; files and the other tracker get
    everything. The same when it fails at the end.
    """

    class Service(types.ModuleType):
        def __init__(self, name, fails_at):
            super().__init__(name)
            self.fails_at, self.steps, self.init = fails_at, [], lambda **_: None

        def log(self, values, step):
            if step == self.fails_at:
                raise ConnectionError("down\nfor good")
            self.steps.append(step)

        def finish(self):
            if self.fails_at == "end":
                raise TimeoutError("no answer")

    wandb, trackio = Service("wandb", 2), Service("trackio", "end")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    with Metrics(tmp_path, steps=3, start=0, report_to="wandb,trackio") as metrics:
        for step in (1, 2, 3):
            metrics.write(step, {"loss": 1.0})
    assert wandb.steps == [1] and trackio.steps == [1, 2, 3]
    assert len((tmp_path / FILE).read_text().splitlines()) == 3
    assert capsys.readouterr().err.splitlines() == [
        "train.report_to: wandb gets nothing from step 2 on (ConnectionError: down for good); "
        "metrics.jsonl has it all",
        "train.report_to: trackio did not get the end of the run (TimeoutError: no answer); "
        "metrics.jsonl has it all",
    ]


def test_a_look_that_comes_again_is_written_once(tmp_path):
    """A run that goes on drops what it will say again: later steps, and with `look` the look after
    the step that it goes on from, but not that step."""
    with Metrics(tmp_path, steps=9, start=0, report_to="none") as metrics:
        metrics.write(0, {"validation/loss": 3.0})
        metrics.write(1, {"loss": 2.0})
        metrics.write(1, {"validation/loss": 2.5})
        metrics.write(2, {"loss": 1.0})

    def left(start, look):
        text = (tmp_path / FILE).read_text()
        Metrics(tmp_path, steps=9, start=start, report_to="none", look=look)
        found = [json.loads(row) for row in (tmp_path / FILE).read_text().splitlines()]
        (tmp_path / FILE).write_text(text)
        return [(row["step"], next(iter(set(row) - {"step"}))) for row in found]

    first = [(0, "validation/loss"), (1, "loss")]
    assert left(1, False) == [*first, (1, "validation/loss")]
    assert left(1, True) == first and left(0, True) == []
