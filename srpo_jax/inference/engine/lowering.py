"""How a program of the engine is traced for its mesh, for the engine and for `srpo plan`, and
compiled once for all engines of a process that run the same one.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from typing import Any

import jax

from srpo_jax.distributed.sharding import replicated
from srpo_jax.inference.engine.slots import Programs, State

KEPT = 16  # programs: those of a few engines
_compiled: dict[tuple[str, ...], Any] = {}


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


def compile_once(
    lowered: jax.stages.Lowered, *args: Any, told: contextlib.AbstractContextManager
) -> Any:
    """lowered.compile(), or what that gave for the same program on the same devices. args: those
    that it was traced with; arrays among them say which devices these are. told: entered to
    compile.

    Who evaluates several policies of one kind has an engine for each, and programs that differ in
    nothing.
    """
    leaves = [leaf for leaf in jax.tree.leaves(args) if isinstance(leaf, jax.Array)]
    places = dict.fromkeys(str(leaf.sharding) for leaf in leaves)
    devices = sorted({str(device.id) for leaf in leaves for device in leaf.devices()})
    # An argument that a program does not use is not in its text.
    shapes = f"{lowered.args_info} {lowered.out_info}"
    text = hashlib.sha256((shapes + lowered.as_text()).encode()).hexdigest()
    key = (text, *devices, *places)
    found = _compiled.pop(key, None)
    if found is None:
        with told:
            found = lowered.compile()
    _compiled[key] = found  # the newest stand last
    while len(_compiled) > KEPT:
        del _compiled[next(iter(_compiled))]
    return found
