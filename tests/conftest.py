"""Shared by all tests: the CPU backend unless told otherwise, no network, and cheap compilation.

Compiling is most of the time of this suite. XLA's lowest level of optimisation halves it, and what
one test compiles is kept for the others, and for the programs that tests start, until the session
ends. Both compare like with like: a promise of equal bits holds between programs compiled alike.
Compilations for other platforms run in processes of their own, with `support.plain_environment`.
"""

import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

CACHE = "JAX_COMPILATION_CACHE_DIR"


def pytest_configure(config):
    """The session's cache of compiled programs: made once, inherited by the workers."""
    if CACHE not in os.environ:
        os.environ[CACHE] = config.session_cache = tempfile.mkdtemp(prefix="srpo-compiled-")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_unconfigure(config):
    if folder := getattr(config, "session_cache", None):
        shutil.rmtree(folder, ignore_errors=True)
