"""Arrays of the global batch, from the rows that this process holds."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh

from srpo_jax.distributed import sharding
from srpo_jax.distributed.mesh import row_shards, rows_here


def put_batch(batch: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows, in ascending order, as arrays of the global batch: rows over data and
    fsdp. Each device gets the rows of its place in the mesh, whichever process it belongs to.
    """
    rows_sharding, shards = sharding.batch_sharding(mesh), row_shards(mesh)
    rows = len(next(iter(batch.values()))) * shards // len(rows_here(mesh, shards))
    at = {row: i for i, row in enumerate(rows_here(mesh, rows))}

    def put(local: Any) -> jax.Array:
        def part(index: tuple[slice, ...]) -> Any:
            begin, end, _ = index[0].indices(rows)
            return local[at[begin] : at[begin] + end - begin]

        return jax.make_array_from_callback((rows, *local.shape[1:]), rows_sharding, part)

    return {name: put(local) for name, local in batch.items()}
