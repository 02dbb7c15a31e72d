"""The arbiters that a config can name with `arbiter.kind`.

ARBITERS has them by name; a new one is a file and a line here. An arbiter from outside this
package is named `module:Class`: called with what it asks for by name, see make_arbiter, Class gives
an object with a `name` and a `judge(cases)` method, see Arbiter in verdict.py.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

from srpo_jax.arbiter.chat.messages import ChatBackend
from srpo_jax.arbiter.chat.reply_cache import ReplyCache
from srpo_jax.arbiter.combined.cascade import Cascade
from srpo_jax.arbiter.combined.graded import Graded
from srpo_jax.arbiter.combined.jury import Jury
from srpo_jax.arbiter.combined.members import make_member
from srpo_jax.arbiter.combined.vote import Vote
from srpo_jax.arbiter.in_process.judges import guard_judge, policy_judge, runs_here
from srpo_jax.arbiter.prompted.prompted import Prompted
from srpo_jax.arbiter.scripted import Replay, Scripted
from srpo_jax.arbiter.ssui_mini_rules import SsuiMiniArbiter
from srpo_jax.arbiter.verdict import Arbiter
from srpo_jax.config.fields import Config, arguments
from srpo_jax.config.judging_sections import JudgeSettings
from srpo_jax.config.registered import call_factory, find_registered
from srpo_jax.errors import UserError

FIELD = "arbiter.kind"

ARBITERS: dict[str, Callable[..., Arbiter]] = {
    "ssui_mini": SsuiMiniArbiter,
    "prompted": Prompted,
    "policy": policy_judge,
    "guard": guard_judge,
    "scripted": Scripted,
    "replay": Replay,
    "vote": Vote,
    "cascade": Cascade,
    "jury": Jury,
    "graded": Graded,
}

# Those that are asked by the rubrics of judge.rubric; a guard has its own words.
BY_RUBRICS = ("prompted", "policy")


def find_arbiter(kind: str) -> Callable[..., Arbiter]:
    """What makes the arbiter of a name of ARBITERS, or of `module:Class`. Errors: UserError."""
    return find_registered(kind, ARBITERS, FIELD)


def takes_backend(kind: str, settings: JudgeSettings) -> bool:
    """Whether the arbiter of this name, or a member of it, asks a chat model through a back end
    that can be given to it, so that its requests can go into a batch file. A guard of which
    settings.model is a folder runs here. Errors: UserError.
    """
    if kind == "guard" and runs_here(settings):
        return False
    return bool({"backend", "make_member"} & set(inspect.signature(find_arbiter(kind)).parameters))


def make_arbiter(
    kind: str,
    settings: JudgeSettings | None = None,
    *,
    config: Config | None = None,
    cache: ReplyCache | None = None,
    allow_upload: bool = False,
    backend: ChatBackend | None = None,
    within: tuple[str, ...] = (),
    rubric: str = "",
) -> Arbiter:
    """The arbiter of a name of ARBITERS, or of `module:Class`.

    It is called with those of these that it has parameters for: the fields of the section `judge`
    by their names (model, base_url, ...), the whole section as `settings`, `cache`,
    `allow_upload`, `backend`, `config`, and `make_member`, which makes the arbiter of a config file
    with the same cache and so on. settings: default, the section's defaults. config: the whole
    config, for a judge that runs here (dtype, mesh). backend: who answers a chat model's questions,
    instead of the server that the settings name. within: the config files that this arbiter is a
    member of, one of which it must not have for a member. rubric: what it and its members judge by,
    instead of what their settings say, where they judge by rubrics at all (BY_RUBRICS).

    Errors: UserError when there is none, when it cannot be made of that, or when what is made is no
    arbiter.
    """
    section = settings or JudgeSettings()
    if rubric and kind in BY_RUBRICS:
        section = dataclasses.replace(section, rubric=rubric)
    shared = {"cache": cache, "allow_upload": allow_upload, "backend": backend, "rubric": rubric}
    alike = functools.partial(make_arbiter, **shared)
    offered = {
        "settings": section,
        "cache": cache,
        "allow_upload": allow_upload,
        "backend": backend,
        "config": config,
        "make_member": lambda spec: make_member(spec, alike, within),
    }
    factory = find_arbiter(kind)

    def made() -> Any:
        taken = inspect.signature(factory).parameters
        chosen = {name: value for name, value in offered.items() if name in taken}
        return factory(**arguments(factory, section), **chosen)

    arbiter = call_factory(made, kind, FIELD)
    if not isinstance(getattr(arbiter, "name", None), str):
        raise UserError(f"{FIELD}={kind!r} gives a {type(arbiter).__name__} without a name, a text")
    if not callable(getattr(arbiter, "judge", None)):
        raise UserError(f"{FIELD}={kind!r} gives a {type(arbiter).__name__} without judge(cases)")
    return arbiter
