"""Judging: arbiters are asked about what was sampled; their verdicts lie beside it.

`srpo_jax.judge(config, workdir)` is judge.py:judge.
"""

from srpo_jax.callable_package import make_callable

make_callable(__name__, "judge", "judge")
