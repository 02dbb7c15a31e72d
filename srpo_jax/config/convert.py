"""Between the two forms of a config: the typed one that travels, and the ConfigDict that experiment
files and users of the Python API change field by field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from srpo_jax.config.check import check_field_name, flatten
from srpo_jax.config.fields import FIELDS, SECTIONS, Config


def config_dict(config: Config) -> ConfigDict:
    """The same settings as a locked ConfigDict: values can be changed, names cannot be added."""
    return ConfigDict(dataclasses.asdict(config)).lock()


def as_config(config: Config | ConfigDict) -> Config:
    """The same settings, typed and immutable; fields that `config` lacks have their defaults.

    Values are taken as they are: check.validate says which are allowed.
    Errors: UserError for a name that no config has.
    """
    if isinstance(config, Config):
        return config
    flat = flatten(config.to_dict())
    for name in flat:
        check_field_name(name)
    return _typed(flat)


def stored_config(stored: Mapping[str, Any]) -> Config:
    """Of what `to_dict` gave, read back from JSON, maybe written by another version: what is not
    known here is left out, what is missing has its default.
    """
    return _typed({name: value for name, value in flatten(stored).items() if name in FIELDS})


def _typed(flat: Mapping[str, Any]) -> Config:
    parts: dict[str, dict[str, Any]] = {section: {} for section in ("", *SECTIONS)}
    for name, value in flat.items():
        field = FIELDS[name]
        if field.rule.kind is tuple and isinstance(value, list):  # JSON has no tuples
            value = tuple(value)
        elif field.rule.kind is float and type(value) is int:  # as ConfigDict does
            value = float(value)
        parts[field.section][field.leaf] = value
    run = parts.pop("")
    default = Config()
    sections = {
        name: dataclasses.replace(getattr(default, name), **values)
        for name, values in parts.items()
    }
    return Config(**run, **sections)
