"""srpo_jax/distributed/watchdog.py: a hang is told with its stack, and ends the process."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import threading

from srpo_jax.buckets.workdir import open_workdir
from srpo_jax.distributed import watchdog
from srpo_jax.distributed.watchdog import EXIT_CODE, Watchdog
from tests.support.bucket_server import serving


def test_stacks_first_and_the_end_after_as_long_again(tmp_path, capfd):
    """By its own clock: nothing within the limit, stacks once past it, exit past twice."""
    now, ended = [0.0], []
    dog = Watchdog(tmp_path / "stacks", 1, process=3, clock=lambda: now[0], end=ended.append)

    def look_at(seconds):
        now[0] = seconds
        dog.look()
        return len(list(tmp_path.glob("stacks/*"))), list(ended)

    assert look_at(239) == (0, []), "the first step compiles: four times the limit"
    dog.beat("step 1")
    assert look_at(298) == (0, [])
    assert look_at(300) == (1, []) and look_at(358) == (1, [])
    dog.beat("step 2")
    assert look_at(417) == (1, []), "a late step is no hang"
    dog.beat("step 3", patient=True)
    assert look_at(650)[1] == [] and look_at(660) and look_at(900)[1] == [EXIT_CODE]
    text = max(tmp_path.glob("stacks/process-3-*.txt")).read_text()
    assert "after step" in text and "test_watchdog.py" in text
    assert "the stacks of its threads follow" in capfd.readouterr().err


def test_a_process_that_hangs_is_ended(tmp_path):
    """Really: a main thread that sleeps for ever, killed by nobody but the watchdog."""
    code = (
        "import sys, time\n"
        "from srpo_jax.distributed.watchdog import Watchdog\n"
        "def stuck(): time.sleep(100)\n"
        "with Watchdog(sys.argv[1], 0.1 / 60) as dog:\n"
        "    dog.beat('step 7')\n"
        "    stuck()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=90
    )
    assert done.returncode == EXIT_CODE
    assert "after step 7" in done.stderr and "in stuck" in done.stderr
    assert "in stuck" in next(tmp_path.iterdir()).read_text()


def test_a_disk_that_hangs_does_not_keep_the_process(tmp_path, monkeypatch, capfd):
    """The stacks' folder is on the disk that does not answer: stderr has them, the end comes."""
    answer, ended, now = threading.Event(), [], [0.0]
    mkdir = pathlib.Path.mkdir

    def hang(*args, **options):
        answer.wait(60)
        mkdir(*args, **options)

    monkeypatch.setattr(watchdog, "WRITE_SECONDS", 0.1)
    monkeypatch.setattr(pathlib.Path, "mkdir", hang)
    dog = Watchdog(tmp_path / "stacks", 1, clock=lambda: now[0], end=ended.append)
    dog.beat("step 1")
    for now[0] in (61.0, 121.0):
        dog.look()
    answer.set()
    for thread in threading.enumerate():
        if thread.name == "stacks":
            thread.join()
    assert ended == [EXIT_CODE]
    assert "test_watchdog.py" in capfd.readouterr().err


def test_stacks_are_in_the_bucket_before_the_end(tmp_path, monkeypatch, capfd):
    """The process that ends then keeps nothing later."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    now = [0.0]
    with serving({}) as bucket, open_workdir("gs://bucket-a/run") as folder:
        dog = Watchdog(folder / "stacks", 1, clock=lambda: now[0], end=lambda _: None)
        now[0] = 241
        dog.look()
        (name,) = bucket.all("bucket-a/run/stacks/")
        assert b"test_watchdog.py" in bucket.all()[name]
        assert f"also in gs://{name}\n" in capfd.readouterr().err


def test_zero_is_off(tmp_path):
    """No thread, no file."""
    with Watchdog(tmp_path, 0) as dog:
        dog.beat("step 1")
    assert dog._thread is None and not list(tmp_path.iterdir())
