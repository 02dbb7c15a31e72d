""".importlinter: the contracts about who may import whom catch what they are there to catch."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.support import ROOT

pytest.importorskip(
    "importlinter", reason="comes with the extra `lint`, as `make lint` installs it"
)


def _lint_imports(folder: pathlib.Path) -> subprocess.CompletedProcess:
    command = [pathlib.Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_an_import_upwards_a_circle_and_an_unlisted_room_are_found(tmp_path):
    """Also when the import stands inside a function, and in a folder that is a link."""
    python_only = shutil.ignore_patterns("__pycache__", "base_policy", "*.json", "*.md")
    shutil.copytree(ROOT / "srpo_jax", tmp_path / "srpo_jax", ignore=python_only)
    shutil.copy(ROOT / ".importlinter", tmp_path)
    faults = {
        "data_pipelines/records.py": "def late():\n    import srpo_jax.plan.table",  # upwards
        "pack/circle_a.py": "import srpo_jax.pack.circle_b",
        "pack/circle_b.py": "def late():\n    import srpo_jax.pack.circle_a",
        "new_room/__init__.py": "",
        "train/helper.py": "from tests.support import tiny",
    }
    for name, text in faults.items():
        path = tmp_path / "srpo_jax" / name
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            file.write(f"\n{text}\n")
    run = _lint_imports(tmp_path)
    assert run.returncode == 1, run.stdout + run.stderr
    for found in (
        "srpo_jax.data_pipelines.records -> srpo_jax.plan.table",
        "No cycles are allowed in srpo_jax.pack.",
        "- srpo_jax.new_room",
        "srpo_jax.train.helper -> tests",
    ):
        assert found in run.stdout, run.stdout
