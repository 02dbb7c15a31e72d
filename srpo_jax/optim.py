"""AdamW with a learning-rate schedule, clipping by global norm, and freezing by regex.

The optimizer sees only the trainable parameters, as a flat dict {path: array}. So a frozen one has
no optimizer state, no gradient and no part in the norm, by construction and not by a mask.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from srpo_jax.errors import UserError
from srpo_jax.sharding import by_path

SCHEDULES = ("cosine", "linear", "constant")
DECAYED = ("kernel", "embedding", "lora_a", "lora_b")


class Optimizer(NamedTuple):
    """What the train step needs to know of the optimizer."""

    transform: optax.GradientTransformation  # over {path: array} of the trainable parameters
    schedule: optax.Schedule  # number of updates done -> learning rate of the next
    trainable: tuple[str, ...]  # paths, in the order of the parameter tree


def make_schedule(
    kind: str, learning_rate: float, *, steps: int, warmup_steps: int
) -> optax.Schedule:
    """Learning rate of update `count` = 0 .. steps-1.

    Warm-up: learning_rate * (count+1)/warmup_steps, so that the first update is not wasted. Then
    `constant`, or down to 0 at `steps` along half a cosine or a line.
    Errors: UserError for an unknown kind.
    """
    if kind not in SCHEDULES:
        raise UserError(f"train.schedule {kind!r} is not one of {', '.join(SCHEDULES)}")

    def schedule(count: Any) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        warm = jnp.minimum(1.0, (count + 1) / max(1, warmup_steps))
        done = jnp.clip((count - warmup_steps) / max(1, steps - warmup_steps), 0.0, 1.0)
        if kind == "cosine":
            decay = 0.5 * (1 + jnp.cos(jnp.pi * done))
        else:
            decay = 1 - done if kind == "linear" else jnp.ones_like(done)
        return learning_rate * warm * decay

    return schedule


def trainable_paths(params: Any, freeze: tuple[str, ...]) -> tuple[str, ...]:
    """Paths of `params` that no regex of `freeze` matches in full.

    Errors: UserError for a regex that is none or matches no path, and when nothing is left.
    """
    paths = tuple(by_path(params))
    frozen: set[str] = set()
    for pattern in freeze:
        try:
            hits = [path for path in paths if re.fullmatch(pattern, path)]
        except re.error as error:
            raise UserError(f"train.freeze {pattern!r} is no regular expression: {error}") from None
        if not hits:
            raise UserError(
                f"train.freeze {pattern!r} matches no parameter; paths look like {paths[0]}, "
                f"{paths[-1]}, and the whole path must match"
            )
        frozen.update(hits)
    if len(frozen) == len(paths):
        raise UserError("train.freeze matches every parameter: nothing is left to train")
    return tuple(path for path in paths if path not in frozen)


def make_optimizer(train: Any, params: Any) -> Optimizer:
    """From the `train` section of the config and the (abstract) parameter tree.

    clip_norm 0 means no clipping. Weight decay acts on kernels, their adapters and embeddings, not
    on norm scales and biases.
    """
    trainable = trainable_paths(params, tuple(train.freeze))
    schedule = make_schedule(
        train.schedule, train.learning_rate, steps=train.steps, warmup_steps=train.warmup_steps
    )
    decayed = {path: path.endswith(DECAYED) for path in trainable}
    adamw = optax.adamw(
        schedule,
        b1=train.b1,
        b2=train.b2,
        eps=train.eps,
        weight_decay=train.weight_decay,
        mask=decayed,
    )
    clip = optax.clip_by_global_norm(train.clip_norm) if train.clip_norm else optax.identity()
    return Optimizer(optax.chain(clip, adamw), schedule, trainable)


def select(params: Any, paths: tuple[str, ...]) -> dict[str, Any]:
    """{path: leaf} of the named leaves of a parameter tree."""
    leaves = by_path(params)
    return {path: leaves[path] for path in paths}


def merge(params: Any, new: dict[str, Any]) -> Any:
    """`params` with the leaves of `new` ({path: leaf}) in their places."""
    leaves = {**by_path(params), **new}
    return jax.tree.unflatten(jax.tree.structure(params), list(leaves.values()))
