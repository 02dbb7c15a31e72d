"""srpo_jax/export/hf_checkpoint.py."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from srpo_jax.errors import UserError
from srpo_jax.export import hf_checkpoint as export
from srpo_jax.export.hf_checkpoint import export_checkpoint
from srpo_jax.models.hf.load import load_params
from srpo_jax.models.registry import load_model_config
from srpo_jax.places import is_moving
from tests.support.failing_disk import Killed
from tests.support.faulty_place import FaultyPlace
from tests.support.layouts import rename_tensors
from tests.support.tiny import tiny_qwen2_5_vl

SHARD = 60_000


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def loaded(folder, **kwargs):
    config = load_model_config(folder)
    return load_params(folder, config, **kwargs), config


@pytest.mark.parametrize("newer", [False, True], ids=["hub", "newer"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("shard", [None, SHARD], ids=["single", "sharded"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_import_then_export_gives_back_every_byte(tmp_path, dtype, shard, tied, newer):
    """Tensors, names, shards, index, header metadata and all other files are the source's."""
    source = tiny_qwen2_5_vl(tmp_path / "in", dtype=dtype, tied=tied, max_shard_size=shard)
    if newer:
        rename_tensors(source)
    for cast in (None, np.float32):  # training usually holds the parameters in float32
        params, config = loaded(source, dtype=cast)
        out = tmp_path / f"out_{cast}"
        export_checkpoint(params, source, out, config)
        assert files(out) == files(source)


@pytest.mark.parametrize("newer", [False, True], ids=["hub", "newer"])
def test_transformers_loads_what_was_trained(tmp_path, newer):
    """No missing, unexpected or mismatched key, and the changed values, not the source's."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForImageTextToText

    source = tiny_qwen2_5_vl(tmp_path / "in", tied=False, max_shard_size=SHARD)
    if newer:
        rename_tensors(source)
    params, config = loaded(source)
    trained = jax.tree.map(lambda x: np.asarray(x) * 1.5 + 0.25, params)
    export_checkpoint(trained, source, tmp_path / "out", config)
    model, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=torch.float32
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state = model.state_dict()
    for ours, theirs in (
        (params["lm_head"]["kernel"].T, state["lm_head.weight"]),
        (
            params["layers"]["mlp"]["down"]["kernel"][1].T,
            state["model.language_model.layers.1.mlp.down_proj.weight"],
        ),
        (params["vision"]["merger"]["fc2"]["bias"], state["model.visual.merger.mlp.2.bias"]),
    ):
        assert np.array_equal(np.asarray(ours) * 1.5 + 0.25, theirs.numpy())


def test_values_are_rounded_to_the_source_dtype(tmp_path):
    """float32 parameters of a bfloat16 checkpoint are rounded to nearest, not cut."""
    source = tiny_qwen2_5_vl(tmp_path / "in", dtype="bfloat16")
    params, config = loaded(source, dtype=np.float32)
    params["norm"]["scale"] = jnp.full_like(params["norm"]["scale"], 1 + 2**-8 + 2**-12)
    export_checkpoint(params, source, tmp_path / "out", config)
    written = load_file(tmp_path / "out/model.safetensors")["model.norm.weight"]
    assert str(written.dtype) == "bfloat16" and (written.astype(np.float32) == 1 + 2**-7).all()


def test_a_tied_head_in_the_file_follows_the_embedding(tmp_path):
    """A source that stores its tied head twice gets both copies of the trained values."""
    from safetensors.numpy import save_file

    source = tiny_qwen2_5_vl(tmp_path / "in")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    params, config = loaded(source)
    trained = jax.tree.map(lambda x: np.asarray(x) + 1, params)
    export_checkpoint(trained, source, tmp_path / "out", config)
    written = load_file(tmp_path / "out/model.safetensors")
    assert np.array_equal(written["lm_head.weight"], tensors["lm_head.weight"] + 1)
    assert np.array_equal(written["lm_head.weight"], written["model.embed_tokens.weight"])


def test_other_files_are_copied_and_other_weights_are_not(tmp_path):
    """Folders and links (the Hub cache is made of links) come along; old weights do not."""
    source = tiny_qwen2_5_vl(tmp_path / "in")
    (source / "chat_templates").mkdir()
    (source / "chat_templates/tool.jinja").write_text("{{ x }}")
    (tmp_path / "blob").write_text("linked")
    (source / "merges.link").symlink_to(tmp_path / "blob")
    for name in ("pytorch_model.bin", "model.gguf", "model.safetensors.index.json"):
        (source / name).write_text("stale")
    (source / ".cache").mkdir()
    (source / ".cache/lock").write_text("x")
    expected = files(source)
    for name in ("pytorch_model.bin", "model.gguf", "model.safetensors.index.json", ".cache/lock"):
        del expected[name]
    params, config = loaded(source)
    export_checkpoint(params, source, tmp_path / "out", config)
    assert files(tmp_path / "out") == expected
    assert not (tmp_path / "out/merges.link").is_symlink()


def test_model_card_replaces_the_sources_readme(tmp_path):
    """With a card README.md is ours; without one it is the source's."""
    source = tiny_qwen2_5_vl(tmp_path / "in")
    (source / "README.md").write_text("base")
    params, config = loaded(source)
    export_checkpoint(params, source, tmp_path / "a", config)
    export_checkpoint(params, source, tmp_path / "b", config, model_card="# Safer\n")
    assert (tmp_path / "a/README.md").read_text() == "base"
    assert (tmp_path / "b/README.md").read_text() == "# Safer\n"


def test_nothing_is_overwritten(tmp_path):
    """A folder with something in it, a file, and the source itself are refused; empty is fine."""
    source = tiny_qwen2_5_vl(tmp_path / "in")
    params, config = loaded(source)
    before = files(source)
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").write_text("precious")
    for out in (full, full / "x", source, source / "export"):
        with pytest.raises(UserError):
            export_checkpoint(params, source, out, config)
    assert files(source) == before and files(full) == {"x": b"precious"}
    (tmp_path / "empty").mkdir()
    export_checkpoint(params, source, tmp_path / "empty", config)
    assert files(tmp_path / "empty") == before


def test_parameters_of_another_model_are_refused(tmp_path):
    """A missing parameter, an extra one and another shape are named before anything is written."""
    source = tiny_qwen2_5_vl(tmp_path / "in")
    params, config = loaded(source)
    for path, value in (
        ("lm_head/kernel", {**params, "lm_head": {"kernel": jnp.zeros((2, 2))}}),
        ("norm/scale", {k: v for k, v in params.items() if k != "norm"}),
        ("norm/scale", {**params, "norm": {"scale": jnp.zeros(3)}}),
    ):
        with pytest.raises(UserError, match=path):
            export_checkpoint(value, source, tmp_path / "out", config)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_an_export_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    """out_dir is complete or absent; the rest of a killed export does not stand in the way."""
    source = tiny_qwen2_5_vl(tmp_path / "in")
    params, config = loaded(source)
    with monkeypatch.context() as patched:
        patched.setattr(export, "_write_weights", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_checkpoint(params, source, tmp_path / "out", config)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial/junk").write_text("killed")
    export_checkpoint(params, source, tmp_path / "out", config)
    assert files(tmp_path / "out") == files(source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


def test_an_export_that_is_killed_leaves_nothing_that_looks_complete(tmp_path):
    """SIGKILL between two weight files: no folder of that name, and the next export is whole."""
    source = tiny_qwen2_5_vl(tmp_path / "in", max_shard_size=SHARD)
    script = f"""
        import os, signal
        from srpo_jax.export import hf_checkpoint as export
        from srpo_jax.models.hf.load import load_params
        from srpo_jax.models.registry import load_model_config

        config = load_model_config({str(source)!r})
        write, left = export._write_weights, [2]

        def write_and_die(*args):
            left[0] -= 1
            return write(*args) if left[0] else os.kill(os.getpid(), signal.SIGKILL)

        export._write_weights = write_and_die
        params = load_params({str(source)!r}, config)
        export.export_checkpoint(params, {str(source)!r}, {str(tmp_path / "out")!r}, config)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)])
    assert done.returncode == -signal.SIGKILL
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.partial", "in"]
    assert not (tmp_path / ".out.partial/model.safetensors.index.json").exists()
    params, config = loaded(source)
    export_checkpoint(params, source, tmp_path / "out", config)
    assert files(tmp_path / "out") == files(source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("at", [None, 0, 3])
@pytest.mark.parametrize("folders", ["refused", "steps"])
def test_an_export_to_a_mounted_bucket_is_whole_or_made_again(tmp_path, folders, at):
    """Where a folder's rename is refused, or takes many steps and is killed in the middle."""
    source = tiny_qwen2_5_vl(tmp_path / "in")
    params, config = loaded(source)
    out = tmp_path / "bucket" / "out"
    if at is not None:
        with pytest.raises(Killed), FaultyPlace(tmp_path / "bucket", dies_after=at)():
            export_checkpoint(params, source, out, config)
        assert is_moving(out)
    with FaultyPlace(tmp_path / "bucket", folders=folders, stale_seconds=60)():
        export_checkpoint(params, source, out, config)
    assert files(out) == files(source) and list(out.parent.iterdir()) == [out]


def spoiled(params, path, value):
    """The parameters with one number of one of them changed."""
    *parents, last = path.split("/")
    changed = jax.tree.map(np.array, params)
    node = changed
    for parent in parents:
        node = node[parent]
    node[last].reshape(-1)[5] = value
    return changed


@pytest.mark.parametrize(
    ("dtype", "value", "says"),
    [
        ("float32", np.nan, "model.norm.weight has 1 NaN and 0 inf among 64"),
        ("bfloat16", -np.inf, "model.norm.weight has 0 NaN and 1 inf"),
        ("float16", 7e4, "0 NaN and 1 inf \\(above what float16 holds"),
    ],
)
def test_a_number_that_is_none_is_refused_by_name(tmp_path, dtype, value, says):
    """NaN, inf and what float16 cannot hold: one line without a warning, no folder; with the option
    it is written as it is."""
    source = tiny_qwen2_5_vl(tmp_path / "in", dtype=dtype, max_shard_size=SHARD)
    params, config = loaded(source, dtype=np.float32)
    wrong = spoiled(params, "norm/scale", value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=says) as error:
            export_checkpoint(wrong, source, tmp_path / "out", config)
        assert "--allow_nonfinite" in str(error.value) and "\n" not in str(error.value)
        assert [path.name for path in tmp_path.iterdir()] == ["in"]
        export_checkpoint(wrong, source, tmp_path / "out", config, allow_nonfinite=True)
    again = loaded(tmp_path / "out", dtype=np.float32)[0]["norm"]["scale"]
    kept = np.float32(value) if dtype != "float16" else np.float32(np.inf)
    assert np.array_equal(again[5], kept, equal_nan=True)


def test_a_number_that_is_none_is_found_wherever_it_is(tmp_path):
    """In the first, a middle and the last of many pieces; several tensors are all named."""
    value = np.zeros(1000, np.float32)
    for place in (0, 499, 999):
        value[:] = 0
        value[place] = np.nan
        assert export.nonfinite("x", value, piece=64) == [
            "x has 1 NaN and 0 inf among 1000 numbers"
        ]
    value[:] = np.finfo(np.float32).max
    assert export.nonfinite("x", value, piece=64) == []
    source = tiny_qwen2_5_vl(tmp_path / "in")
    params, config = loaded(source)
    wrong = spoiled(spoiled(params, "norm/scale", np.nan), "vision/merger/fc2/bias", np.inf)
    with pytest.raises(UserError, match="model.norm.weight.*visual.merger.mlp.2.bias"):
        export_checkpoint(wrong, source, tmp_path / "out", config)
