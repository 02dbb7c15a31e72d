"""format.kind in a config: a name, or a class of the user's own."""

from __future__ import annotations

import pytest

from srpo_jax.config.dialogue_sections import FormatSettings
from srpo_jax.data_pipelines.path_formats.base import FormatOptions
from srpo_jax.errors import UserError
from srpo_jax.inference.configured_format import configured_format

OWN = """
from srpo_jax.data_pipelines.path_formats.registry import FORMATS

class Shout(FORMATS["lines"]):
    name = "shout"

class Broken(Shout):
    def __init__(self, options):
        raise KeyError("nothing")
"""


def test_the_defaults_are_those_of_the_formats():
    """A config without the section reads as make_format() does: defaults stand in two places."""
    made = configured_format(FormatSettings())
    assert made.name == "lines" and made.options == FormatOptions()


def test_a_class_of_ones_own(tmp_path, monkeypatch):
    """It is found beside the config and gets the section's fields; what is wrong is one line."""
    (tmp_path / "my_path_format.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    made = configured_format(FormatSettings(kind="my_path_format:Shout", max_steps=4))
    assert made.name == "shout" and made.options.max_steps == 4
    for kind, named in (
        ("my_path_format:Broken", "KeyError"),
        ("my_path_format:FORMATS", "no subclass"),
        ("thinks", "did you mean think"),
    ):
        with pytest.raises(UserError, match=f"format.kind.*{named}"):
            configured_format(FormatSettings(kind=kind))
