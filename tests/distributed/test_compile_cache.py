"""srpo_jax/distributed/compile_cache.py: private, and where it was asked for."""

from __future__ import annotations

import stat

import jax
import pytest

from srpo_jax.distributed import compile_cache
from srpo_jax.errors import UserError


@pytest.fixture(autouse=True)
def no_settings():
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)  # tests/conftest.py sets one
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_nobody_else_can_write_the_folder(tmp_path):
    """It is made with mode 0700; one that others may write is refused in one line."""
    folder = compile_cache.use(str(tmp_path / "a" / "b"))
    for made in (folder, folder.parent):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert jax.config.jax_compilation_cache_dir == str(folder)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(UserError, match="can be written by others") as error:
        compile_cache.use(str(shared))
    assert "\n" not in str(error.value)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be used"):
        compile_cache.use(str(tmp_path / "file"))


def test_auto_leaves_the_cpu_and_the_users_choice_alone(tmp_path, monkeypatch):
    """For XLA:CPU nothing is kept unless a folder is named; jax's own variable is respected."""
    assert compile_cache.use("auto") is None and compile_cache.use("off") is None
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compile_cache.use("auto").parents[1] == tmp_path / "srpo_jax"
    assert compile_cache.use("auto") is None, "set already"
