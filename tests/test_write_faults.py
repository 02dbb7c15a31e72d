"""Whatever write, fsync or rename fails, the same command again ends with the same files.

As SQLite tests itself: the n-th operation fails, for every n, once as a disk that is full from then
on and once as a process that is killed there.
"""

from __future__ import annotations

import functools
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from srpo_jax import owners
from srpo_jax.config.convert import as_config
from srpo_jax.errors import UserError
from srpo_jax.evaluate import evaluate as evaluating
from srpo_jax.evaluate.evaluate import evaluate
from srpo_jax.explore import explorer, shard_leases
from srpo_jax.explore.explore import explore
from srpo_jax.export.export import export
from srpo_jax.judge.judge import judge
from srpo_jax.runs.report.page import write_report
from tests.export.test_export import run as exported_run
from tests.support.failing_disk import FailingDisk, Killed
from tests.support.small_world import ArithmeticArbiter, RecitingEngine, write_world

# A killed process lets go of no shard's claim.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
TOLD = ("ledger", "trees.claims", ".owner")  # times, and which process it was
Files = dict[str, bytes]
Stage = tuple[pathlib.Path | None, Callable[[pathlib.Path], Any]]  # starts from, does
run = exported_run  # a fixture of another module


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The config of a tiny world, whose samples are recited."""
    config = as_config(write_world(tmp_path_factory.mktemp("world")))
    with pytest.MonkeyPatch.context() as patch:
        # A claim or an owner of which half is written says of nobody that he is dead: it is waited
        # for, here not for minutes.
        patch.setitem(shard_leases.ShardLeases.__init__.__kwdefaults__, "lease_seconds", 0.2)
        patch.setitem(owners.Owner.__init__.__kwdefaults__, "still", 0.2)
        patch.setattr(explorer, "Engine", RecitingEngine)
        patch.setattr(evaluating, "Engine", RecitingEngine)
        # The tiny policy is the same every time; loading it is most of the time.
        for module in (evaluating, explorer_module()):
            patch.setattr(module, "load_policy", functools.cache(module.load_policy))
        yield config


def explorer_module() -> Any:
    from srpo_jax.explore import explore as module

    return module


@pytest.fixture(scope="module")
def stages(world, run, tmp_path_factory) -> dict[str, Stage]:
    """Of every stage: the workdir that it starts from, and what it does there."""
    explored = tmp_path_factory.mktemp("explored") / "run"
    explore(world, explored)
    answered = tmp_path_factory.mktemp("answered") / "run"
    evaluate(world, answered, "x")
    judged = tmp_path_factory.mktemp("judged") / "run"
    shutil.copytree(explored, judged)
    judge(world, judged, arbiter=ArithmeticArbiter())
    return {
        "explore": (None, lambda folder: explore(world, folder)),
        "judge": (explored, lambda folder: judge(world, folder, arbiter=ArithmeticArbiter())),
        "eval": (None, lambda folder: evaluate(world, folder, "x")),
        "judge answers": (
            answered,
            lambda folder: judge(world, folder, arbiter=ArithmeticArbiter(), answers="x"),
        ),
        "export": (run[1], lambda folder: export(folder, folder / "export")),
        "report": (judged, lambda folder: write_report(folder)),
    }


def files(folder: pathlib.Path) -> Files:
    """All but temporary files (a killed process leaves them) and what tells times."""
    found = {p.relative_to(folder): p for p in folder.rglob("*") if p.is_file()}
    return {
        str(name): path.read_bytes()
        for name, path in sorted(found.items())
        if ".tmp-" not in str(name) and not any(word in str(name) for word in TOLD)
    }


def attempt(stage: Stage, folder: pathlib.Path, disk: FailingDisk) -> bool:
    """Whether the stage ends on that disk. One that is killed is another process than the next."""
    with pytest.MonkeyPatch.context() as patch:
        if disk.kill:
            dead = {**owners.identity(), "pid": 2**22 + 1}  # more than Linux gives
            for module in (owners, shard_leases):
                patch.setattr(module, "identity", lambda: dead)
        try:
            with disk():
                stage[1](folder)
        except (OSError, Killed):
            return False
    return True


def start(stage: Stage, folder: pathlib.Path) -> pathlib.Path:
    if stage[0] is None:
        folder.mkdir()
    else:
        shutil.copytree(stage[0], folder)
    return folder


def survive(stage: Stage, tmp_path: pathlib.Path, every: int) -> int:
    """Tries every so many points of a stage, killed and full; returns how many there are."""
    whole = start(stage, tmp_path / "run")
    disk = FailingDisk(whole)
    assert attempt(stage, whole, disk) and disk.count > 2
    expected = files(whole)
    shutil.rmtree(whole)
    for at in range(1, disk.count + 1, every):
        for kill in (False, True):
            folder = start(stage, tmp_path / "run")  # the same place: some files name it
            failing = FailingDisk(folder, at, kill=kill)
            ended = attempt(stage, folder, failing)
            assert failing.failed and not (ended and kill), (at, kill)
            if not kill:
                left = [p for p in folder.rglob("*") if ".tmp-" in p.name]
                assert not left, (at, left)
            try:
                stage[1](folder)
            except UserError as error:  # it failed behind the last rename: all is there
                assert "exists already" in str(error)
            found = files(folder)
            assert found.keys() == expected.keys(), (at, kill)
            wrong = [name for name in expected if found[name] != expected[name]]
            assert not wrong, (at, kill, wrong)
            shutil.rmtree(folder)
    return disk.count


STAGES = ("explore", "judge", "eval", "judge answers", "export", "report")


@pytest.mark.parametrize("name", STAGES)
def test_some_points_of_every_stage_may_fail(stages, tmp_path, capsys, name):
    """A few points of each; see the next test for all."""
    survive(stages[name], tmp_path, every=40 if name == "export" else 11)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_any_point_of_every_stage_may_fail(stages, tmp_path, capsys, name):
    """The rerun ends with the same bytes (ledgers apart), and nothing half-written counts."""
    count = survive(stages[name], tmp_path, every=1)
    with capsys.disabled():
        print(f"\n{name}: {count} points, failed twice each, all survived")
