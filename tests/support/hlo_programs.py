"""Programs whose FLOPs and collectives are known, compiled for eight devices: test_hlo_cost.py.

A script: prints what read_stats finds in each as one JSON line. Argument "cpu" (eight virtual
devices) or a TPU topology, compiled ahead of time.
"""

from __future__ import annotations

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from srpo_jax.plan.hlo_cost import read_stats

AXES, SIZES = ("fsdp", "tensor"), (4, 2)
ROWS, WIDTH, ROUNDS = 512, 1024, 3


def programs(mesh):
    """{name: (function, argument shapes, specs of the arguments)}; float32."""
    x, square = (ROWS, WIDTH), (WIDTH, WIDTH)

    def shard(function, *specs, out):
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)

    def scanned(x, w):
        """FSDP in small: the weight is gathered in every round of a loop."""

        def body(x, _):
            whole = jax.lax.all_gather(w, "fsdp", axis=0, tiled=True)
            return jnp.tanh(x @ whole), None

        return jax.lax.scan(body, x, None, length=ROUNDS)[0]

    rows, split = P("fsdp", None), P(None, "tensor")
    return {
        "gather in scan": (shard(scanned, rows, rows, out=rows), (x, square), (rows, rows)),
        "all_reduce": (
            shard(lambda a, b: jax.lax.psum(a @ b, "tensor"), split, P("tensor", None), out=P()),
            (x, square),
            (split, P("tensor", None)),
        ),
        "reduce_scatter": (
            shard(
                lambda a: jax.lax.psum_scatter(a, "fsdp", scatter_dimension=0, tiled=True),
                P(),
                out=rows,
            ),
            (x,),
            (P(),),
        ),
        "permute": (
            shard(
                lambda a: jax.lax.ppermute(a, "fsdp", [(i, (i + 1) % 4) for i in range(4)]),
                rows,
                out=rows,
            ),
            (x,),
            (rows,),
        ),
        "both axes": (
            shard(lambda a: jax.lax.psum(a, AXES), P(AXES, None), out=P()),
            (x,),
            (P(AXES, None),),
        ),
    }


def main(where: str) -> None:
    devices = jax.devices()
    if where != "cpu":
        devices = topologies.get_topology_desc(topology_name=where, platform="tpu").devices
    mesh = jax.make_mesh(SIZES, AXES, (AxisType.Auto,) * 2, devices=devices)
    found = {}
    for name, (function, shapes, specs) in programs(mesh).items():
        shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
        shaped = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        compiled = jax.jit(function, in_shardings=shardings).lower(*shaped).compile()
        found[name] = dataclasses.asdict(read_stats(compiled.as_text(), dict(mesh.shape)))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
