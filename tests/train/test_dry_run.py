"""srpo_jax/train/dry_run.py and setup.py: what is known before a run, with nothing written."""

from __future__ import annotations

import collections
import contextlib
import re
import shutil
import sys

import jax
import pytest

from srpo_jax.config.convert import as_config
from srpo_jax.errors import UserError
from srpo_jax.inference.prompting import load_asking
from srpo_jax.runs.identity import write_config
from srpo_jax.train.checkpoint.manager import Checkpoints
from srpo_jax.train.checkpoint.seal import space_needed
from srpo_jax.train.dry_run import dry_run
from srpo_jax.train.loop import first_state, train
from srpo_jax.train.setup import counts, make_setup
from tests.support import judged
from tests.support.tiny import tiny_qwen2_5_vl
from tests.train.test_loop import make_config, tree_record


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dry")
    tiny_qwen2_5_vl(folder / "model")
    judged.write_judged(folder / "trees", [tree_record(i) for i in range(9)])
    return folder


def everything_in(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_it_tells_sizes_and_writes_nothing(world, tmp_path):
    """Bytes per device are float32 weights and two moments; the disk is as it was, and no workdir
    was made.
    """
    before = everything_in(world)
    said = dry_run(make_config(world), tmp_path / "new" / "run")
    assert everything_in(world) == before and not list(tmp_path.iterdir())
    trained, total = counts(make_setup(make_config(world), tmp_path))
    assert trained == total and f"parameters: {total} trained of {total}" in said
    assert f"parameters {4 * total / 1e6:.1f} MB, optimizer {8 * total / 1e6:.1f} MB" in said
    assert "9 questions" in said and "6 steps are" in said and "a new run" in said
    config = make_config(world)
    config.lora.rank = 2
    assert re.search(r"frozen policy \d", dry_run(config, tmp_path / "run"))


def test_trees_of_another_prompt_are_refused(world, tmp_path):
    """Log-probs under another prompt are of another policy; on the bare question, as RPO trains,
    the tokenizer and the template must still be the same. A workdir keeps its prompt.
    """
    config = make_config(world)
    config.prompt.system = "Be kind."
    asking = load_asking(as_config(config), config.model.path)
    trees = [tree_record(i) for i in range(9)]
    for tree in trees:
        asked = {"prompt_digest": asking.digest, "prompt": asking.about}
        tree["provenance"] = {**tree["provenance"], **asked}
    judged.write_judged(tmp_path / "trees", trees)
    config.data.trees = str(tmp_path / "trees")
    alike = make_setup(config, tmp_path)
    config.prompt.train = "bare"
    bare = make_setup(config, tmp_path)
    lengths = [len(s.batches.examples.outline(0).prompt.tokens) for s in (alike, bare)]
    assert lengths[0] > lengths[1] and alike.run != bare.run
    config.prompt.train, config.prompt.system = "same", "Be unkind."
    with pytest.raises(UserError, match="explored with another prompt"):
        make_setup(config, tmp_path)
    shutil.copytree(config.model.path, tmp_path / "model")
    file = tmp_path / "model" / "chat_template.json"
    file.write_text(file.read_text().replace("assistant", "helper"))
    config.model.path, config.prompt.train = str(tmp_path / "model"), "bare"
    with pytest.raises(UserError, match="explored with another chat template"):
        make_setup(config, tmp_path)
    config = make_config(world)
    (tmp_path / "old" / "checkpoints" / "3").mkdir(parents=True)
    write_config(config, make_setup(config, tmp_path).run, {}, tmp_path / "old")
    config.model.path = str(tmp_path / "model")
    with pytest.raises(UserError, match="another run.*chat template"):
        dry_run(config, tmp_path / "old")


def test_what_would_end_the_run_ends_the_dry_run(world, tmp_path, monkeypatch):
    """Another run's workdir, missing trees, a mesh that does not fit, a disk that is too small."""
    config = make_config(world)
    (tmp_path / "old" / "checkpoints" / "3").mkdir(parents=True)
    write_config(config, make_setup(config, tmp_path).run, {}, tmp_path / "old")
    assert "goes on from step 3" in dry_run(config, tmp_path / "old")
    other = make_config(world, learning_rate=1e-4)
    with pytest.raises(UserError, match="another run.*learning_rate"):
        dry_run(other, tmp_path / "old")
    other = make_config(world)
    other.data.trees = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="srpo explore"):
        dry_run(other, tmp_path)
    other = make_config(world)
    other.mesh.tensor = 3
    with pytest.raises(UserError, match="mesh data="):
        dry_run(other, tmp_path)
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 5, 5))
    with pytest.raises(UserError, match="a checkpoint takes"):
        dry_run(config, tmp_path)


def test_the_disk_must_have_what_a_save_asks_for(world, tmp_path, monkeypatch):
    """Room for the arrays alone is too little for both, and what a save is content with is enough
    for both.
    """
    config = make_config(world)
    stored = make_setup(config, tmp_path).target._replace(base=None)
    state = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), stored)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    usage = collections.namedtuple("usage", "total used free")
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for free, fits in ((space_needed(size) - 1, False), (space_needed(size), True)):
            monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(0, 0, free))
            with contextlib.nullcontext() if fits else pytest.raises(OSError, match="No space"):
                checkpoints.save(state, {})
            with contextlib.nullcontext() if fits else pytest.raises(UserError, match="takes"):
                dry_run(config, tmp_path / "other")


def test_what_the_run_refuses_later_ends_the_dry_run_too(world, tmp_path, monkeypatch):
    """A checkpoint past the end, a tracker that is not installed, a cache that others can write or
    that lies below a file: the line that the run would end with, and nothing is made.
    """

    def lines(config, workdir=tmp_path / "run"):
        said = []
        for start in (dry_run, train):
            with pytest.raises(UserError) as error:
                start(config, workdir)
            said.append(str(error.value))
            assert start is train or not (tmp_path / "run").exists()
        same = [line.partition(" (")[0] for line in said]  # the system's own words may differ
        assert same[0] == same[1] and "\n" not in said[0]
        return said[0]

    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "wandb is not installed" in lines(make_config(world, report_to="tensorboard,wandb"))
    shutil.rmtree(tmp_path / "run", ignore_errors=True)

    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    (tmp_path / "file").touch()
    for folder, why in (("shared", "can be written by others"), ("file", "cannot be used")):
        cache = str(tmp_path / folder)
        assert why in lines(make_config(world, compilation_cache=cache))
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
    with pytest.raises(UserError, match="cannot be used"):
        dry_run(make_config(world, compilation_cache=str(tmp_path / "file" / "x")), tmp_path)
    unmade = tmp_path / "not" / "yet"
    assert dry_run(make_config(world, compilation_cache=str(unmade)), tmp_path / "run")
    assert not unmade.parent.exists()

    config = make_config(world, schedule="constant")
    setup = make_setup(config, tmp_path)
    with Checkpoints(tmp_path / "old" / "checkpoints") as checkpoints:
        state, _ = first_state(config, setup, checkpoints)
        checkpoints.save(state._replace(step=jax.numpy.int32(9)), setup.run)
    write_config(config, setup.run, {}, tmp_path / "old")
    assert "is at step 9, past train.steps=6" in lines(config, tmp_path / "old")
