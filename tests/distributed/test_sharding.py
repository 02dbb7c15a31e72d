"""srpo_jax/distributed/sharding.py at the real models' sizes, without allocating anything."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from srpo_jax.distributed.mesh import AXES
from srpo_jax.distributed.sharding import RULES, SMALL_BYTES, ShardingRule, param_shardings
from srpo_jax.errors import UserError
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.param_paths import by_path
from srpo_jax.models.blocks.text_config import TextConfig
from srpo_jax.models.families.qwen2_5_vl import FAMILY
from srpo_jax.models.families.qwen2_5_vl.model import VisionConfig
from srpo_jax.models.policy_model import abstract_params
from srpo_jax.train.optimizer import make_optimizer
from srpo_jax.train.train_state import abstract_state, state_shardings

MESHES = {"8x1": (1, 8, 1), "4x2": (1, 4, 2), "2x2x2": (2, 2, 2)}


def model(size: str) -> ModelConfig:
    """The shapes of Qwen2.5-VL-3B and -7B."""
    if size == "3B":
        text = dict(
            vocab_size=151936,
            hidden_size=2048,
            num_layers=36,
            num_heads=16,
            num_kv_heads=2,
            intermediate_size=11008,
            tie_word_embeddings=True,
        )
    else:
        text = dict(
            vocab_size=152064,
            hidden_size=3584,
            num_layers=28,
            num_heads=28,
            num_kv_heads=4,
            intermediate_size=18944,
            tie_word_embeddings=False,
        )
    text |= dict(head_dim=128, rope_theta=1e6, rms_norm_eps=1e-6, mrope_section=(16, 24, 24))
    vision = VisionConfig(
        depth=32,
        hidden_size=1280,
        num_heads=16,
        intermediate_size=3420,
        patch_size=14,
        temporal_patch_size=2,
        spatial_merge_size=2,
        window_size=112,
        fullatt_block_indexes=(7, 15, 23, 31),
        in_channels=3,
        out_hidden_size=text["hidden_size"],
    )
    ids = (151655, 151656, 151652, 151653)
    return ModelConfig("qwen2_5_vl", TextConfig(**text), vision, *ids, family=FAMILY)


def mesh_of(sizes) -> AbstractMesh:
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("size", ["3B", "7B"])
def test_nothing_large_is_left_whole(size, name):
    """Every parameter of 1 MB or more, and both its moments, are split over fsdp and tensor."""
    sizes = MESHES[name]
    abstract = abstract_params(model(size))
    train = ConfigDict(
        dict(
            steps=1,
            learning_rate=1.0,
            warmup_steps=0,
            schedule="constant",
            weight_decay=0.0,
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            clip_norm=1.0,
            freeze=(),
            optimizer="adamw",
        )
    )
    shape = abstract_state(abstract, make_optimizer(train, abstract), with_reference=True)
    shardings = state_shardings(shape, mesh_of(sizes))
    leaves = jax.tree.leaves(jax.tree.map(lambda x, s: (x, s), shape, shardings), is_leaf=_is_pair)
    total = here = 0
    for leaf, place in leaves:
        nbytes = math.prod(leaf.shape) * leaf.dtype.itemsize
        part = math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        # A vision patch embedding has no axis for tensor; everything else large has both.
        assert nbytes < SMALL_BYTES or part <= nbytes / sizes[1], leaf
        total, here = total + nbytes, here + part
    assert here < 1.02 * total / (sizes[1] * sizes[2])
    # parameters, two moments and the reference policy, each float32
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(abstract))
    assert total == pytest.approx(16 * count, rel=1e-6)


def _is_pair(x) -> bool:
    return isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], jax.ShapeDtypeStruct)


def test_table_and_model_must_agree():
    """A parameter without a rule, with two, or a rule without a parameter is an error."""
    abstract, mesh = abstract_params(model("3B")), mesh_of((1, 8, 1))
    with pytest.raises(ValueError, match="lora/a must match one sharding rule, got .*no rule"):
        param_shardings({**abstract, "lora": {"a": abstract["norm"]["scale"]}}, mesh)
    with pytest.raises(ValueError, match="match no parameter: .*adapter"):
        param_shardings(abstract, mesh, (*RULES, ShardingRule("adapter/.*", P())))
    with pytest.raises(ValueError, match="norm/scale must match one"):
        param_shardings(abstract, mesh, (*RULES, ShardingRule("norm/scale", P())))


def test_axes_that_do_not_divide():
    """Large: refused, naming parameter, shape and mesh axis. Small: that axis stays whole."""
    with pytest.raises(UserError, match=r"layers/attn/k/kernel of shape .*tensor=4") as error:
        param_shardings(abstract_params(model("3B")), mesh_of((1, 2, 4)))  # 2 kv heads
    assert "\n" not in str(error.value)
    config = model("3B")
    text = dataclasses.replace(
        config.text, vocab_size=97, hidden_size=32, num_layers=1, intermediate_size=64
    )
    vision = dataclasses.replace(
        config.vision,
        depth=1,
        hidden_size=32,
        num_heads=4,
        intermediate_size=64,
        out_hidden_size=32,
    )
    small = dataclasses.replace(config, text=text, vision=vision)
    shardings = by_path(param_shardings(abstract_params(small), mesh_of((1, 2, 4))))
    assert shardings["embed/embedding"].spec == P(None, None)
    assert shardings["layers/attn/k/kernel"].spec == P(None, "fsdp", None, None)
    assert shardings["layers/attn/q/kernel"].spec == P(None, "fsdp", "tensor", None)
    assert abstract_params(small)["embed"]["embedding"].dtype == jnp.float32
