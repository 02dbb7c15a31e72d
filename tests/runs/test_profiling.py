"""srpo train --profile: the traced steps, and the names that a trace shows."""

from __future__ import annotations

import os
import re
import signal

import jax
import numpy as np
import pytest

from srpo_jax.distributed.mesh import make_mesh
from srpo_jax.errors import UserError
from srpo_jax.runs.profiling import Profile, clip, parse_window
from srpo_jax.train import loop as module
from srpo_jax.train.loop import train
from tests.support import multi_device_run as tiny
from tests.train.test_loop import make_config, world  # noqa: F401, a fixture

PARTS = ("embed", "vision", "layers/.*attention", "layers/.*ffn", "head", "loss")


def test_every_part_of_the_step_has_its_name():
    """The compiled program's operations carry the scopes, forward and backward; what is recomputed
    can be told from what is computed."""
    state, step = tiny.start(
        tiny.tiny_config(), make_mesh(devices=jax.devices()[:1]), model_options={"remat": "full"}
    )
    text = step.lower(state, tiny.random_batch(tiny.tiny_config(), 0)).compile().as_text()
    names = set(re.findall(r'op_name="([^"]+)"', text))
    for part in PARTS:
        mine = [name for name in names if re.search(rf"[/(]{part}[/)]", name)]
        assert [name for name in mine if "transpose(" not in name], part
        assert [name for name in mine if "transpose(" in name], part
    assert [name for name in names if "/optimizer/" in name]
    assert [name for name in names if re.search("rematted_computation.*ffn", name)]


@pytest.mark.parametrize(
    "window, steps, expected",
    [
        ((10, 13), 100, (10, 13)),
        ((10, 13), 12, (10, 12)),
        ((10, 13), 10, (7, 10)),
        ((10, 13), 3, (1, 3)),
        ((10, 13), 1, (0, 1)),
        ((10, 13), 0, (0, 0)),
        ((0, 2), 5, (0, 2)),
    ],
)
def test_the_window_is_clipped_to_the_run(window, steps, expected):
    """What the run has of it; else its last steps, but not the first, which compiles."""
    assert clip(window, steps) == expected


@pytest.mark.parametrize("text", ["", "3", "5:5", "7:3", "-1:3", "a:b", "1:2:3"])
def test_a_wrong_window_is_told(text):
    with pytest.raises(UserError, match="must be START:STOP"):
        parse_window(text)


def traces(workdir) -> list[int]:
    """Sizes of the trace files."""
    found = sorted((workdir / "profile").glob("plugins/profile/*/*.xplane.pb"))
    return [path.stat().st_size for path in found]


def test_a_short_run_is_traced_and_a_stopped_one_too(
    world,  # noqa: F811
    tmp_path,
    capfd,
    monkeypatch,
):
    """A run shorter than the window traces its last steps; SIGTERM in the middle of the window
    closes the trace; and a finished run says nothing.
    """
    train(make_config(world, steps=3, save_every=3), tmp_path / "a", profile=(10, 13))
    said = capfd.readouterr().out
    assert f"a trace of steps 2 to 3 is in {tmp_path}/a/profile" in said and "xprof" in said
    assert len(traces(tmp_path / "a")) == 1 and min(traces(tmp_path / "a")) > 10_000

    put, calls = module.put_batch, []

    def put_and_signal(batch, mesh):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return put(batch, mesh)

    monkeypatch.setattr(module, "put_batch", put_and_signal)
    with pytest.raises(SystemExit):
        train(make_config(world, steps=3, save_every=3), tmp_path / "b", profile=(1, 9))
    assert "a trace of steps 2 to 3" in capfd.readouterr().out
    assert min(traces(tmp_path / "b")) > 10_000
    monkeypatch.setattr(module, "put_batch", put)
    train(make_config(world, steps=3, save_every=3), tmp_path / "a", profile=(0, 2))
    assert "profile" not in capfd.readouterr().out and len(traces(tmp_path / "a")) == 1
    jax.profiler.start_trace(tmp_path / "free")  # nothing is left open
    jax.profiler.stop_trace()


def test_an_error_closes_the_trace(tmp_path, capsys):
    """The trace of a run that breaks off inside the window is written."""
    with pytest.raises(ZeroDivisionError):
        with Profile((0, 5), tmp_path / "profile", 7, 9) as profile:
            with profile.step(0, None):
                metrics = {"loss": jax.numpy.sum(np.ones(3))}
            profile.after(0, metrics)
            raise ZeroDivisionError
    assert "a trace of steps 8 to 8" in capsys.readouterr().out
    assert min(traces(tmp_path)) > 0
