"""Trains a tiny real model for ten steps on every mesh and prints the losses as one JSON line.

A script for test_multi_device.py, which starts it with eight virtual CPU devices, and the home of
the tiny model and its batches for the other tests of the train step.
"""

from __future__ import annotations

import json
import sys
import tempfile
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from srpo_jax.config.fields import Config
from srpo_jax.config.sections import LoraSettings, TrainSettings
from srpo_jax.distributed.mesh import make_mesh
from srpo_jax.distributed.sharding import make_constrain
from srpo_jax.models.attention.dispatch import Attend
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.text_config import TextConfig
from srpo_jax.models.families.qwen2_5_vl import FAMILY
from srpo_jax.models.families.qwen2_5_vl.model import VisionConfig
from srpo_jax.models.inputs import EncodedPrompt, encode_prompt
from srpo_jax.models.policy_model import PolicyModel, abstract_params
from srpo_jax.pack.packing import Budgets, make_batch
from srpo_jax.pack.tree import Branch, Tree
from srpo_jax.pack.tree_layout import choose_pairs, layout_tree
from srpo_jax.train.checkpoint.manager import Checkpoints
from srpo_jax.train.gradient_share import GradientNorms, gradient_norms
from srpo_jax.train.lora import Lora, init_adapters, make_lora
from srpo_jax.train.losses.objective import Objective, needs_reference_policy
from srpo_jax.train.optimizer import make_optimizer
from srpo_jax.train.train_state import abstract_state, init_state, state_shardings
from srpo_jax.train.train_step import make_train_step

MESHES = {
    "1": (1, 1, 1),
    "8x1": (1, 8, 1),
    "4x2": (1, 4, 2),
    "2x2x2": (2, 2, 2),
}
BUDGETS = Budgets(tokens=128, targets=96, segments=48, sequences=24, pairs=16, patches=32)
IMAGE_TOKEN = 60
DEFAULT = Objective()


def tiny_config(*, tied: bool = True) -> ModelConfig:
    """Every part of the architecture, with sizes that eight devices divide."""
    vision = VisionConfig(
        depth=2,
        hidden_size=32,
        num_heads=4,
        intermediate_size=64,
        patch_size=4,
        temporal_patch_size=2,
        spatial_merge_size=2,
        window_size=16,
        fullatt_block_indexes=(1,),
        in_channels=3,
        out_hidden_size=32,
    )
    text = TextConfig(
        vocab_size=64,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=64,
        rope_theta=1e4,
        rms_norm_eps=1e-6,
        mrope_section=(2, 1, 1),
        tie_word_embeddings=tied,
    )
    return ModelConfig("qwen2_5_vl", text, vision, IMAGE_TOKEN, 61, 62, 63, family=FAMILY)


def train_settings(**changes) -> ConfigDict:
    values = dict(
        steps=10,
        learning_rate=1e-2,
        warmup_steps=2,
        schedule="cosine",
        weight_decay=0.01,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        clip_norm=1.0,
        freeze=(),
        optimizer="adamw",
    )
    return ConfigDict({**values, **changes})


def random_prompt(config: ModelConfig, rng: np.random.Generator) -> EncodedPrompt:
    """A few words around one picture of 2..4 x 2 merged patches, or no picture."""
    words = rng.integers(1, 60, size=6)
    if rng.random() < 0.2:
        return encode_prompt(words, [], config)
    grid = (1, 2 * int(rng.integers(1, 3)), 4)
    count = grid[1] * grid[2]
    patches = rng.normal(size=(count, config.vision.patch_dim)).astype(np.float32)
    tokens = [*words[:2], 62, *[IMAGE_TOKEN] * (count // 4), 63, *words[2:]]
    return encode_prompt(tokens, [(patches, grid)], config)


def random_tree(config: ModelConfig, rng: np.random.Generator, name: str) -> Tree:
    """Two or three steps and a reply, two to four branches at each branch point."""

    def text(low: int, high: int) -> np.ndarray:
        return rng.integers(1, 60, size=rng.integers(low, high)).astype(np.int32)

    pieces = tuple(text(2, 6) for _ in range(rng.integers(3, 5)))
    branches = [
        Branch(at=at, tokens=text(1, 9), safe=bool(k % 2))
        for at in range(len(pieces) - 1)
        for k in range(rng.integers(1, 4))
    ]
    return Tree(name, random_prompt(config, rng), pieces, tuple(branches))


def random_batch(
    config: ModelConfig, seed: int, *, rows: int = 8, budgets: Budgets = BUDGETS
) -> dict[str, np.ndarray]:
    """`rows` rows of one tree each."""
    rng = np.random.default_rng(seed)
    trees = [random_tree(config, rng, f"tree {seed} {row}") for row in range(rows)]
    plan = [[layout_tree(tree, choose_pairs(tree, seed=seed))] for tree in trees]
    return make_batch(plan, budgets)


def random_params(config: ModelConfig, seed: int = 0) -> dict:
    """Drawn with numpy: compiling jax's generator for every shape takes longer than the test."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        base = 1.0 if path[-1].key == "scale" else 0.0
        return (base + 0.05 * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config))


def start(
    config,
    mesh,
    *,
    objective=DEFAULT,
    accumulate=1,
    settings=None,
    model_options=None,
    lora=None,
    dtype=np.float32,
):
    """(state, step) of a run from random parameters that depend on the config alone."""
    hooks = {"constrain": make_constrain(mesh), "attend": Attend(mesh=mesh)}
    model = PolicyModel(config, **hooks, **(model_options or {}))
    abstract = abstract_params(config)
    trained = abstract if lora is None else jax.eval_shape(lambda: init_adapters(lora))
    optimizer = make_optimizer(settings or train_settings(), trained)
    kind = dict(with_reference=needs_reference_policy(objective), lora=lora, dtype=dtype)
    shardings = state_shardings(abstract_state(abstract, optimizer, **kind), mesh, lora)
    params = random_params(config)
    if lora is not None:
        params = jax.device_put(params, shardings.base)
    state = init_state(params, optimizer, shardings, **kind)
    step = make_train_step(
        model, objective, optimizer, mesh, shardings, accumulate=accumulate, lora=lora
    )
    return state, step


def norms(config, mesh, *, objective=DEFAULT, accumulate=1, lora=None) -> GradientNorms:
    """gradient_norms of batch 0 at the parameters that `start` begins with."""
    hooks = {"constrain": make_constrain(mesh), "attend": Attend(mesh=mesh)}
    abstract = abstract_params(config)
    trained = abstract if lora is None else jax.eval_shape(lambda: init_adapters(lora))
    optimizer = make_optimizer(train_settings(), trained)
    shapes = abstract_state(abstract, optimizer, with_reference=False, lora=lora)
    setup: Any = SimpleNamespace(
        config=config,
        mesh=mesh,
        model=PolicyModel(config, **hooks),
        objective=objective,
        optimizer=optimizer,
        lora=lora,
        shardings=state_shardings(shapes, mesh, lora),
        batches=[random_batch(config, 0)],
    )
    settings = Config(train=TrainSettings(accumulate=accumulate))
    return gradient_norms(settings, setup, random_params(config))


def tiny_lora(config: ModelConfig, **changes) -> Lora:
    """Adapters on every kernel that takes them."""
    values = dict(
        rank=4,
        alpha=8.0,
        use_rslora=False,
        dropout=0.0,
        base_dtype="float32",
        targets=("layers/.*/kernel", "vision/.*/kernel"),
    )
    seed = changes.pop("seed", 0)
    return make_lora(LoraSettings(**{**values, **changes}), seed, config)


def train(config: ModelConfig, sizes: tuple[int, int, int], steps: int, **options):
    """(losses, state, step) after `steps` steps on a mesh of these sizes."""
    devices = jax.devices()[: int(np.prod(sizes))]
    state, step = start(config, make_mesh(*sizes, devices=devices), **options)
    losses = []
    for index in range(steps):
        state, metrics = step(state, random_batch(config, index))
        losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1
    return losses, state, step


def main(everything: bool) -> int:
    """everything: also what is left out where time is short (see test_multi_device.py)."""
    config = tiny_config()
    losses, states, steps = {}, {}, {}
    meshes = MESHES if everything else {n: MESHES[n] for n in MESHES if n != "8x1"}
    for name, sizes in meshes.items():
        losses[name], states[name], steps[name] = train(config, sizes, 10)
    # Compiled for its warnings: the untied head, rematerialisation, a reference policy.
    losses["4x2 dpo"] = train(
        tiny_config(tied=False),
        MESHES["4x2"],
        1,
        objective=Objective(contrast="dpo", normalise="sum"),
        model_options={"remat": "full"},
    )[0]
    for name in ("1", "2x2x2", *(("4x2",) if everything else ())):
        lora = tiny_lora(config, dropout=0.3)
        losses[f"{name} lora"] = train(config, MESHES[name], 3, lora=lora)[0]
    if everything:
        losses["2x2x2 accumulate 2"] = train(config, MESHES["2x2x2"], 2, accumulate=2)[0]
        half = dict(dtype=jnp.bfloat16, settings=train_settings(optimizer="adafactor"))
        for name in ("1", "2x2x2"):
            losses[f"{name} bfloat16"] = train(config, MESHES[name], 3, **half)[0]

    norms_of = {}
    for name in ("1", "2x2x2") if everything else ():
        mesh = make_mesh(*MESHES[name], devices=jax.devices()[: int(np.prod(MESHES[name]))])
        norms_of[name] = norms(config, mesh, accumulate=2, lora=tiny_lora(config))

    other = "8x1" if everything else "2x2x2"
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        checkpoints.save(states["4x2"], {})
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), states[other]
        )
        restored, _ = checkpoints.restore(target, lambda run: None)
    after = [
        float(step(state, random_batch(config, 10))[1]["loss"])
        for state, step in ((states["4x2"], steps["4x2"]), (restored, steps[other]))
    ]
    print(json.dumps({"losses": losses, "after_restore": after, "norms": norms_of}))
    return 0


if __name__ == "__main__":
    sys.exit(main("--everything" in sys.argv))
