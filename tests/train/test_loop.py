"""srpo_jax/train/loop.py: the whole loop on a tiny checkpoint, stopped in every way and resumed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from srpo_jax import owners
from srpo_jax.configs import common
from srpo_jax.distributed.mesh import make_mesh
from srpo_jax.distributed.sharding import replicated
from srpo_jax.distributed.stop import StopRequest
from srpo_jax.errors import RunFailure, UserError
from srpo_jax.models.policy_model import abstract_params
from srpo_jax.models.registry import load_model_config
from srpo_jax.pack.streams import RowStream
from srpo_jax.train import loop as module
from srpo_jax.train.checkpoint.manager import Checkpoints, load_params
from srpo_jax.train.loop import train
from srpo_jax.train.step_metrics import StepMetrics
from tests.support import ROOT, judged
from tests.support.tiny import picture, tiny_qwen2_5_vl

STEPS = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model and nine trees. Compiled steps are shared by the runs of this file."""
    folder = tmp_path_factory.mktemp("world")
    tiny_qwen2_5_vl(folder / "model")
    judged.write_judged(folder / "trees", [tree_record(i) for i in range(9)])
    changed = {
        "jax_compilation_cache_dir": str(folder / "cache"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in changed}
    for name, value in changed.items():
        jax.config.update(name, value)
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)


def tree_record(i: int) -> dict:
    """Joined with its verdicts: two or three steps, a safe and an unsafe branch at every point, a
    picture in most.
    """
    rng = np.random.default_rng(i)
    images = []
    if i % 4:
        buffer = io.BytesIO()
        picture(56, 28 * (1 + i % 2), i).save(buffer, "PNG")
        data = buffer.getvalue()
        images = [{"name": "a.png", "sha256": hashlib.sha256(data).hexdigest(), "data": data}]

    def tokens():
        return rng.integers(0, 256, int(rng.integers(2, 7))).tolist()

    steps = [tokens() for _ in range(2 + i % 2)]
    branches = [
        judged.branch(at, k, verdict, tokens=tokens())
        for at in range(len(steps))
        for k, verdict in enumerate(("SAFE", "UNSAFE"))
    ]
    return judged.tree(
        f"t{i}",
        images=images,
        steps=steps,
        reply=tokens(),
        step_texts=["Look."] * len(steps),
        branches=branches,
    )


def make_config(world: pathlib.Path, **train_changes):
    config = common.get_config()
    config.model.path, config.data.trees = str(world / "model"), str(world / "trees")
    config.pack.rows, config.objective.pairing = 2, "one"
    config.mesh.fsdp = 1
    config.train.steps, config.train.save_every = STEPS, 2
    config.train.learning_rate, config.train.warmup_steps = 3e-3, 2
    for name, value in train_changes.items():
        config.train[name] = value
    return config


def parameters(workdir) -> tuple[int, dict]:
    folder = json.loads((workdir / "config.json").read_text())["config"]["model"]["path"]
    place = replicated(make_mesh(devices=jax.devices()[:1]))
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        abstract_params(load_model_config(folder)),
    )
    step, params = load_params(workdir / "checkpoints", target)
    return step, jax.device_get(params)


def rows(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_times(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]


@pytest.fixture(scope="module")
def straight(world, tmp_path_factory):
    """The run that nobody stopped."""
    workdir = tmp_path_factory.mktemp("straight")
    summary = train(make_config(world), workdir)
    assert summary["step"] == STEPS and summary["started_at"] == 0
    return workdir


def assert_same_end(workdir, straight):
    (step, mine), (_, theirs) = parameters(workdir), parameters(straight)
    assert step == STEPS
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)
    assert without_times(rows(workdir)) == without_times(rows(straight))


def test_metrics_have_trls_names(straight, capfd):
    """One JSON line per step under the names that dashboards know, and a config beside it."""
    found = rows(straight)
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    assert not [name for name in found[0] if name.startswith("perf/")], "the first step compiles"
    assert set(found[1]) == {
        "step",
        "loss",
        "srpo/loss_ref",
        "srpo/loss_exp",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
        "grad_norm",
        "learning_rate",
        "num_tokens",
        "epoch",
        "perf/step_seconds",
        "perf/questions_per_second",
        "perf/tokens_per_second",
        "perf/pairs_per_second",
        "perf/model_tflops_per_second",
        "perf/data_share",
        "perf/eta_seconds",
    }
    assert found[-1]["loss"] < found[0]["loss"]
    stored = json.loads((straight / "config.json").read_text())
    assert stored["config"]["train"]["steps"] == STEPS and len(stored["fingerprint"]) == 16


def test_stopped_at_any_step_is_bitwise_the_same(world, straight, tmp_path, capfd, monkeypatch):
    """SIGTERM in steps 1, 3 and 5: each saves, verifies and exits 0; the end is that of the run
    that was not stopped, metrics included. A finished run has nothing left to do. Each start goes
    on in the epoch where the checkpoint ends and plans none before it.
    """
    calls, first_rows = [], []
    start_from = RowStream.start_from

    def start_and_note(stream, place):
        start_from(stream, place)
        first_rows.append(stream._first_row[0])
        assert place is None or place["first_row"] == first_rows[-1]

    monkeypatch.setattr(RowStream, "start_from", start_and_note)
    put = module.put_batch

    def stop_in(step):
        def put_and_signal(batch, mesh):
            calls.append(step)
            if len(calls) == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return put(batch, mesh)

        monkeypatch.setattr(module, "put_batch", put_and_signal)

    for step in (1, 3, 5):
        stop_in(step)
        with pytest.raises(SystemExit) as left:
            train(make_config(world), tmp_path)
        assert left.value.code == 0
        assert f"stopped by SIGTERM after step {step}/{STEPS}" in capfd.readouterr().out
        assert parameters(tmp_path)[0] == step
    assert train(make_config(world), tmp_path)["started_at"] == 5
    assert_same_end(tmp_path, straight)
    assert train(make_config(world), tmp_path)["started_at"] == STEPS
    assert len(calls) == STEPS
    assert first_rows == sorted(first_rows) and first_rows[0] == 0 < first_rows[-1]


@pytest.mark.slow  # the test above stops at any step; test_torture.py kills
def test_killed_between_two_saves_is_bitwise_the_same(world, straight, tmp_path):
    """kill -9 in step 4, after a save: nothing could be said or saved, and nothing is lost."""
    code = (
        "import os, pathlib, signal, sys\n"
        "sys.path.insert(0, sys.argv[3])\n"
        "from tests.train import test_loop as t\n"
        "put, calls = t.module.put_batch, []\n"
        "def put_and_die(batch, mesh):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return put(batch, mesh)\n"
        "t.module.put_batch = put_and_die\n"
        "t.train(t.make_config(pathlib.Path(sys.argv[1])), sys.argv[2])\n"
    )
    env = dict(
        os.environ,
        JAX_COMPILATION_CACHE_DIR=str(world / "cache"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(world), str(tmp_path), str(ROOT)],
        env=env,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert train(make_config(world), tmp_path)["started_at"] in (0, 2)
    assert_same_end(tmp_path, straight)


def test_a_loss_that_is_no_number_stops_the_run(world, tmp_path, monkeypatch):
    """It is named and never saved: the newest checkpoint is the one before, and it verifies."""
    put, calls = module.put_batch, []

    def put_and_spoil(batch, mesh):
        calls.append(1)
        if len(calls) == 4:
            batch = {**batch, "patches": np.full_like(batch["patches"], np.nan)}
        return put(batch, mesh)

    monkeypatch.setattr(module, "put_batch", put_and_spoil)
    with pytest.raises(UserError, match="step 4: loss is nan; .* checkpoint is that of step 3:"):
        train(make_config(world, save_every=1), tmp_path)
    assert parameters(tmp_path)[0] == 3
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]


def test_a_last_checkpoint_that_is_damaged_is_no_mistake_of_the_user(
    world, straight, tmp_path, monkeypatch
):
    """Storage that loses bits between save and verify: RunFailure, which launchers start again, in
    one line; the second start goes on from the step before and ends as a run that had no damage.
    """
    verify = Checkpoints.verify

    def lose_a_bit_and_verify(self, step, target):
        self.wait()
        data = (self.directory / str(step)).glob("params/**/d/*")
        path = max(filter(pathlib.Path.is_file, data), key=lambda path: path.stat().st_size)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        verify(self, step, target)

    monkeypatch.setattr(Checkpoints, "verify", lose_a_bit_and_verify)
    with pytest.raises(RunFailure, match=f"{STEPS} does not verify: .*is not what was saved") as e:
        train(make_config(world), tmp_path)
    assert "\n" not in str(e.value)
    monkeypatch.undo()
    assert train(make_config(world), tmp_path)["started_at"] == STEPS - 2
    assert_same_end(tmp_path, straight)


def test_a_workdir_of_another_run_is_refused(world, straight):
    """All differences in one line; what does not change the parameters may differ."""
    config = make_config(world, learning_rate=1e-4, log_every=3, save_every=1)
    config.seed, config.objective.lambda_exp, config.model.remat = 7, 0.0, "full"
    with pytest.raises(UserError, match="another run") as error:
        train(config, straight)
    message = str(error.value)
    for name in ("seed was 0, now 7", "objective.lambda_exp was 0.3", "train.learning_rate was"):
        assert name in message
    for name in ("log_every", "save_every", "remat", "trees was", "\n"):
        assert name not in message


def test_a_workdir_is_trained_into_by_one(world, straight, tmp_path, monkeypatch, capsys):
    """A second `srpo train` on it is told in one line and changes nothing; one that was taken for
    dead, and whose workdir another one took, saves nothing more. The first sign of life is that it
    compiles, which no rate and no ETA counts.
    """
    config, before = make_config(world), {p: p.stat().st_mtime_ns for p in straight.rglob("*")}
    with module.owner_of(straight):
        with pytest.raises(UserError, match="trained into by process .* of this machine; wait"):
            train(config, straight)
    # straight itself changes, as files of owners come and go in it
    now = {p: p.stat().st_mtime_ns for p in straight.rglob("*")}
    assert now == before and not (straight / "train.owner").exists()

    real = StepMetrics.report

    def report(self, step, *args):
        other = {**owners.identity(), "host": "pod-7"}
        (tmp_path / "train.owner").write_text(json.dumps(other))
        return real(self, step, *args)

    monkeypatch.setattr(StepMetrics, "report", report)
    with pytest.raises(RunFailure, match="machine pod-7, which took over"):
        train(config, tmp_path)
    said = capsys.readouterr()
    assert re.match(r"train: compiling, which .*\ntrain: compiled in \d+ s\n", said.err)
    first, second = [text for text in said.out.splitlines() if text.startswith("step ")][:2]
    assert "ETA" not in first and "tok/s" not in first and "ETA" in second
    assert not any(p.name.isdigit() for p in (tmp_path / "checkpoints").iterdir())


def test_settings_that_do_not_fit_are_one_line(world, tmp_path):
    """Rows over slices, and trees that are not there: told before anything is written."""
    config = make_config(world, accumulate=3)
    with pytest.raises(UserError, match="pack.rows=2 does not divide"):
        train(config, tmp_path / "a")
    config = make_config(world)
    config.data.trees = ""
    with pytest.raises(UserError, match="srpo explore"):
        train(config, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_dpo_resumes_with_the_base_policy_as_reference(world, tmp_path):
    """The checkpoint holds the trained parameters only; the reference is read from the model."""
    cfg = make_config(world)
    cfg.objective.contrast = "dpo"
    setup = module.make_setup(cfg, tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        base, _ = module.first_state(cfg, setup, checkpoints)
        params = jax.tree.map(lambda x: x + 1, base.params)
        trained = base._replace(step=base.step + 1, params=params)
        checkpoints.save(trained, setup.run, {"num_tokens": 5})
        checkpoints.wait()
        found, notes = module.first_state(cfg, setup, checkpoints)
    jax.tree.map(np.testing.assert_array_equal, found, trained)
    assert notes == {"num_tokens": 5}


def test_first_interrupt_waits_and_the_second_does_not():
    """Ctrl-C once finishes the step; twice means now. The handlers are put back."""
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert not stop.asked(1)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked(1) and stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            stop.asked(1)
    assert signal.getsignal(signal.SIGINT) is before
