"""Evaluation: answers to held-out questions, and rates of judged ones.

`srpo_jax.evaluate(config, workdir, name)` is evaluate.py:evaluate.
"""

from srpo_jax.callable_package import make_callable

make_callable(__name__, "evaluate", "evaluate")
