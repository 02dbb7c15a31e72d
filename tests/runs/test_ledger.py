"""srpo_jax/runs/ledger.py and goodput.py: where the time of a run went, over restarts."""

from __future__ import annotations

import json
import time

import pytest

from srpo_jax.runs.goodput import goodput, goodput_table, line
from srpo_jax.runs.ledger import FILE, Ledger, process_start, read


class Clock:
    """Both clocks of a ledger, moved by hand."""

    def __init__(self, now: float = 1000.0):
        self.now = now

    def ledger(self, folder, born=None) -> Ledger:
        return Ledger(folder / FILE, born=born, clock=lambda: self.now - 7, wall=lambda: self.now)

    def session(self, folder, first: int, last: int, *, crash: bool = False, pause: float = 3.0):
        """Steps first .. last of 2 s each, after 4 s of start-up, 1 s restoring, 5 s compiling."""
        self.now += pause
        ledger = self.ledger(folder, born=self.now - 1)
        self.now += 3
        ledger.open(first)
        ledger.enter("restore")
        self.now += 1
        ledger.enter("compile")
        self.now += 5
        for step in range(first + 1, last + 1):
            ledger.enter("data")
            self.now += 0.25
            ledger.enter("step")
            self.now += 2
            ledger.steps(step)
        ledger.enter("save")
        self.now += 0.5
        ledger.enter("verify")
        if crash:
            return ledger
        with ledger:
            self.now += 0.5
        return None


def test_the_parts_add_up_to_the_wall_time_over_crashes(tmp_path):
    """Three sessions, one of them killed four steps after its save: those steps are not goodput."""
    clock = Clock()
    clock.session(tmp_path, 0, 10)
    clock.session(tmp_path, 10, 20, crash=True)
    clock.session(tmp_path, 16, 30)
    found = goodput(tmp_path)
    assert sum(found["parts"].values()) == pytest.approx(found["wall"], rel=1e-3)
    assert found["wall"] == pytest.approx(clock.now - 1002)
    assert (found["sessions"], found["crashes"], found["lost_steps"]) == (3, 1, 4)
    assert found["parts"]["step"] == pytest.approx(2 * 30, rel=0.01)
    assert found["parts"]["lost"] == pytest.approx(2 * 4, rel=0.05)
    assert found["parts"]["compile"] == pytest.approx(15)
    assert found["parts"]["down"] == pytest.approx(4.0, abs=0.6)
    assert found["goodput"] == pytest.approx(60 / found["wall"], rel=0.01)
    said = line(found)
    assert said.startswith("goodput ") and "4 steps lost" in said and "\n" not in said
    shown = goodput_table(tmp_path)
    assert "4 steps" in shown["line"] and "compile" in [part for part, *_ in shown["rows"]]


def test_killed_in_the_middle_of_a_long_step(tmp_path):
    """Lines that were written within the lost step have no width in steps: they are lost too."""
    clock = Clock()
    ledger = clock.ledger(tmp_path, born=clock.now)
    ledger.open(0)
    for step in range(1, 9):
        ledger.enter("step")
        clock.now += 5
        if step == 8:
            ledger.enter("save")
            clock.now += 5
        ledger.steps(step)
    clock.session(tmp_path, 4, 12)
    found = goodput(tmp_path)
    assert found["parts"]["lost"] == 20 and found["lost_steps"] == 3  # no line tells of step 8
    assert sum(found["parts"].values()) == pytest.approx(found["wall"], rel=1e-3)


def test_a_torn_line_is_passed_over_and_its_end_cut(tmp_path):
    """A kill in the middle of a write leaves half a line; the next session writes whole ones."""
    clock = Clock()
    clock.session(tmp_path, 0, 4)
    path = tmp_path / FILE
    whole = len(read(path))
    with path.open("a") as file:
        file.write('{"event": "spent", "t": 12')
    assert len(read(path)) == whole
    clock.session(tmp_path, 4, 5)
    for text in path.read_text().splitlines():
        json.loads(text)
    assert [row["why"] for row in read(path) if row["event"] == "end"] == ["done"] * 2


def test_a_full_disk_ends_no_run(tmp_path):
    """What could not be written is in the next line that can."""
    clock = Clock()
    ledger = clock.ledger(tmp_path)
    ledger.open(0)
    real = ledger._file

    class Full:
        def write(self, data):
            real.write(data[:10])
            raise OSError(28, "No space left on device")

        close = real.close

    ledger._file = Full()
    clock.now += 5
    ledger.enter("step")
    ledger._file = real
    clock.now += 5
    with ledger:
        ledger.steps(1)
    found = goodput(tmp_path)
    assert found["parts"]["init"] == 5 and found["parts"]["step"] == 5 and found["wall"] == 10


def test_nothing_is_written_before_the_run_is_known(tmp_path):
    """Until `open`, and on processes other than 0, the workdir is not touched."""
    with Ledger(tmp_path / "a" / FILE) as ledger:
        ledger.enter("restore")
    with Ledger(None) as ledger:
        ledger.open(3)
        ledger.enter("step")
    assert not list(tmp_path.iterdir()) and goodput(tmp_path) is None


def test_a_session_begins_with_its_process():
    """Imports take seconds: they are part of the run."""
    assert 0 < time.time() - process_start() < 24 * 3600
