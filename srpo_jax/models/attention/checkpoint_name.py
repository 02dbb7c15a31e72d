"""The name under which rematerialisation policies (models/remat.py) know attention's results."""

from __future__ import annotations

import jax
from jax.ad_checkpoint import checkpoint_name

ATTENTION = "attention"


def named(x: jax.Array) -> jax.Array:
    """x, to be kept by policies that keep attention's results. Inside a custom VJP it must stand in
    the forward rule, on everything there that costs the kernel to compute again."""
    return checkpoint_name(x, ATTENTION)
