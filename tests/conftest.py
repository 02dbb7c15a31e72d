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

# Files of few, long tests. They come first: a worker that begins one of them at the end would keep
# the others waiting for it.
LONG = (
    "train/test_multi_device.py",
    "cli/test_own_questions.py",
    "cli/test_road.py",
    "distributed/test_process_counts.py",
    "test_package.py",
    "train/test_families_train.py",
    "explore/test_together.py",
    "train/test_lora.py",
    "train/test_loop.py",
    "train/test_tpu_aot.py",
    "models/attention/test_attention_aot.py",
    "models/blocks/test_decoder_remat.py",
    "models/families/test_qwen3_vl.py",
    "pack/test_tree_equals_pairwise.py",
    "train/test_train_step.py",
    "train/checkpoint/test_checkpoint_processes.py",
)


def pytest_configure(config):
    """The session's cache of compiled programs: made once, inherited by the workers."""
    if CACHE not in os.environ:
        os.environ[CACHE] = config.session_cache = tempfile.mkdtemp(prefix="srpo-compiled-")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_collection_modifyitems(items):
    """Long files first, all others as they come (`--no-loadscope-reorder` keeps that order)."""
    rank = {name: number for number, name in enumerate(LONG)}

    def place(item):
        path = item.path.as_posix()
        return next((rank[name] for name in LONG if path.endswith(f"tests/{name}")), len(LONG))

    items.sort(key=place)


def pytest_unconfigure(config):
    if folder := getattr(config, "session_cache", None):
        shutil.rmtree(folder, ignore_errors=True)
