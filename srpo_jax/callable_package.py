"""Sub-packages that can be called: `srpo_jax.train(config, workdir)` beside `srpo_jax.train.loop`.

Python binds a sub-package to its name in the parent when any module in it is imported. A function
`srpo_jax.train` would be gone after `import srpo_jax.train.loop`, so the sub-package itself is what
is called, and it makes no difference what was imported before. Type checkers are shown the function
(srpo_jax/__init__.py).
"""

import importlib
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any


class CallablePackage(types.ModuleType):
    """A package whose call is a call of its main function, which is imported then."""

    _main: tuple[str, str]  # (module, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._main_function()(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._main_function())

    def _main_function(self) -> Callable[..., Any]:
        module, function = self._main
        return getattr(importlib.import_module(module), function)


def make_callable(package: str, module: str, function: str) -> None:
    """Makes a call of `package` a call of `function` in `package`.`module`. The package's own
    __init__ calls this with its __name__."""
    found: Any = sys.modules[package]
    found.__class__ = CallablePackage
    assert isinstance(found, CallablePackage)
    found._main = (f"{package}.{module}", function)
