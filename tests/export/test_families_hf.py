"""All families: import and export give back every byte, and transformers finds every key."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from srpo_jax.export.hf_checkpoint import export_checkpoint
from srpo_jax.models.hf.load import load_params
from srpo_jax.models.hf.tensor_match import table
from srpo_jax.models.policy_model import abstract_params
from srpo_jax.models.registry import load_model_config
from tests.support.families import CASES, oracle
from tests.support.layouts import rename_tensors

SHARD = 60_000
LAYOUTS = [(name, layout) for name, case in CASES.items() for layout in case.module.LAYOUTS]


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
@pytest.mark.parametrize("shard", [None, SHARD], ids=["single", "sharded"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_import_then_export_gives_back_every_byte(tmp_path, name, layout, shard, dtype):
    """Tensors, names, shards, index, header metadata and all other files are the source's."""
    case = CASES[name]
    for tied in case.module.TIED:
        source = case.make(tmp_path / f"in_{tied}", dtype=dtype, tied=tied, max_shard_size=shard)
        rename_tensors(source, case.module.LAYOUTS[layout])
        config = load_model_config(source)
        params = load_params(source, config, dtype=np.float32)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
            lambda x: (x.shape, x.dtype), abstract_params(config)
        )
        export_checkpoint(params, source, tmp_path / f"out_{tied}", config)
        assert files(tmp_path / f"out_{tied}") == files(source)


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_transformers_finds_every_key_of_an_export(tmp_path, name, layout):
    """No missing, unexpected or mismatched key, and the trained values, not the source's."""
    torch = pytest.importorskip("torch")
    case = CASES[name]
    source = case.make(tmp_path / "in", max_shard_size=SHARD)
    rename_tensors(source, case.module.LAYOUTS[layout])
    config = load_model_config(source)
    params = load_params(source, config, dtype=np.float32)
    trained = jax.tree.map(lambda x: np.asarray(x) * 1.5 + 0.25, params)
    before = {name: value.clone() for name, value in oracle(source).state_dict().items()}
    export_checkpoint(trained, source, tmp_path / "out", config)
    kept = sum(entry.layers or 1 for entry in table(config) if entry.param is None)
    same, changed = 0, 0
    for name, value in oracle(tmp_path / "out").state_dict().items():
        same += torch.equal(value, before[name])
        changed += torch.equal(value, before[name] * 1.5 + 0.25)
    assert same == kept and same + changed == len(before)
