"""srpo_jax/models/flops.py against XLA's count, against 6 N T, and against the trees of a batch."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.distributed.accelerators import peak_flops
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.param_paths import by_path
from srpo_jax.models.flops import Flops, Work, features_of, model_flops
from srpo_jax.models.policy_model import PolicyModel, abstract_params, head_matrix
from srpo_jax.models.registry import FAMILIES
from srpo_jax.pack.tree_layout import visible_pairs
from srpo_jax.train import step_metrics as tally
from srpo_jax.train.losses.objective import Objective
from srpo_jax.train.optimizer import make_optimizer
from srpo_jax.train.setup import Setup
from tests.support import RELEASED
from tests.support import multi_device_run as tiny
from tests.support.batch_work import batch_work

TOKENS, PATCHES = 256, 256  # one row, as long as attention is computed whole


def flat_model(tied: bool) -> ModelConfig:
    """One layer of each tower: no loop is left in the program, so XLA's count is right."""
    config = tiny.tiny_config(tied=tied)
    text = dataclasses.replace(
        config.text,
        num_layers=1,
        hidden_size=256,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        intermediate_size=512,
        vocab_size=512,
        mrope_section=(8, 12, 12),
    )
    vision = dataclasses.replace(
        config.vision,
        depth=1,
        hidden_size=128,
        num_heads=2,
        intermediate_size=256,
        out_hidden_size=256,
        fullatt_block_indexes=(0,),
        patch_size=8,
    )
    return dataclasses.replace(config, text=text, vision=vision)


def xla_flops(config: ModelConfig, trained: str) -> float:
    """Of the gradient by the parameters whose path begins with `trained`; dense attention."""
    model = PolicyModel(config)
    params = abstract_params(config)
    vision = config.vision
    inputs = {
        "tokens": jax.ShapeDtypeStruct((1, TOKENS), jnp.int32),
        "positions": jax.ShapeDtypeStruct((1, 3, TOKENS), jnp.int32),
        "subtree_end": jax.ShapeDtypeStruct((1, TOKENS), jnp.int32),
        "image_index": jax.ShapeDtypeStruct((1, TOKENS), jnp.int32),
        "patches": jax.ShapeDtypeStruct((1, PATCHES, vision.patch_dim), jnp.float32),
        **{f.name: jax.ShapeDtypeStruct((1, PATCHES, *f.shape), f.dtype) for f in vision.fields},
    }
    mine = {path: leaf for path, leaf in by_path(params).items() if path.startswith(trained)}

    def loss(mine, params, inputs):
        leaves = {**by_path(params), **mine}
        params = jax.tree.unflatten(jax.tree.structure(params), list(leaves.values()))
        hidden = model.apply({"params": params}, inputs)
        return jnp.sum(jnp.square(hidden @ head_matrix(params, config)))

    compiled = jax.jit(jax.grad(loss)).lower(mine, params, inputs).compile()
    return compiled.cost_analysis()["flops"]


@pytest.mark.parametrize(
    "trained, tied", [("", True), ("", False), ("layers/", False), ("vision/", False)]
)
def test_equals_xlas_count_of_a_flat_model(trained, tied):
    """Full training, a frozen tower, a frozen decoder: within what is no matrix product (6 %)."""
    config = flat_model(tied)
    params = abstract_params(config)
    work = Work(TOKENS, TOKENS**2, TOKENS, PATCHES, PATCHES**2)
    paths = [path for path in by_path(params) if path.startswith(trained)]
    ours = model_flops(config, params, work, trainable=paths)
    measured = xla_flops(config, trained)
    assert 1.0 < measured / ours.total < 1.06, (measured, ours)


@pytest.mark.parametrize("name", ["qwen2_5_vl_3b", "qwen2_5_vl_7b", "qwen2_5_vl_72b"])
def test_is_six_per_parameter_and_token_where_that_is_meant(name):
    """Every token a target, no picture, no attention: 6 x (layers' kernels + head) x tokens."""
    config = released(name)
    params = abstract_params(config)
    sizes = {path: leaf.size for path, leaf in by_path(params).items()}
    ours = model_flops(config, params, Work(1000, 0, 1000, 0, 0))
    head = config.text.hidden_size * config.text.vocab_size
    layers = sum(size for path, size in sizes.items() if path.startswith("layers/"))
    assert ours.total == pytest.approx(6 * (layers + head) * 1000, rel=1e-3)  # norms and biases
    assert ours.vision == 0 and ours.attention == 0


def test_the_usual_attention_term():
    """A causal row of T tokens: 6 L H d T^2 for training (12 for the whole square, half of it)."""
    config = released("qwen2_5_vl_7b")
    text, length = config.text, 8192
    pairs = visible_pairs(np.full(length, length))
    assert pairs == length * (length + 1) // 2
    ours = model_flops(config, abstract_params(config), Work(0, pairs, 0, 0, 0))
    expected = 6 * text.num_layers * text.num_heads * text.head_dim * length**2
    assert ours.attention == pytest.approx(expected, rel=1e-3)


def test_what_is_frozen_costs_less():
    """A frozen tower: forward only. Adapters: no dW of the kernels, and their own six. DPO: one
    more forward pass, a third."""
    config = released("qwen2_5_vl_3b")
    params = abstract_params(config)
    work = Work(1000, 5e5, 800, 1024, 1024**2)
    full = model_flops(config, params, work)
    paths = list(by_path(params))
    no_tower = model_flops(
        config, params, work, trainable=[p for p in paths if not p.startswith("vision/")]
    )
    assert no_tower.vision == pytest.approx(full.vision / 3, rel=1e-2)  # the pixels have no dx
    assert no_tower[:3] == full[:3]
    # Only what comes behind the blocks: no gradient goes through these. dW of both products, dx of
    # the second one.
    behind = [p for p in paths if p.startswith("vision/merger/")]
    merger = model_flops(config, params, work, trainable=behind)
    features, width = features_of(config.vision, work.patches), 4 * config.vision.hidden_size
    first, second = 2 * width * width * features, 2 * width * 2048 * features
    assert merger.vision - no_tower.vision == pytest.approx(first + 2 * second)
    rank = 8
    pair = {"lora_a": np.zeros((36, 2048, rank)), "lora_b": np.zeros((36, rank, 16, 128))}
    adapters = {"layers": {"attn": {"q": pair}}}
    lora = model_flops(config, params, work, trainable=list(by_path(adapters)), adapters=adapters)
    own = 6 * 36 * rank * (2048 + 16 * 128) * work.tokens
    assert lora.decoder - own == pytest.approx(full.decoder * 2 / 3)
    assert lora.head == pytest.approx(full.head * 2 / 3)
    dpo = model_flops(config, params, work, reference=True)
    assert dpo.total == pytest.approx(full.total * 4 / 3, rel=1e-2)
    assert isinstance(full, Flops) and full.total == sum(full)


def test_the_work_of_a_batch_is_that_of_its_trees():
    """Tokens, visible pairs, targets and patches, counted one by one; padding counts nothing."""
    config = tiny.tiny_config()
    batch = tiny.random_batch(config, 3)
    rows, length = batch["tokens"].shape
    tokens = pairs = patches = patch_pairs = 0
    for row in range(rows):
        ends = batch["subtree_end"][row]
        used = max((end for j, end in enumerate(ends) if end > j + 1), default=0)
        tokens += used
        pairs += sum(j <= i < ends[j] for j in range(used) for i in range(length))
        seg = batch["full_seg"][row]
        patches += int((seg >= 0).sum())
        patch_pairs += sum(int((seg == k).sum()) ** 2 for k in set(seg[seg >= 0].tolist()))
    targets = int((batch["target_segment"] < batch["seq_segments"].shape[-1]).sum())
    assert batch_work(batch, config) == Work(tokens, pairs, targets, patches, patch_pairs)
    assert 0 < tokens < rows * length and patches > 0


def released(name: str) -> ModelConfig:
    raw = json.loads((RELEASED / f"{name}.json").read_text())
    family = FAMILIES[raw["model_type"]]
    return family.read_config(name, raw, family)


def test_peaks_of_gpus_by_the_drivers_name():
    """Dense bfloat16, not "with sparsity"; what is not known, or a slice of a card, has none."""
    for kind, tflops in (
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("TPU v5 lite", 197),
        ("TPU7x", 2307 / 2),
    ):
        assert peak_flops(kind) == pytest.approx(tflops * 1e12)
    for kind in ("cpu", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "NVIDIA GeForce RTX 4090", ""):
        assert peak_flops(kind) is None


def test_rates_of_a_run(monkeypatch):
    """MFU and TFLOP/s per device are the flops of the steps over their seconds; the first step,
    which compiles, has none and counts in none; without a peak there is no MFU."""
    clock = iter([0.0, 100.0, 102.0, 106.0])
    monkeypatch.setattr(tally.time, "monotonic", lambda: next(clock))

    class Device:
        device_kind = "NVIDIA H100 80GB HBM3"

    rates = tally.Rates([Device(), Device()])
    done = tally.Done(3.0, 30, Work(600, 9, 90, 80, 800), 989.5e12, 0.5)
    assert rates.add(done, 9) == {}
    rates.add(done, 8)
    found = rates.add(done, 7)  # two steps in six seconds on two devices
    assert found == pytest.approx(
        {
            "perf/step_seconds": 3,
            "perf/tokens_per_second": 200,
            "perf/questions_per_second": 1,
            "perf/pairs_per_second": 10,
            "perf/model_tflops_per_second": 989.5 / 6,
            "perf/mfu": 1 / 6,
            "perf/data_share": 1 / 6,
            "perf/eta_seconds": 21,
        }
    )
    Device.device_kind = "cpu"
    clock = iter([0.0, 1.0])
    assert "perf/mfu" not in tally.Rates([Device()]).add(done, 1)


def test_a_run_counts_what_it_trains():
    """train.freeze, LoRA and DPO reach the count: one forward is n, the gradient by x another n
    where something is trained at or below, that by W a third; a reference policy one n more."""
    config = tiny.tiny_config(tied=False)
    base = abstract_params(config)
    work = batch_work(tiny.random_batch(config, 0), config)

    def total(settings=None, adapters=None, reference=False):
        trained = base if adapters is None else adapters
        optimizer = make_optimizer(tiny.train_settings(**(settings or {})), trained)
        facts = dict.fromkeys(Setup._fields)
        facts |= {"config": config, "abstract": base, "trained": trained, "optimizer": optimizer}
        facts["objective"] = Objective(contrast="dpo" if reference else "odds_ratio")
        facts["lora"] = adapters  # only asked whether there is one
        return Setup(**facts).flops(work)

    forward = model_flops(config, base, work, trainable=(), reference=True)._asdict()
    once = model_flops(config, base, work, trainable=())._asdict()
    n = {part: forward[part] - once[part] for part in forward}  # of one forward pass
    pixels = 2 * base["vision"]["patch_embed"]["kernel"].size * work.patches  # have no dx
    full = 3 * sum(n.values()) - pixels
    assert total() == pytest.approx(full)
    frozen_tower = full - 2 * n["vision"] + pixels
    assert total({"freeze": ("vision/.*",)}) == pytest.approx(frozen_tower)
    assert total(reference=True) == pytest.approx(full + sum(n.values()))
    rank, (layers, width, heads, size) = 4, base["layers"]["attn"]["q"]["kernel"].shape
    shapes = {"lora_a": (layers, width, rank), "lora_b": (layers, rank, heads, size)}
    pair = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    own = 6 * layers * rank * (width + heads * size) * work.tokens
    frozen = 2 * n["decoder"] + 3 * n["attention"] + 2 * n["head"] + n["vision"]
    lora = total(adapters={"layers": {"attn": {"q": pair}}})
    assert lora == pytest.approx(frozen + own)
