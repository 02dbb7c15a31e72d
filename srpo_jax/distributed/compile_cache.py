"""Compiled programs are kept between starts, in a folder that only this user can write.

A cache entry is machine code that is loaded and run: whoever can write the folder can run code as
you (jax's own page says so). Process 0 writes, all read, so on a pod it must be shared storage.
For XLA:CPU it is off by default: compiling is quick there, and a home directory that two kinds of
machine share would hand one the other's instructions (jax issue 38445 is of that kind).
"""

from __future__ import annotations

import errno
import os
import pathlib
import stat
import tempfile
from typing import Any

import jax
from jaxlib.version import __version__ as jaxlib_version

from srpo_jax.errors import UserError
from srpo_jax.files import existing_parent, user_cache


def use(setting: str) -> pathlib.Path | None:
    """Turns the cache on and returns its folder, or None when it stays off.

    setting: config.train.compilation_cache. A cache that the user set by jax's own variable
    (JAX_COMPILATION_CACHE_DIR) is left as it is, with "auto".
    Errors: UserError for a folder that others may write, or that cannot be made.
    """
    chosen = chosen_folder(setting)
    if chosen is None:
        return None
    folder = private_folder(chosen) / f"jaxlib-{jaxlib_version}"
    folder.mkdir(mode=0o700, exist_ok=True)
    changes: dict[str, Any] = {"jax_compilation_cache_dir": str(folder)}
    if jax.default_backend() == "cpu":  # asked for by name: then also what compiles within 1 s
        changes["jax_persistent_cache_min_compile_time_secs"] = 0.0
        changes["jax_persistent_cache_min_entry_size_bytes"] = -1
    for name, value in changes.items():
        jax.config.update(name, value)
    return folder


def chosen_folder(setting: str) -> pathlib.Path | None:
    """The folder that the setting means, None when there is to be no cache of ours."""
    if setting == "off":
        return None
    if setting == "auto":
        own = jax.config.values["jax_compilation_cache_dir"]
        if own or jax.default_backend() == "cpu":
            return None
        return user_cache("compiled")
    return pathlib.Path(setting)


def check(setting: str) -> None:
    """Errors: UserError where `use` would raise it. Writes nothing."""
    folder = chosen_folder(setting)
    if folder is None:
        return
    above = existing_parent(folder)
    if not above.is_dir():
        raise _unusable(folder, os.strerror(errno.ENOTDIR))
    if not os.access(above, os.W_OK | os.X_OK):
        raise _unusable(folder, os.strerror(errno.EACCES))
    if folder.exists():
        _refuse_shared(folder)


def private_folder(folder: pathlib.Path) -> pathlib.Path:
    """Makes the folder with mode 0700, or checks one that is there. Errors: UserError."""
    try:
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unusable(folder, error.strerror or str(error)) from None
    _refuse_shared(folder)
    return folder


def _unusable(folder: pathlib.Path, why: str) -> UserError:
    return UserError(
        f"train.compilation_cache: {folder} cannot be used ({why}); name another folder, or off"
    )


def _refuse_shared(folder: pathlib.Path) -> None:
    found = folder.stat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise UserError(
            f"train.compilation_cache: {folder} can be written by others, who could run code as "
            "you; chmod 700 a folder of your own, or name another"
        )
