"""Names that earlier pages told people to import, or to run with `python -m`, and where they are
now. Importing one raises an ImportError of one line; CHANGELOG.md lists every module that moved.
"""

import sys

MOVED = {
    "srpo_jax.base_policy": "srpo_jax.cli.base_policy",
    "srpo_jax.checkpoint_files": "srpo_jax.train.checkpoint.seal",
    "srpo_jax.config_docs": "srpo_jax.command.config_page",
    "srpo_jax.config_load": "srpo_jax.config.load",
    "srpo_jax.explore.run": "srpo_jax.explore.explore",
    "configs": "srpo_jax.configs",
    "data_pipelines": "srpo_jax.data_pipelines",
    "launch": "srpo_jax.launch",
}


class MovedNames:
    """The last finder on sys.meta_path: it is asked only for names that nothing else provides, so
    a user's own `configs` or `launch` is found before."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name in MOVED:
            raise ImportError(f"{name} is now {MOVED[name]}", name=name)


def install() -> None:
    if MovedNames not in sys.meta_path:
        sys.meta_path.append(MovedNames)
