"""srpo_jax: Safety-aware Reasoning Path Optimization for vision-language models in JAX.

From Python, as `srpo` from the command line:

    import srpo_jax

    config = srpo_jax.load_config("configs/ssui_mini.py", ["--config.train.steps=50"])
    srpo_jax.explore(config, "runs/mini")
    srpo_jax.judge(config, "runs/mini")
    srpo_jax.train(config, "runs/mini")
    srpo_jax.export("runs/mini", "runs/mini/export")
    srpo_jax.evaluate(config, "runs/mini", "after", model_dir="runs/mini/export")
    scores = srpo_jax.judge(config, "runs/mini", answers="after")

A workdir in a bucket is opened first; `srpo --workdir=gs://...` does that by itself:

    with srpo_jax.open_workdir("gs://my-bucket/runs/mini") as workdir:
        srpo_jax.train(config, workdir)

Importing this loads neither jax nor transformers; the first call of one of these does.
"""

import importlib
from typing import TYPE_CHECKING, Any

from srpo_jax import moved_names

if TYPE_CHECKING:
    from srpo_jax.buckets.workdir import open_workdir
    from srpo_jax.config.load import load_config
    from srpo_jax.evaluate.evaluate import evaluate
    from srpo_jax.explore.explore import explore
    from srpo_jax.export.export import export
    from srpo_jax.judge.judge import judge
    from srpo_jax.train.loop import train

__version__ = "0.1.0"
__all__ = ["evaluate", "explore", "export", "judge", "load_config", "open_workdir", "train"]

moved_names.install()


def __getattr__(name: str) -> Any:
    if name == "load_config":
        return importlib.import_module("srpo_jax.config.load").load_config
    if name == "open_workdir":
        return importlib.import_module("srpo_jax.buckets.workdir").open_workdir
    if name in __all__:  # a sub-package that can be called: see callable_package.py
        return importlib.import_module(f"srpo_jax.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
