"""What a verb is, and what it gets: a parsed command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from srpo_jax.command.names import check_names
from srpo_jax.config.fields import Config
from srpo_jax.config.load import load_config


@dataclass(frozen=True)
class Verb:
    """One command. `config` and `workdir`: "required", None, or what they are when not given.

    without_workdir: the option with which no workdir is needed. positional: the options that words
    without dashes stand for, in order, as in `srpo report WORKDIR`.
    several: what the words without dashes are, any number of them; Command.arguments has them.
    resumes: the same command again goes on where an interruption stopped it.
    passed_on: another parser reads the arguments; they are handed on as they are.
    verbs: the verbs behind this one, which does nothing alone unless it is `alone`.
    """

    summary: str
    example: str
    about: str = ""
    config: str | None = "required"
    workdir: str | None = "required"
    options: dict[str, tuple[Any, str]] = field(default_factory=dict)  # name: (default, help)
    bare: dict[str, str] = field(default_factory=dict)  # what an option means without a value
    without_workdir: str = ""
    positional: tuple[str, ...] = ()
    several: str = ""
    runs: tuple[str, ...] = ()  # options that name the workdir of a run, as --workdir does
    resumes: bool = False
    passed_on: bool = False
    verbs: Mapping[str, Verb] = field(default_factory=dict)
    alone: bool = False


@dataclass(frozen=True)
class Command:
    """A parsed command line: what a verb gets."""

    verb: str  # "train", "checkpoints check"
    config_file: str = ""  # FILE or FILE:VARIANT; "" without a config
    overrides: tuple[str, ...] = ()  # --config.a.b=value, in order
    workdir: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()  # passed on as they are, or the words of `several`

    def config(self, variant: str | None = None, unused: tuple[str, ...] = ()) -> Config:
        """The validated config; `variant` replaces the one of the command line; of the required
        fields, `unused` may be empty.
        """
        spec = self.config_file
        if variant is not None:
            spec = f"{spec.partition(':')[0]}:{variant}"
        config = load_config(spec, self.overrides, unused)
        check_names(config)
        return config
