"""srpo_jax/runs/identity.py: no setting that changes the result can be changed unnoticed."""

from __future__ import annotations

import pathlib

import pytest

from srpo_jax.config.convert import as_config
from srpo_jax.config.fields import FIELDS
from srpo_jax.configs import common
from srpo_jax.errors import UserError
from srpo_jax.runs.identity import check_same, identity

DIGESTS = {"model_digest": "m", "data": {"trees": "d", "verdicts": "v"}}


def changed(field: str):
    """Another valid value of a field of the template."""
    config = common.get_config()
    section, _, leaf = field.rpartition(".")
    place = config[section] if section else config
    value, rule = place[leaf], FIELDS[field].rule
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


# What a run records since trees have format 2: with other names or values its workdir would not go
# on with a later version.
RECORDED = {
    "arbiter.filter_references": False,
    "arbiter.require_effective": False,
    "arbiter.scope": "reply",
    "explore.irregular": "drop",
    "format.kind": "lines",
    "format.markers": ["<think>", "</think>"],
    "format.max_steps": 12,
    "format.open": "auto",
    "format.split": "paragraph",
    "format.strict": False,
    "model weights": "m",
    "model.dtype": "float32",
    "objective.beta": 0.1,
    "objective.branch_points": "all",
    "objective.contrast": "odds_ratio",
    "objective.exp_denominator": "paired",
    "objective.gamma": 0.5,
    "objective.lambda_exp": 0.3,
    "objective.max_pairs": 8,
    "objective.normalise": "mean",
    "objective.odds_from": "branch",
    "objective.pairing": "all",
    "objective.ref_coef": 1.0,
    "objective.ref_reduction": "question",
    "objective.reference": "dataset",
    "pack.row_tokens": 0,
    "pack.rows": 8,
    "prompt.demo_images": "keep",
    "prompt.demo_layout": "turns",
    "prompt.demo_max_side": 336,
    "prompt.demos": "",
    "prompt.instruction": "auto",
    "prompt.num_demos": 0,
    "prompt.system": "",
    "prompt.train": "same",
    "seed": 0,
    "train.b1": 0.9,
    "train.b2": 0.95,
    "train.clip_norm": 1.0,
    "train.eps": 1e-08,
    "train.freeze": [],
    "train.learning_rate": 1e-05,
    "train.optimizer": "adamw",
    "train.param_dtype": "float32",
    "train.schedule": "cosine",
    "train.steps": 100,
    "train.warmup_steps": 10,
    "train.weight_decay": 0.0,
    "trees": "d",
    "verdicts": "v",
}
ADAPTERS = {
    "lora.alpha": 16.0,
    "lora.base_dtype": "float32",
    "lora.dropout": 0.5,
    "lora.rank": 4,
    "lora.targets": ["layers/.*/kernel"],
    "lora.use_rslora": False,
    "train.accumulate": 1,  # each slice of a batch draws its own masks
}


def test_old_workdirs_go_on():
    """A config has the identity that was recorded of it, from either form of the config."""
    config = common.get_config()
    assert identity(config, **DIGESTS) == identity(as_config(config), **DIGESTS) == RECORDED
    config.lora.rank, config.lora.dropout = 4, 0.5
    config.train.schedule = "constant"
    left_out = ("train.param_dtype", "train.steps")  # adapters are float32; the end may move
    expected = {name: value for name, value in RECORDED.items() if name not in left_out}
    changed = {"train.schedule": "constant"}
    assert identity(config, **DIGESTS) == expected | ADAPTERS | changed


def test_what_decides_is_named_and_what_is_harmless_is_not():
    """Each field, changed alone, is refused by name, or resumes: as its declaration says."""
    for name, field in FIELDS.items():
        base, config = common.get_config(), changed(name)
        if field.section == "lora":  # without adapters their settings decide nothing
            base.lora.rank = 2
            config.lora.rank = 3 if name == "lora.rank" else 2
        if name == "prompt.demo_seed":  # without a draw it decides nothing
            base.prompt.demo_select = config.prompt.demo_select = "random"
        stored, now = identity(base, **DIGESTS), identity(config, **DIGESTS)
        if not field.decides:
            assert now == stored, name
        else:
            with pytest.raises(UserError, match=rf"{name} was .*, now ") as error:
                check_same(stored, now, pathlib.Path("checkpoints"))
            assert "\n" not in str(error.value)
