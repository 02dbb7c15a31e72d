"""How a program of the engine is traced for its mesh: for the engine, and for `srpo plan`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from srpo_jax.distributed.sharding import replicated
from srpo_jax.inference.engine.slots import Programs, State


def lower(
    programs: Programs, function: Callable[..., Any], *args: Any, donate: int | None = None
) -> jax.stages.Lowered:
    """`function(*args)`, traced. args: arrays, or abstract ones with their shardings. donate: the
    argument whose memory the result takes. A State that comes out lies where one belongs, anything
    else whole on every device.
    """
    options: dict[str, Any] = {} if donate is None else {"donate_argnums": donate}
    if programs.mesh is not None:
        whole = replicated(programs.mesh)
        options["out_shardings"] = jax.tree.map(
            lambda x: programs.shardings(x) if isinstance(x, State) else whole,
            jax.eval_shape(function, *args),
            is_leaf=lambda x: isinstance(x, State),
        )
    return jax.jit(function, **options).lower(*args)
