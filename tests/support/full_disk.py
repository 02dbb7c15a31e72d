"""A disk without space: temporary files are links to the device that takes no byte."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest

from srpo_jax.files import temporary_name

FULL = "/dev/full"


def full_disk(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    """From now on what `module` writes to a temporary name of its own fails as on a full disk."""
    if not os.path.exists(FULL):
        pytest.skip(f"there is no {FULL} here")

    def linked(path: pathlib.Path) -> pathlib.Path:
        name = temporary_name(path)
        name.symlink_to(FULL)
        return name

    monkeypatch.setattr(module, "temporary_name", linked)
