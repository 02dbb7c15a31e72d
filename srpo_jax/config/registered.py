"""Things that a config names: a registered one by a word, a user's own by `module:Class`.

Every registry (losses, arbiters) is a dict from name to value and asks here for what a field of the
config says. Naming a module runs it, just as loading a config file does.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from srpo_jax.errors import RunFailure, UserError, one_line


def find_registered(spec: str, registered: Mapping[str, Any], field: str) -> Any:
    """What `spec` stands for: registered[spec], or what `module:Class` names (find_outside).

    field: the field of the config that holds spec, for messages ("objective.contrast"). Errors:
    UserError for a name that is not registered, and as find_outside.
    """
    if ":" in spec:
        return find_outside(spec, field)
    if spec in registered:
        return registered[spec]
    near = difflib.get_close_matches(spec, registered, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    word = field.rpartition(".")[2]
    raise UserError(f"{field}={spec!r} does not exist; {word}s: {', '.join(registered)}{hint}")


def find_outside(spec: str, field: str) -> Any:
    """What `module:Class` names. Class is an attribute of the module; dots lead further inside. It
    may be of any kind: whether it is of use is the caller's to check. Errors: UserError for a
    module or attribute that does not exist or cannot be imported.
    """
    found: Any = import_outside(spec, field)
    for name in spec.partition(":")[2].split("."):
        if not hasattr(found, name):
            where = getattr(found, "__file__", None) or found
            raise UserError(f"{field}={spec!r}: {where} has no {name}")
        found = getattr(found, name)
    return found


def import_outside(spec: str, field: str) -> ModuleType:
    """The module of `module:Class`, imported with the working directory before all other places:
    there users keep their module, beside their config. Errors: UserError.
    """
    module, _, path = spec.partition(":")
    parts = [*module.split("."), *path.split(".")]
    if not all(part.isidentifier() for part in parts) or module.endswith(".py"):
        raise UserError(f"{field}={spec!r} is not module:Class, as in my_module:MyClass")
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()  # the file may be younger than the last look into its folder
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's module raises, it is what is wrong
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module}.".startswith(f"{missing}."):
            raise UserError(
                f"{field}={spec!r}: there is no module {missing}, neither in {here} nor installed"
            ) from None
        raise UserError(f"{field}={spec!r}: importing {module} raises {_told(error)}") from None
    finally:
        sys.path.remove(here)


def call_factory(factory: Any, spec: str, field: str) -> Any:
    """factory(), where `find_registered` found the factory for spec.

    Errors: UserError when it cannot be called without arguments or raises; a UserError or
    RunFailure of its own passes through.
    """
    try:
        return factory()
    except (UserError, RunFailure):
        raise
    except (Exception, SystemExit) as error:  # exiting would look like success
        raise UserError(f"{field}={spec!r}: calling it raises {_told(error)}") from None


def _told(error: BaseException) -> str:
    """The kind of an exception and what it says, on one line."""
    return one_line(f"{type(error).__name__}: {error}", 300)
