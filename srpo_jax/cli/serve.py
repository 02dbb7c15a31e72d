"""`srpo serve`: a policy, loaded and compiled, behind the OpenAI chat API."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal
import sys
from typing import Any

from srpo_jax.config.convert import stored_config
from srpo_jax.config.fields import Config
from srpo_jax.console import say
from srpo_jax.errors import UserError
from srpo_jax.export.export import sampling_params
from srpo_jax.inference.policy import Policy, load_policy
from srpo_jax.runs.workdir import read_config
from srpo_jax.serve.server import listening
from srpo_jax.serve.service import Service
from srpo_jax.train.checkpoint.seal import steps_in

INTERRUPTED, TERMINATED = 130, 143  # exit codes of what Ctrl-C and SIGTERM ended


def serve(config: Config, model: str, name: str, host: str, port: int) -> None:
    """Answers until it is interrupted. model: a HF directory, or a workdir with checkpoints, which
    is loaded as its own config says but for the sections eval, explore and serve.

    Errors: UserError for a folder that is neither, an address that cannot be had, or a prompt that
    has no room; RunFailure when the engine fails. SIGTERM ends it as Ctrl-C does.
    """
    name = name or pathlib.Path(model).resolve().name
    with listening(host, port) as server:  # an address that is taken is told first
        config, policy, whose = _load(config, model)
        service = Service(config, policy, name)
        service.start()
        server.service = service
        say(f"policy: {whose}, as model {name!r}; answers: {config.serve.answer}")
        say(service.about())
        say(f"listening at {server.url}; Ctrl-C ends it")
        signal.signal(signal.SIGTERM, _terminated)
        try:
            server.run()
        except (KeyboardInterrupt, SystemExit) as end:
            # It may be within a program of the device, in which the interpreter's end would abort
            # it, also when nobody waits for that program any more.
            say("srpo serve: interrupted", to=sys.stderr)
            os._exit(INTERRUPTED if isinstance(end, KeyboardInterrupt) else TERMINATED)


def _load(config: Config, model: str) -> tuple[Config, Policy, str]:
    """(the config, the policy, whose it is)."""
    folder = pathlib.Path(model)
    if steps_in(folder / "checkpoints"):
        own = stored_config(read_config(folder))
        sections = {name: getattr(config, name) for name in ("eval", "explore", "serve")}
        config = dataclasses.replace(own, **sections)
        step, params = sampling_params(config, folder)
        return config, load_policy(config, params=params), f"checkpoint {step} of {model}"
    if (folder / "config.json").is_file():
        return config, load_policy(config, model_dir=folder), model
    raise UserError(
        f"--model={model}: neither a HF directory (no config.json) nor a workdir with checkpoints"
    )


def _terminated(*_: Any) -> None:
    raise SystemExit(TERMINATED)
