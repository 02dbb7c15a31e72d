"""srpo_jax/models/hf/load.py."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
import time

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from srpo_jax.errors import UserError
from srpo_jax.export.hf_checkpoint import export_checkpoint
from srpo_jax.models.hf.load import list_tensors, load_params
from srpo_jax.models.hf.tensor_match import match
from srpo_jax.models.hf.weights_digest import policy_digest
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


BUFFERS = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": np.linspace(0, 1, 8, dtype=np.float32),
    "visual.rotary_pos_emb.inv_freq": np.linspace(0, 1, 4),
    "vision_tower.vision_model.embeddings.position_ids": np.arange(17)[None],
    "position_ids": np.arange(3, dtype=np.int32),
}


def test_buffers_that_older_versions_saved_are_copied_and_not_read(tmp_path):
    """transformers computes them; here the parameters are those without, the export has them."""
    params = load(tiny_qwen2_5_vl(tmp_path / "in"))
    edit(tmp_path / "in", lambda tensors: tensors.update(BUFFERS))
    assert same(load(tmp_path / "in"), params)
    config = load_model_config(tmp_path / "in")
    export_checkpoint(params, tmp_path / "in", tmp_path / "out", config)
    files = [tmp_path / name / "model.safetensors" for name in ("in", "out")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_buffer_in_an_unknown_place_is_still_refused(tmp_path):
    """Only those names are let through, and only they may be integers."""
    tiny_qwen2_5_vl(tmp_path)
    edit(tmp_path, lambda t: t.update({"visual.freq": np.ones(3, np.float32)}))
    assert "no parameter for: visual.freq" in refused(tmp_path)
    edit(tmp_path, lambda t: t.update({"visual.freq": np.ones(3, np.int64)}))
    assert "not visual.freq I64" in refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("base_model.model.{}", np.float32, "merge them"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", np.float32, "merge"),
        ("model.layers.0.self_attn.q_proj.lora_B.default.weight", np.float32, "merge"),
        ("model.layers.0.self_attn.q_proj.base_layer.weight", np.float32, "merge"),
        ("model.layers.0.self_attn.q_proj.weight_scale", np.float32, "quantised"),
        ("model.layers.0.self_attn.q_proj.weight_scale_inv", np.float32, "quantised"),
        ("model.layers.0.self_attn.q_proj.qweight", np.int32, "quantised"),
        ("model.layers.0.self_attn.q_proj.weight.absmax", np.uint8, "quantised"),
        ("module.{}", np.float32, "training wrapper"),
        ("_orig_mod.{}", np.float32, "training wrapper"),
    ],
)
def test_a_checkpoint_of_another_kind_says_what_to_do(tmp_path, name, kind, says):
    """By its tensors' names: all of them wrapped, or some that no plain model has."""
    tiny_qwen2_5_vl(tmp_path)

    def change(tensors):
        if "{}" in name:
            renamed = {name.format(n): value for n, value in tensors.items()}
            tensors.clear()
            tensors.update(renamed)
        else:
            tensors[name] = np.ones(4, kind)

    edit(tmp_path, change)
    assert says in refused(tmp_path)


def test_adapters_are_told_with_and_without_a_model_beside_them(tmp_path):
    """A model with adapters beside it is another one in transformers than its weights say."""
    tiny_qwen2_5_vl(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "merge them" in refused(tmp_path)
    (tmp_path / "config.json").unlink()
    assert "holds adapters alone" in refused(tmp_path)


def test_a_head_that_is_not_there_says_which_setting_counts(tmp_path):
    """transformers would begin with a random one."""
    config = json.loads((tiny_qwen2_5_vl(tmp_path, tied=True) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    assert "lm_head.weight; without a head of its own" in refused(tmp_path)


def test_a_header_or_index_too_large_to_be_a_models_is_refused_at_once(tmp_path):
    """400,000 tensors, an index nested 100,000 deep, a model of a million layers: no wait."""
    folder = tiny_qwen2_5_vl(tmp_path, max_shard_size=SHARD)
    began = time.process_time()
    for text in ('{"weight_map": ' + "[" * 100_000, " " * (9 << 20)):
        (folder / INDEX).write_text(text)
        assert "not a readable index" in refused(folder)
    entry = '"a%d":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    listed = ",".join(entry % (i, 4 * i, 4 * i + 4) for i in range(400_000))
    header = ("{" + listed + "}").encode()
    data = len(header).to_bytes(8, "little") + header + bytes(4 * 400_000)
    (folder / "model.safetensors").write_bytes(data)
    assert "a header of" in refused(folder)
    config = load_model_config(folder)
    text = dataclasses.replace(config.text, num_layers=10**9)
    with pytest.raises(UserError, match="which is absurd"):
        match({}, dataclasses.replace(config, text=text), "here")
    assert time.process_time() - began < 5


def test_names_that_forge_a_message_are_shown_on_one_line(tmp_path):
    """A tensor's name is a stranger's text."""
    tiny_qwen2_5_vl(tmp_path)
    edit(tmp_path, lambda t: t.update({"a\n\x1b[31m" * 500: np.ones(1, np.float32)}))
    assert refused(tmp_path).isprintable() and len(refused(tmp_path)) < 800


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
