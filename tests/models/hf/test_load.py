"""srpo_jax/models/hf/load.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from srpo_jax.errors import UserError
from srpo_jax.models.hf.load import list_tensors, load_params, policy_digest
from srpo_jax.models.registry import load_model_config
from tests.support.layouts import rename_tensors
from tests.support.tiny import HEADS, HIDDEN, tiny_qwen2_5_vl

INDEX = "model.safetensors.index.json"
SHARD = 60_000


def same(a, b) -> bool:
    flat_a, flat_b = (dict(jax.tree_util.tree_leaves_with_path(t)) for t in (a, b))
    return flat_a.keys() == flat_b.keys() and all(
        flat_a[k].dtype == flat_b[k].dtype and np.array_equal(flat_a[k], flat_b[k]) for k in flat_a
    )


def load(folder, **kwargs):
    return load_params(folder, load_model_config(folder), **kwargs)


def refused(folder) -> str:
    with pytest.raises(UserError) as error:
        load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def edit(folder, change) -> None:
    """Rewrites model.safetensors after `change(tensors)`."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_tensors_land_where_the_model_reads_them(tmp_path):
    """Heads, layers and the q|k|v order, written out by hand for one tensor of each kind."""
    disk = load_file(tiny_qwen2_5_vl(tmp_path, tied=False) / "model.safetensors")
    params = load(tmp_path)
    d = HIDDEN // HEADS
    q, o = disk["model.layers.1.self_attn.q_proj.weight"], "model.layers.1.self_attn.o_proj.weight"
    qkv = disk["visual.blocks.2.attn.qkv.weight"]
    head = params["layers"]["attn"]["q"]["kernel"][1, :, 3, :]
    assert np.array_equal(head, q[3 * d : 4 * d].T)
    assert np.array_equal(
        params["layers"]["attn"]["o"]["kernel"][1, 3], disk[o][:, 3 * d : 4 * d].T
    )
    assert np.array_equal(
        params["vision"]["blocks"]["attn"]["qkv"]["kernel"][2, :, 2, 1, :], qkv[80:96].T
    )
    assert np.array_equal(params["lm_head"]["kernel"], disk["lm_head.weight"].T)
    patch = disk["visual.patch_embed.proj.weight"]
    assert np.array_equal(params["vision"]["patch_embed"]["kernel"][:, 5], patch[5].ravel())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_spelling_and_shards_do_not_matter(tmp_path, dtype):
    """Single file, shards, Hub names, newer names: the same parameters, in the file's dtype."""
    one = load(tiny_qwen2_5_vl(tmp_path / "one", dtype=dtype))
    shards = tiny_qwen2_5_vl(tmp_path / "shards", dtype=dtype, max_shard_size=SHARD)
    assert len(list(shards.glob("*.safetensors"))) > 2
    assert same(one, load(shards))
    assert same(one, load(rename_tensors(shards)))
    assert {str(x.dtype) for x in jax.tree.leaves(one)} == {dtype}


def test_dtype_is_that_asked_for(tmp_path):
    """A cast happens on the way in, by rounding to nearest."""
    params = load(tiny_qwen2_5_vl(tmp_path))
    cast = load(tmp_path, dtype=ml_dtypes.bfloat16)
    assert same(cast, jax.tree.map(lambda x: np.asarray(x).astype(ml_dtypes.bfloat16), params))


def test_a_tied_head_in_the_file_must_equal_the_embedding(tmp_path):
    """Equal: still one parameter. Different: refused, because tools disagree on what it means."""
    params = load(tiny_qwen2_5_vl(tmp_path))
    edit(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    assert same(load(tmp_path), params)
    edit(tmp_path, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}))
    assert "tie_word_embeddings" in refused(tmp_path)


def test_no_weights_or_other_weights_are_refused(tmp_path):
    """A folder without safetensors says so, and pickled weights are never opened."""
    tiny_qwen2_5_vl(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "no weights" in refused(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    assert "only safetensors" in refused(tmp_path)
    with pytest.raises(UserError, match="no such checkpoint directory"):
        list_tensors(tmp_path / "absent")


@pytest.mark.parametrize(
    "name", ["../evil.safetensors", "/etc/hostname", "a/b.safetensors", "..", 7]
)
def test_an_index_that_names_a_file_outside_the_folder_is_refused(tmp_path, name):
    """The index cannot make us read a file that is not the checkpoint's."""
    folder = tiny_qwen2_5_vl(tmp_path / "model", max_shard_size=SHARD)
    (tmp_path / "evil.safetensors").write_bytes((folder / "tokenizer.json").read_bytes())
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = name
    (folder / INDEX).write_text(json.dumps(index))
    assert f"names a file outside the folder: {name!r}" in refused(folder)


def test_an_index_that_disagrees_with_its_files_is_refused(tmp_path):
    """A missing shard, a tensor in another shard, one that is listed but absent, not JSON."""
    folder = tiny_qwen2_5_vl(tmp_path, max_shard_size=SHARD)
    good = json.loads((folder / INDEX).read_text())
    shards = sorted(set(good["weight_map"].values()))

    def with_map(**changes):
        (folder / INDEX).write_text(json.dumps({"weight_map": {**good["weight_map"], **changes}}))
        return refused(folder)

    assert "not in the folder" in with_map(**{"model.norm.weight": "absent.safetensors"})
    assert "disagree on model.norm.weight" in with_map(**{"model.norm.weight": shards[0]})
    assert "disagree on ghost" in with_map(ghost=shards[0])
    for damaged in ("{", "[]", '{"weight_map": [1]}'):
        (folder / INDEX).write_text(damaged)
        assert "not a readable index" in refused(folder)


def test_a_tensor_in_two_files_is_refused(tmp_path):
    """Neither copy is preferred."""
    folder = tiny_qwen2_5_vl(tmp_path, max_shard_size=SHARD)
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    both = load_file(first) | load_file(second)
    save_file(both, second, {"format": "pt"})
    assert "in two weight files" in refused(folder)


def test_damaged_or_odd_weight_files_are_refused(tmp_path):
    """Cut off, overwritten, or in a dtype that would be changed silently."""
    file = tiny_qwen2_5_vl(tmp_path) / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-4], whole[:100], b"", b"\xff" * 64):
        file.write_bytes(damaged)
        assert "not a readable safetensors file" in refused(tmp_path)
    file.write_bytes(whole)
    edit(tmp_path, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].astype("f8")}))
    assert "model.norm.weight F64" in refused(tmp_path)


def test_digest_is_of_weights_and_config(tmp_path):
    """The same policy has the same digest wherever it lies; one changed bit gives another."""
    a, b = (tiny_qwen2_5_vl(tmp_path / n, max_shard_size=SHARD) for n in "ab")
    assert policy_digest(a) == policy_digest(b) and len(policy_digest(a)) == 16
    shard = sorted(b.glob("*.safetensors"))[-1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert policy_digest(a) != policy_digest(b)
    (a / "generation_config.json").unlink()
    changed = policy_digest(a)
    (a / "config.json").write_text((a / "config.json").read_text() + " ")
    assert policy_digest(a) != changed


@pytest.mark.multi_device
def test_sharded_loading_and_export(tmp_path):
    """Over 8 devices every device holds its slice of the same parameters, and export undoes it."""
    folder = tiny_qwen2_5_vl(tmp_path / "model", dtype="bfloat16", max_shard_size=SHARD)
    script = f"""
        import jax, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from srpo_jax.models.hf import stream
        from srpo_jax.export.hf_checkpoint import export_checkpoint
        from srpo_jax.models.hf.load import load_params
        from srpo_jax.models.registry import load_model_config

        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
        config = load_model_config({str(folder)!r})
        whole = load_params({str(folder)!r}, config)

        def spread(leaf):  # axis 0 (layers) over y where it divides, the last one over x
            axes = [None] * leaf.ndim
            axes[-1] = "x" if leaf.shape[-1] % 4 == 0 else None
            axes[0] = "y" if leaf.shape[0] % 2 == 0 and leaf.ndim > 1 else axes[0]
            return NamedSharding(mesh, P(*axes))

        shardings = jax.tree.map(spread, whole)
        for stream.PIECE in (3000, stream.PIECE):  # a device's slice in several pieces, in one
            params = load_params({str(folder)!r}, config, shardings=shardings)
            for a, b, s in zip(*map(jax.tree.leaves, (whole, params, shardings))):
                assert b.sharding == s and np.array_equal(a, b)
        export_checkpoint(params, {str(folder)!r}, {str(tmp_path / "out")!r}, config)
    """
    flags = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PJRT_NPROC": "32",
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, **flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for file in folder.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
