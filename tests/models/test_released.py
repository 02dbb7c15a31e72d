"""Released models, from their config.json alone: parameter counts, shapes, shardings. No weights.

tests/support/released/ holds config.json of released models (the keys that matter). PUBLISHED are
the numbers of parameters that the files' index or the model card gives.
"""

from __future__ import annotations

import json
import math

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from srpo_jax.distributed.mesh import AXES
from srpo_jax.distributed.sharding import SMALL_BYTES, param_shardings
from srpo_jax.models.blocks.param_paths import by_path
from srpo_jax.models.hf.tensor_match import table
from srpo_jax.models.policy_model import abstract_params
from srpo_jax.models.registry import FAMILIES
from tests.support import RELEASED

PUBLISHED = {
    "qwen2_5_vl_3b": 3_754_622_976,
    "qwen2_5_vl_7b": 8_292_166_656,
    "qwen2_5_vl_32b": 33_452_718_336,
    "qwen2_5_vl_72b": 73_410_777_344,
    "qwen3_vl_2b": 2_127_532_032,
    "qwen3_vl_4b": 4_437_815_808,
    "qwen3_vl_8b": 8_767_123_696,
    "qwen3_vl_32b": 33_357_390_064,
    "internvl_3_1b": 938_193_024,
    "internvl_3_2b": 2_088_957_440,
    "internvl_3_8b": 7_944_373_760,
    "internvl_3_5_1b": 1_060_897_792,
    "smolvlm_256m": 256_484_928,
    "llava_1_5_7b": 7_063_427_072,
    "llava_1_6_mistral_7b": 7_566_747_648,
    "smolvlm_v2_500m": 507_482_304,
    "smolvlm_v2_2b": 2_246_784_880,
}


def read(name: str):
    file = RELEASED / f"{name}.json"
    raw = json.loads(file.read_text())
    family = FAMILIES[raw["model_type"]]
    return family.read_config(str(file), raw, family)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_released_sizes_have_the_published_parameter_counts(name):
    """Counted twice: what a checkpoint would hold by the name table, and the model's own arrays."""
    config = read(name)
    held = sum(math.prod(entry.disk) * (entry.layers or 1) for entry in table(config))
    assert held == PUBLISHED[name]
    text = config.text
    padding = (text.padded_vocab - text.vocab_size) * text.hidden_size
    padding *= 1 if text.tie_word_embeddings else 2
    unused = sum(
        math.prod(entry.disk) * (entry.layers or 1)
        for entry in table(config)
        if entry.param is None
    )
    arrays = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
    assert arrays - padding + unused == PUBLISHED[name]


@pytest.mark.parametrize("name", sorted(path.stem for path in RELEASED.glob("*.json")))
def test_released_sizes_split_over_a_pod(name):
    """64 devices: the name table and the model agree, and nothing of 4 MB or more stays whole."""
    config = read(name)
    params = by_path(abstract_params(config))
    named = {e.param: e.full_shape for e in table(config) if e.param is not None}
    assert named == {path: leaf.shape for path, leaf in params.items()}
    mesh = AbstractMesh((1, 64, 1), AXES, axis_types=(AxisType.Auto,) * 3)
    shardings = by_path(param_shardings(abstract_params(config), mesh))
    for path, leaf in params.items():
        part = math.prod(shardings[path].shard_shape(leaf.shape))
        # Norm scales and biases stay whole: 2.6 MB at 72B.
        assert leaf.size * 4 < 4 * SMALL_BYTES or part * 64 == leaf.size, path
