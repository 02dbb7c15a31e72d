"""The tower over tiles: what a row with room for more tiles than it holds computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.models.attention.dispatch import Attend
from srpo_jax.models.blocks.tiled_vit import TileConfig, TileTower, tile_layout

CONFIG = TileConfig(
    depth=2,
    hidden_size=16,
    num_heads=2,
    intermediate_size=32,
    image_size=34,
    patch_size=2,
    activation="gelu",
    eps=1e-6,
    class_token=True,
    layer_scale=True,
)
UNIT = CONFIG.patch_unit  # 289 patches, long enough for blocks


def inputs(tiles: int, room: int) -> dict[str, jax.Array]:
    """One row with so many tiles of random patches, padded to `room` tiles."""
    patches = np.random.default_rng(0).standard_normal((room * UNIT, CONFIG.patch_dim))
    patches[tiles * UNIT :] = 0
    own = tile_layout(tiles, np.arange(tiles * UNIT), CONFIG).fields["tile_seg"]
    seg = np.pad(own, (0, len(patches) - len(own)), constant_values=-1)
    return {"patches": jnp.asarray(patches[None], jnp.float32), "tile_seg": jnp.asarray(seg[None])}


def results(tower, params, row, tiles):
    """(features, gradients by parameters, by patches) of a sum over the shown tiles."""

    def loss(params, patches):
        features, _ = tower.apply({"params": params}, {**row, "patches": patches})
        own = jnp.arange(features.shape[1]) < tiles * CONFIG.tile_features
        return jnp.sum(jnp.sin(features) * own[None, :, None]), features

    grad = jax.value_and_grad(loss, (0, 1), has_aux=True)
    (_, features), (by_params, by_patches) = grad(params, row["patches"])
    return features, by_params, by_patches


@pytest.mark.slow
def test_room_for_more_tiles_changes_nothing():
    """Features and gradients are those of the tiles alone; padding is finite and gets none."""
    tower = TileTower(CONFIG, 8, jnp.float32, jnp.float32, "none", lambda x, _: x, Attend())
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: jnp.asarray(0.2 * rng.standard_normal(x.shape), x.dtype),
        jax.eval_shape(tower.init, jax.random.key(0), inputs(1, 1))["params"],
    )
    run = jax.jit(functools.partial(results, tower))
    alone, alone_params, alone_patches = run(params, inputs(1, 1), 1)
    features, by_params, by_patches = run(params, inputs(1, 2), 1)
    assert np.isfinite(features).all()
    np.testing.assert_allclose(features[:, : alone.shape[1]], alone, atol=1e-5)
    np.testing.assert_allclose(by_patches[:, :UNIT], alone_patches, atol=1e-5)
    assert np.any(alone_patches) and not np.any(by_patches[:, UNIT:])
    for ours, theirs in zip(jax.tree.leaves(by_params), jax.tree.leaves(alone_params), strict=True):
        # A shift of all keys changes nothing: the gradient of k's bias is rounding alone.
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(np.abs(theirs).max(), 1e-2))
    run(params, inputs(2, 2), 2)
    assert run._cache_size() == 2  # for rows of 1 and of 2 tiles, whatever they hold
