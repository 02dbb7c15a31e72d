"""`srpo export`: from a workdir's checkpoint to a folder with its model card."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from srpo_jax.cli import main as cli
from srpo_jax.config.convert import stored_config
from srpo_jax.config.load import load_config
from srpo_jax.errors import UserError
from srpo_jax.export import verify
from srpo_jax.export.export import export, newest_params, sampling_params
from srpo_jax.inference.policy import params_digest
from srpo_jax.models.hf.load import load_params
from srpo_jax.models.hf.weights_digest import policy_digest
from srpo_jax.models.registry import load_model_config
from srpo_jax.runs.identity import policy_files
from srpo_jax.runs.workdir import read_config
from srpo_jax.train.checkpoint.manager import Checkpoints
from srpo_jax.train.train_state import TrainState
from tests.support import ROOT
from tests.support.bucket_server import serving
from tests.support.tiny import tiny_qwen2_5_vl


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(source folder, workdir) of a run that added 2 to every parameter in 2 steps, which was best,
    and took 1 away in the third.
    """
    folder = tmp_path_factory.mktemp("export")
    source = tiny_qwen2_5_vl(folder / "tiny-base")
    params = load_params(source, load_model_config(source), dtype=np.float32)
    workdir = folder / "run"
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        for step, added, loss in ((2, 2, 0.1), (3, 1, 0.5)):
            after = jax.tree.map(lambda x, added=added: x + added, params)
            state = TrainState(jnp.int32(step), after, {"count": jnp.int32(step)})
            checkpoints.save(state, {"seed": 0}, metrics={"loss": loss})
    config = load_config(f"{ROOT}/configs/ssui_mini.py", [f"--config.model.path={source}"])
    recorded = {"trees": "abc123", "model weights": policy_digest(source)}
    stored = {"config": config.to_dict(), "run": recorded, "policy": policy_files(source)}
    (workdir / "config.json").write_text(json.dumps(stored))
    (workdir / "metrics.jsonl").write_text('{"step": 3, "loss": 0.5}\n{"step": 4, "loss": 0.1}\n')
    return source, workdir


def test_the_newest_checkpoint_is_exported_with_a_card(run, capsys):
    """The folder has the source's files with the new values, and a card that tells the step, the
    method and the last metrics, without a path of this machine."""
    source, workdir = run
    assert cli.main(["export", f"--workdir={workdir}"]) == 0
    assert capsys.readouterr().out == f"exported to {workdir}/export\n"
    old, new = (load_file(f / "model.safetensors") for f in (source, workdir / "export"))
    assert old.keys() == new.keys()
    for name, value in new.items():
        assert (value == (old[name].astype(np.float32) + 1).astype(value.dtype)).all(), name
    card = (workdir / "export" / "README.md").read_text()
    assert (
        "step 3 of" in card and "loss 0.5" in card and "`tiny-base`" in card and "`abc123`" in card
    )
    assert str(workdir.parent) not in card


def test_a_run_whose_policy_lies_in_a_bucket_is_exported_alike(run, tmp_path, monkeypatch):
    """The policy is fetched again, and the export is the same, card and all."""
    source, workdir = run
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    other, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(workdir, other, ignore=shutil.ignore_patterns("export"))
    stored = json.loads((workdir / "config.json").read_text())
    stored["config"]["model"]["path"] = f"gs://bucket-a/models/{source.name}"
    (other / "config.json").write_text(json.dumps(stored))
    assert cli.main(["export", f"--workdir={workdir}", f"--out={out}"]) == 0
    under = f"bucket-a/models/{source.name}"
    files = [path for path in source.rglob("*") if path.is_file() and ".cache" not in path.parts]
    with serving({f"{under}/{f.relative_to(source)}": f.read_bytes() for f in files}):
        assert cli.main(["export", f"--workdir={other}", f"--out={tmp_path}/fetched"]) == 0
    for path in out.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "fetched" / path.relative_to(out)).read_bytes()


def test_another_step_is_exported_by_number_or_as_the_best(run, tmp_path, capsys):
    """--step=best is the lowest loss that a kept step was saved with; what is not there is said."""
    source, workdir = run
    old = load_file(source / "model.safetensors")
    for step in ("best", "2"):
        out = tmp_path / step
        assert cli.main(["export", f"--workdir={workdir}", f"--out={out}", f"--step={step}"]) == 0
        new = load_file(out / "model.safetensors")
        for name, value in new.items():
            assert (value == (old[name].astype(np.float32) + 2).astype(value.dtype)).all(), name
        assert "step 2 of" in (out / "README.md").read_text()
    for step, said in (("7", "no checkpoint of step 7"), ("last", "a step's number, or best")):
        argv = ["export", f"--workdir={workdir}", f"--out={tmp_path}/no", f"--step={step}"]
        assert cli.main(argv) == 2 and said in capsys.readouterr().err


def test_what_cannot_be_exported_is_one_line(run, tmp_path, capsys):
    """An output folder in use, a workdir without a config, or without a checkpoint: exit code 2."""
    _, workdir = run
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x").touch()
    (tmp_path / "bare").mkdir()
    (tmp_path / "untrained").mkdir()
    (tmp_path / "untrained" / "config.json").write_text((workdir / "config.json").read_text())
    for argv, said in (
        ([f"--workdir={workdir}", f"--out={tmp_path}/used"], "exists already"),
        ([f"--workdir={workdir}", f"--out={tmp_path}/used/x/y"], "used/x is a file"),
        ([f"--workdir={tmp_path}/bare"], "no config.json"),
        ([f"--workdir={tmp_path}/untrained"], "run `srpo train` first"),
    ):
        assert cli.main(["export", *argv]) == 2
        out, err = capsys.readouterr()
        assert out == "" and said in err and err.count("\n") == 1, err


def test_verify_compares_and_says_with_what(run, tmp_path, capsys):
    """One line of what was compared; on a mismatch exit code 1, one line, and no folder."""
    _, workdir = run
    command = ["export", f"--workdir={workdir}", f"--out={tmp_path}/good", "--verify"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("verified: 68 tensors read back; logits of a question")
    assert said[1] == f"exported to {tmp_path}/good"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "TOLERANCE", -1.0)
        assert cli.main([*command[:2], f"--out={tmp_path}/bad", "--verify"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("srpo export: error: not exported") and err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["good"]


def test_a_base_that_changed_since_training_is_refused(run, tmp_path, capsys):
    """Its files are what the export is cut after: other weights or another config are told."""
    source, workdir = run
    config = (source / "config.json").read_bytes()
    (source / "config.json").write_bytes(config + b" ")
    try:
        assert cli.main(["export", f"--workdir={workdir}", f"--out={tmp_path}/out"]) == 2
    finally:
        (source / "config.json").write_bytes(config)
    err = capsys.readouterr().err
    assert "has another config.json than when" in err and err.count("\n") == 1
    weights = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    try:
        assert cli.main(["export", f"--workdir={workdir}", f"--out={tmp_path}/out"]) == 2
    finally:
        (source / "model.safetensors").write_bytes(weights)
    err = capsys.readouterr().err
    assert "holds other weights" in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def changed(file):
    """A change to a file of the policy that its reader accepts."""
    if file.name == "config.json":
        return file.read_text().replace("1e-06", "2e-06")
    if file.name == "chat_template.json":
        return file.read_text().replace("assistant", "helper")
    content = json.loads(file.read_text())
    if file.name == "generation_config.json":
        content["eos_token_id"] = content["eos_token_id"][:1]
    if file.name == "preprocessor_config.json":
        content["max_pixels"] = 31360
    return json.dumps(content, indent=7)


POLICY_FILES = (
    "config.json",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "generation_config.json",
)


@pytest.mark.parametrize("name", POLICY_FILES)
def test_a_policy_whose_files_changed_since_training_is_no_longer_the_runs(run, tmp_path, name):
    """Tokenizer, template, pictures, end tokens, config: export, and whatever else takes the run's
    weights (evaluating, asking, exploring from it), would pair them with another policy's files."""
    source, workdir = run
    before = (source / name).read_bytes()
    config = stored_config(read_config(workdir))
    (source / name).write_text(changed(source / name))
    try:
        for act in (
            lambda: export(workdir, tmp_path / "out"),
            lambda: newest_params(config, workdir),
            lambda: sampling_params(config, workdir),
        ):
            with pytest.raises(UserError, match="another .* than when .* was trained") as error:
                act()
            assert ("config.json" in str(error.value).split(" than when ")[0]) == (
                name == "config.json"
            )
    finally:
        (source / name).write_bytes(before)
    assert not list(tmp_path.iterdir())
    assert newest_params(config, workdir)[0] == 3


def test_the_same_weights_with_another_config_are_another_policy(run):
    """In the identity of what is sampled or answered with a run's parameters."""
    source, _ = run
    params = {"a": np.ones(3, np.float32)}
    before = params_digest(params, source)
    old = (source / "config.json").read_bytes()
    (source / "config.json").write_bytes(old + b" ")
    try:
        assert params_digest(params, source) != before
    finally:
        (source / "config.json").write_bytes(old)
    assert params_digest(params, source) == before


def test_a_full_disk_is_told_before_anything_is_written(run, tmp_path, capsys, monkeypatch):
    """Exit code 1, one line, and nothing left behind."""
    _, workdir = run
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 1000))
    assert cli.main(["export", f"--workdir={workdir}", f"--out={tmp_path}/out"]) == 1
    err = capsys.readouterr().err
    assert "no space left on the disk" in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
