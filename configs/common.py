"""A config with every default; the fields are declared in srpo_jax/config/sections.py.

An experiment file starts from this and changes a few; docs/configuration.md lists them all.
"""

from ml_collections import ConfigDict

from srpo_jax.config.convert import config_dict
from srpo_jax.config.fields import Config


def get_config() -> ConfigDict:
    """Locked: values can be changed, names cannot be added."""
    return config_dict(Config())
