"""What a verb is, and what it gets: a parsed command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Verb:
    """One command. `config`: "required", "optional" (the value is the default) or None."""

    summary: str
    example: str
    about: str = ""
    config: str | None = "required"
    workdir: str | None = "required"
    options: dict[str, tuple[Any, str]] = field(default_factory=dict)  # name: (default, help)
    bare: dict[str, str] = field(default_factory=dict)  # what an option means without a value


@dataclass(frozen=True)
class Command:
    """A parsed command line: what a verb gets."""

    verb: str
    config_file: str  # FILE or FILE:VARIANT; "" without a config
    overrides: tuple[str, ...]  # --config.a.b=value, in order
    workdir: str
    options: dict[str, Any]

    def config(self, variant: str | None = None, unused: tuple[str, ...] = ()):
        """The validated config; `variant` replaces the one of the command line; of the required
        fields, `unused` may be empty.
        """
        from srpo_jax.config.load import load_config

        spec = self.config_file
        if variant is not None:
            spec = f"{spec.partition(':')[0]}:{variant}"
        return load_config(spec, self.overrides, unused)
