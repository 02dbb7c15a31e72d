"""Exploration: branches sampled by the policy from every prefix of the reference path.

`srpo_jax.explore(config, workdir)` is explore.py:explore.
"""

from srpo_jax.callable_package import make_callable

make_callable(__name__, "explore", "explore")
