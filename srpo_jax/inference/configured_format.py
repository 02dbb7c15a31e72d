"""The path format that a config names: a registered one, or a user's own by `module:Class`."""

from __future__ import annotations

import dataclasses

from srpo_jax.config.dialogue_sections import FormatSettings
from srpo_jax.config.registered import call_factory, find_registered
from srpo_jax.data_pipelines.path_formats.base import PathFormat
from srpo_jax.data_pipelines.path_formats.registry import FORMATS, make_format


def configured_format(settings: FormatSettings) -> PathFormat:
    """The format of the config's section `format`.

    UserError for a kind that does not exist, that cannot be imported, or that is no PathFormat.
    """
    field = "format.kind"
    fields = dataclasses.asdict(settings)
    kind = fields.pop("kind")
    found = find_registered(kind, FORMATS, field)
    return call_factory(lambda: make_format(found, **fields), kind, field)
