"""Package metadata. `pip install -e .[test,report]` is what `make test` does; see README.md.

srpo_jax/configs, srpo_jax/launch and srpo_jax/data_pipelines are links to the folders of the top
level. find_packages follows them, so an installed srpo_jax has them as sub-packages and nothing
called `configs` or `launch` comes to lie beside it.
"""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "srpo_jax/__init__.py").read_text()).group(1)

# Python 3.11 gets jax 0.10 (flax 0.12.8 is the last release for 3.11), Python 3.12 gets jax 0.12.
CORE = [
    "jax>=0.10,<0.13",
    "flax>=0.12.8,<0.14",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "tensorstore>=0.1.86,<0.2",  # comes with orbax; reads what lies in buckets
    "grain>=0.2.18,<0.3",
    "array_record>=0.8.3,<0.9",
    "ml-collections>=1.1,<2",
    "absl-py>=2.1,<3",
    "transformers>=5.10,<6",  # below 5.10: CVE-2026-9856, CVE-2026-4372
    "tokenizers>=0.22,<1",
    "safetensors>=0.6,<1",
    "msgpack>=1.2.1,<2",  # the floors of these three shut out known holes
    "numpy>=2.0,<3",
    "scipy>=1.14,<2",  # jax needs it too
    "pillow>=12.3,<14",
    "jinja2>=3.1.6,<4",
    "pyyaml>=6,<7",
]
JUDGE = ["openai>=1.98,<4"]
DATA = ["pyarrow>=17,<27"]  # Parquet and Arrow of other tools
GCS = [  # checkpoints in buckets
    "gcsfs>=2025.12,<2028",  # orbax writes by it; it brings the other two
    "google-cloud-storage>=3.1,<4",
    "google-crc32c>=1.5,<2",
]
TEST = [
    *JUDGE,
    *DATA,
    *GCS,
    "pytest>=8,<10",
    "pytest-xdist>=3.7,<4",
    "hypothesis>=6.100,<7",
    "scikit-image>=0.24,<1",  # real photographs for the road test
    # Oracles of the statistics on judges.
    "scikit-learn>=1.5,<2",
    "krippendorff>=0.8,<1",
    # The oracle: transformers' own models on CPU. For 3.12 the registry has only CUDA builds of
    # several GB, so there the oracle's tests are skipped.
    'torch==2.13.0; python_version < "3.12"',
    # Loads the adapters that we export. It brings accelerate and psutil.
    'peft>=0.18,<0.22; python_version < "3.12"',
    # libtpu compiles for a TPU topology without a TPU. It must be the one that jax names for its
    # release: a newer one compiles, but its HLO cannot be printed.
    'libtpu>=0.0.42,<0.0.43; python_version < "3.12"',
    'libtpu>=0.0.50,<0.0.51; python_version >= "3.12"',
    # tests/test_package.py builds a wheel offline; from Python 3.12 on a venv has no setuptools.
    "setuptools>=77,<90",
]
LINT = [
    "ruff>=0.17,<0.18",
    "import-linter>=2.5,<3",
    "basedpyright>=1.40,<1.41",  # another release finds other errors
]
DOCS = [
    "sphinx>=8.2,<10",
    "furo>=2025.12.19,<2027",
    "myst-parser>=4,<6",
]

setup(
    name="srpo_jax",
    version=VERSION,
    description="Safety-aware Reasoning Path Optimization for vision-language models in JAX",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["srpo_jax*"]),
    package_data={
        "srpo_jax": ["py.typed"],
        "srpo_jax.arbiter": ["rubrics/*.yaml", "guards/*.yaml"],
        "srpo_jax.data_pipelines.construct": ["stage_lists/*.yaml"],
        "srpo_jax.data_pipelines.ssui_mini": ["base_policy/*"],
        "srpo_jax.evaluate": ["*.yaml"],
        "srpo_jax.evaluate.benchmarks": ["rsbench_mini/*", "rsbench_mini/images/*"],
        "srpo_jax.runs.report": ["templates/*"],
    },
    install_requires=CORE,
    extras_require={
        "test": TEST,
        "lint": LINT,
        "docs": DOCS,
        "dev": [*LINT, "pre-commit>=4,<5"],
        "judge": JUDGE,
        "data": DATA,
        "gcs": GCS,
        # `make test-all` has TRL itself read what is written for it.
        "trl": ["trl>=1.16,<2"],
        # `make test-all` asks `transformers serve` for an answer; it needs torch too, and for
        # SmolVLM num2words.
        "serve": [
            *JUDGE,
            "accelerate>=1.1,<2",
            "fastapi>=0.115,<1",
            "num2words>=0.5,<1",
            "uvicorn>=0.30,<1",
        ],
        # RSBench as a task of Inspect AI.
        "inspect": ["inspect_ai>=0.3.285,<0.4"],
        "mutation": ["cosmic-ray>=8.3,<9"],  # studies/mutation.py
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "gpu": ["jax[cuda13]>=0.10,<0.13"],
        "report": ["tensorboardX>=2.6,<3"],
        "wandb": ["wandb>=0.19,<1"],
        "trackio": ["trackio>=0.4,<1"],
    },
    entry_points={
        "console_scripts": ["srpo=srpo_jax.cli.main:main"],
        "inspect_ai": ["srpo_jax=srpo_jax.evaluate.inspect_tasks"],
    },
)
