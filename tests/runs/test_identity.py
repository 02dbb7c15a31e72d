"""srpo_jax/runs/identity.py: no setting that changes the result can be changed unnoticed."""

from __future__ import annotations

import pathlib

import pytest

from srpo_jax.config.check import RULES, flatten
from srpo_jax.configs import common
from srpo_jax.errors import UserError
from srpo_jax.runs.identity import DECIDING, HARMLESS, check_same, identity

DIGESTS = {"model_digest": "m", "data_fingerprint": "d"}


def names(table: dict) -> set[str]:
    """The fields of a table of sections; None stands for all of a section."""
    found = set()
    for section, fields in table.items():
        start = f"{section}." if section else ""
        if fields is None:
            found |= {name for name in RULES if name.startswith(start)}
        else:
            found |= {start + field for field in fields}
    return found


def changed(field: str):
    """Another valid value of a field of the template."""
    config = common.get_config()
    section, _, leaf = field.rpartition(".")
    place = config[section] if section else config
    value, rule = place[leaf], RULES[field]
    if rule.words:
        place[leaf] = next(word for word in rule.words if word != value)
    elif isinstance(value, tuple):
        place[leaf] = (*value, "other/.*")
    elif isinstance(value, bool):
        place[leaf] = not value
    elif isinstance(value, str):
        place[leaf] = value + "x"
    else:
        place[leaf] = type(value)((value + 1) / 4 if rule.high <= 1 else value + 1)
    return config


def test_every_field_decides_or_is_harmless():
    """A new field belongs into one of the two tables, or this fails."""
    assert names(DECIDING) | names(HARMLESS) == set(RULES) == set(flatten(common.get_config()))
    assert not names(DECIDING) & names(HARMLESS)


def test_what_decides_is_named_and_what_is_harmless_is_not():
    """Each field, changed alone, is refused by name, or resumes: as its table says."""
    for field in sorted(RULES):
        base, config = common.get_config(), changed(field)
        if field.startswith("lora."):  # without adapters their settings decide nothing
            base.lora.rank = 2
            config.lora.rank = 3 if field == "lora.rank" else 2
        stored, now = identity(base, **DIGESTS), identity(config, **DIGESTS)
        if field in names(HARMLESS) - {"seed"}:
            assert now == stored, field
        else:
            with pytest.raises(UserError, match=rf"{field} was .*, now ") as error:
                check_same(stored, now, pathlib.Path("checkpoints"))
            assert "\n" not in str(error.value)
