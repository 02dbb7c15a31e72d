"""srpo_jax/export/verify.py: an export is told from one that is nearly it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from srpo_jax.export import verify as module
from srpo_jax.export.hf_checkpoint import export_checkpoint
from srpo_jax.export.verify import Mismatch, verify
from srpo_jax.models.blocks.tensor_spec import EMBEDDING
from srpo_jax.models.hf.load import load_params, placed_tensors
from srpo_jax.models.registry import FAMILIES, load_model_config
from tests.support.families import CASES


class Exported:
    """A tiny checkpoint, parameters that are not its own, and their export."""

    def __init__(self, folder, case, dtype="float32", **options):
        self.source = case.make(folder / "source", dtype=dtype, **options)
        self.config = load_model_config(self.source)
        base = load_params(self.source, self.config, dtype=np.float32)
        # What no bfloat16 holds exactly, so that rounding is put to the test.
        self.params = jax.tree.map(lambda x: x * 1.0007, base)
        self.out = folder / "out"
        export_checkpoint(self.params, self.source, self.out, self.config)

    def verify(self):
        return verify(self.out, self.source, self.params, self.config)

    def edit(self, change) -> None:
        file = self.out / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, {"format": "pt"})


@pytest.fixture
def exported(tmp_path):
    return Exported(tmp_path, CASES["qwen2_5_vl"], tied=False)


@pytest.mark.parametrize(
    ("name", "dtype"), [("qwen2_5_vl", "float32"), *((name, "bfloat16") for name in CASES)]
)
def test_transformers_computes_what_was_trained(tmp_path, name, dtype):
    """Every family, and as close for files in bfloat16: rounding is on both sides."""
    pytest.importorskip("torch")
    found = Exported(tmp_path, CASES[name], dtype).verify()
    assert found.by.startswith("transformers ") and found.tensors > 50
    assert 0 < found.difference < found.allowed / 10 and 1e-4 <= found.allowed < 1e-3


def test_without_torch_our_importer_compares(tmp_path):
    """The same question, by another road to the same numbers; a mismatch is found there too."""
    exported = Exported(tmp_path, CASES["qwen2_5_vl"], "bfloat16")
    script = f"""
        import sys
        sys.modules["torch"] = None
        import jax, numpy as np
        from srpo_jax.export import verify as module
        from srpo_jax.models.hf.load import load_params
        from srpo_jax.models.registry import load_model_config
        source, out = {str(exported.source)!r}, {str(exported.out)!r}
        config = load_model_config(source)
        params = jax.tree.map(lambda x: x * 1.0007, load_params(source, config, dtype=np.float32))
        found = module.verify(out, source, params, config)
        print(found.by, found.difference, found.allowed >= 1e-4)
        params["norm"]["scale"] *= 1.01
        module._read_back = lambda *_: 0
        try:
            module.verify(out, source, params, config)
        except module.Mismatch as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    equal, different = done.stdout.splitlines()
    assert equal == "srpo_jax's own importer 0.0 True"
    assert "by srpo_jax's own importer differ by" in different


@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.o_proj.weight", "visual.blocks.2.norm1.weight"]
)
def test_one_changed_bit_is_refused_by_name(exported, name):
    """Of any tensor, however little the logits care."""

    def change(tensors):
        flat = tensors[name].reshape(-1).view(np.uint32)
        flat[-1] ^= 1

    exported.edit(change)
    with pytest.raises(Mismatch, match=f"not the trained ones: {name}$"):
        exported.verify()


def test_swapped_and_transposed_tensors_are_refused(exported):
    """Shapes do not tell these; values do."""
    q, o = (f"model.layers.0.self_attn.{x}_proj.weight" for x in "qo")
    exported.edit(lambda t: t.update({q: t[o], o: t[q]}))
    with pytest.raises(Mismatch, match=f"{o}, {q}$"):
        exported.verify()
    exported.edit(lambda t: t.update({q: t[o], o: np.ascontiguousarray(t[q].T)}))
    with pytest.raises(Mismatch, match=f"not the trained ones: {o}$"):
        exported.verify()


def test_a_wrong_table_is_seen_by_transformers_only(tmp_path, monkeypatch):
    """Import and export that agree with each other on a wrong place give back every byte; another
    program is what finds them out. Here gate and up change places on both ways."""
    pytest.importorskip("torch")
    case = CASES["qwen2_5_vl"]
    family = FAMILIES["qwen2_5_vl"]

    def swapped(name):
        swap = {"layers.{i}.mlp.gate_": "layers.{i}.mlp.up_"}
        swap |= {b: a for a, b in swap.items()}
        return next((name.replace(a, b) for a, b in swap.items() if a in name), name)

    def wrong(config):
        return [
            dataclasses.replace(entry, name=swapped(entry.name)) for entry in family.tensors(config)
        ]

    monkeypatch.setitem(FAMILIES, "qwen2_5_vl", dataclasses.replace(family, tensors=wrong))
    with pytest.raises(Mismatch, match="logits of a question with a picture by transformers"):
        Exported(tmp_path, case).verify()


@pytest.mark.parametrize("change", [{"rope_theta": 10000.0}, {"rms_norm_eps": 1e-5}], ids=str)
def test_another_config_is_refused(exported, change):
    """The weights are right, and what others would compute with them is not."""
    pytest.importorskip("torch")
    path = exported.out / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(Mismatch, match="differ by"):
        exported.verify()


def test_what_transformers_cannot_load_is_refused(exported, monkeypatch):
    """A key that it misses, a file that it refuses."""
    pytest.importorskip("torch")
    monkeypatch.setattr(module, "_read_back", lambda *_: 0)  # which would say so first
    exported.edit(lambda t: t.pop("model.norm.weight"))
    with pytest.raises(Mismatch, match="missing_keys: model.language_model.norm.weight"):
        exported.verify()
    (exported.out / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(Mismatch, match="transformers cannot load it"):
        exported.verify()


def test_an_edit_is_verified_too(tmp_path):
    """A function of the source's values, as merged adapters are exported."""
    case = CASES["qwen2_5_vl"]
    source = case.make(tmp_path / "source", dtype="bfloat16")
    config = load_model_config(source)

    def edit(path, layer, value):
        return value.astype(np.float32) * (1.0 if path == EMBEDDING else 1.25)

    export_checkpoint(edit, source, tmp_path / "out", config)
    found = verify(tmp_path / "out", source, edit, config)
    assert found.tensors == len(placed_tensors(source, config))
    with pytest.raises(Mismatch, match="not the trained ones"):
        verify(tmp_path / "out", source, lambda path, layer, value: value, config)


def test_a_refused_export_does_not_appear(tmp_path):
    """check is called with the whole folder, and what it raises undoes the export."""
    source = CASES["qwen2_5_vl"].make(tmp_path / "source")
    config = load_model_config(source)
    params = load_params(source, config)
    seen = []

    def check(folder):
        seen.append({p.name for p in folder.iterdir()})
        raise Mismatch("no")

    with pytest.raises(Mismatch):
        export_checkpoint(params, source, tmp_path / "out", config, check=check)
    assert seen == [{p.name for p in source.iterdir()}]
    assert [p.name for p in tmp_path.iterdir()] == ["source"]
