"""What tests share: where things are, tiny checkpoints of every family, programs to start."""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
RELEASED = SUPPORT / "released"  # config.json of released checkpoints


def plain_environment() -> dict[str, str]:
    """The environment without what conftest.py sets to compile cheaply: for other platforms."""
    session = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
    return {name: value for name, value in os.environ.items() if name not in session}
