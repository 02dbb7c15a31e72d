"""AdamW or Adafactor, learning-rate schedules, clipping by global norm, and freezing by regex.

The optimizer sees only the trainable parameters, as a flat dict {path: array}. So a frozen one has
no optimizer state, no gradient and no part in the norm, by construction and not by a mask.
"""

from __future__ import annotations

import functools
import operator
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from srpo_jax.config.sections import TrainSettings
from srpo_jax.errors import UserError
from srpo_jax.models.blocks.param_paths import by_path

SCHEDULES = ("cosine", "linear", "constant")
DECAYED = ("kernel", "embedding", "lora_a", "lora_b")
# Parameters whose axis 0 is that of the layers that nn.scan and nn.vmap stack (models/).
STACKED = r"layers/.*|vision/(blocks|deepstack)/.*"
FACTORED_FROM = 128  # optax's limit: both axes of a factored second moment are at least so long


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


def make_optimizer(train: TrainSettings, params: Any) -> Optimizer:
    """From the `train` section of the config and the (abstract) parameter tree.

    clip_norm 0 means no clipping. Weight decay acts on kernels, their adapters and embeddings, not
    on norm scales and biases. Adafactor (arXiv 1804.04235) keeps no first moment and, of a matrix'
    second moments, their means over rows and over columns, each layer for itself; updates are
    clipped to a root mean square of 1 (as in optax.adafactor) but not scaled by that of the
    parameter: learning rates mean what they mean in AdamW. b1, b2 and eps are AdamW's alone.
    """
    trainable = trainable_paths(params, tuple(train.freeze))
    schedule = make_schedule(
        train.schedule, train.learning_rate, steps=train.steps, warmup_steps=train.warmup_steps
    )
    decayed = {path: path.endswith(DECAYED) for path in trainable}
    if train.optimizer == "adafactor":
        factored = optax.scale_by_factored_rms(min_dim_size_to_factor=FACTORED_FROM)
        rule = optax.chain(
            per_layer(optax.chain(factored, optax.clip_by_block_rms(1.0))),
            optax.add_decayed_weights(train.weight_decay, decayed),
            optax.scale_by_learning_rate(schedule),
        )
    else:
        rule = optax.adamw(
            schedule,
            b1=train.b1,
            b2=train.b2,
            eps=train.eps,
            weight_decay=train.weight_decay,
            mask=decayed,
        )
    clip = optax.clip_by_global_norm(train.clip_norm) if train.clip_norm else optax.identity()
    return Optimizer(optax.chain(clip, rule), schedule, trainable)


def per_layer(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """`transform` applied to each array of {path: array} alone, and there to each layer alone. Its
    state is {path: state of transform}, stacked like the parameter."""

    def each(function: Any, path: str) -> Any:
        return jax.vmap(function) if re.fullmatch(STACKED, path) else function

    def init(params: Any) -> Any:
        return {path: each(transform.init, path)(x) for path, x in params.items()}

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        done = {
            path: each(transform.update, path)(grad, state[path], params[path])
            for path, grad in updates.items()
        }
        return {path: new[0] for path, new in done.items()}, {p: new[1] for p, new in done.items()}

    return optax.GradientTransformation(init, update)


def kept_axes(kind: str, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a parameter that a piece of its optimizer state has; () if the piece is no more
    than a number per layer.

    kind: its name in optax's state: mu, nu (AdamW); v_row, v_col, v, count (factored). Second
    moments are factored over the two longest axes of a layer where both are FACTORED_FROM or more:
    v_row is their mean over the longest axis, v_col over the other; v holds what is not factored.
    """
    every = tuple(range(len(shape)))
    if kind not in ("v_row", "v_col", "v", "count"):
        return every
    first = 1 if re.fullmatch(STACKED, path) else 0
    order = [first + int(axis) for axis in np.argsort(shape[first:])]
    factored = len(order) > 1 and shape[order[-2]] >= FACTORED_FROM
    if kind == "count" or factored == (kind == "v"):
        return ()
    mean_over = {"v_row": order[-1], "v_col": order[-2]}.get(kind) if factored else None
    return tuple(axis for axis in every if axis != mean_over)


def select(params: dict, paths: tuple[str, ...]) -> dict[str, Any]:
    """{path: leaf} of the named leaves of a nested dict; the order is that of `paths`."""
    return {path: functools.reduce(operator.getitem, path.split("/"), params) for path in paths}


def merge(params: dict, new: dict[str, Any]) -> dict:
    """A nested dict with the leaves of `new` ({path: leaf}) in place of those of `params`.

    Errors: KeyError for a path that `params` has no leaf at.
    """
    left = dict(new)

    def filled(node: Any, path: str) -> Any:
        if not isinstance(node, dict):
            return left.pop(path, node)
        return {key: filled(child, f"{path}/{key}" if path else key) for key, child in node.items()}

    merged = filled(params, "")
    if left:
        raise KeyError(f"no parameter {sorted(left)[0]!r} to put a value in place of")
    return merged
