"""The arbiters that a config can name with `arbiter.kind`.

ARBITERS has them by name; a new one is a file and a line here. An arbiter from outside this
package is named `module:Class`: called without arguments, Class gives an object with a `name` and
a `judge(cases)` method, see Arbiter in verdict.py.
"""

from __future__ import annotations

from collections.abc import Callable

from srpo_jax.arbiter.ssui_mini_rules import SsuiMiniArbiter
from srpo_jax.arbiter.verdict import Arbiter
from srpo_jax.config.registered import call_factory, find_registered
from srpo_jax.errors import UserError

FIELD = "arbiter.kind"

ARBITERS: dict[str, Callable[[], Arbiter]] = {"ssui_mini": SsuiMiniArbiter}


def find_arbiter(kind: str) -> Callable[[], Arbiter]:
    """What makes the arbiter of a name of ARBITERS, or of `module:Class`. Errors: UserError."""
    return find_registered(kind, ARBITERS, FIELD)


def make_arbiter(kind: str) -> Arbiter:
    """The arbiter of a name of ARBITERS, or of `module:Class`.

    Errors: UserError when there is none, when it cannot be made without arguments, or when what is
    made is no arbiter.
    """
    arbiter = call_factory(find_arbiter(kind), kind, FIELD)
    if not isinstance(getattr(arbiter, "name", None), str):
        raise UserError(f"{FIELD}={kind!r} gives a {type(arbiter).__name__} without a name, a text")
    if not callable(getattr(arbiter, "judge", None)):
        raise UserError(f"{FIELD}={kind!r} gives a {type(arbiter).__name__} without judge(cases)")
    return arbiter
