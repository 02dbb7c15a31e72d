"""From a checkpoint to a Hugging Face folder, and the check that it is the same model.

`srpo_jax.export(workdir, out)` is export.py:export.
"""

from srpo_jax.callable_package import make_callable

make_callable(__name__, "export", "export")
