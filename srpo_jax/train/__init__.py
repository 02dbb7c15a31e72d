"""Training: the loop, what it is made of, the step and its state.

`srpo_jax.train(config, workdir)` is loop.py:train.
"""

import importlib
from typing import TYPE_CHECKING, Any

from srpo_jax.callable_package import make_callable

if TYPE_CHECKING:
    from srpo_jax.train.loop import train as train

make_callable(__name__, "loop", "train")


def __getattr__(name: str) -> Any:
    if name == "train":  # `from srpo_jax.train import train`
        return importlib.import_module("srpo_jax.train.loop").train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
