"""A family in one module outside of the package, named `module:Name`, is as good as our own."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from srpo_jax.errors import UserError
from srpo_jax.models.hf.load import load_params
from srpo_jax.models.hf.processor import Processor
from srpo_jax.models.inputs import causal_row, pad_rows
from srpo_jax.models.policy_model import PolicyModel, head_matrix
from srpo_jax.models.registry import FAMILIES, known_families, load_model_config
from tests.support import tiny
from tests.support.families import compile_fast

MODULE = """
import dataclasses
from srpo_jax.models.families.qwen2_5_vl import FAMILY as THEIRS

def tensors(config):
    theirs = THEIRS.tensors(config)
    return [dataclasses.replace(t, name=t.name.replace("visual.", "eye.")) for t in theirs]

FAMILY = dataclasses.replace(
    THEIRS, model_types=("one_eyed",), tensors=tensors, spellings=((r"^model[.]eye[.]", "eye."),)
)
TAKES_OURS = dataclasses.replace(THEIRS, model_types=("one_eyed", "qwen2_5_vl"))

def make():
    return dataclasses.replace(FAMILY)

NUMBER = 3
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    (tmp_path / "one_eyed_family.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "one_eyed_family"


def renamed(name: str) -> str:
    """Half of the tower's tensors under the name to be, half under another spelling of it."""
    prefix = "model.eye." if ".norm" in name else "eye."
    return prefix + name.removeprefix("visual.") if name.startswith("visual.") else name


@pytest.fixture
def folders(tmp_path):
    """A checkpoint of the built-in family, and the same numbers as one of the family outside."""
    ours = tiny.make(tmp_path / "ours")
    theirs = tiny.make(tmp_path / "theirs")
    weights = load_file(theirs / "model.safetensors")
    save_file({renamed(name): x for name, x in weights.items()}, theirs / "model.safetensors")
    raw = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps(raw | {"model_type": "one_eyed"}))
    return ours, theirs


def logits(folder, family="") -> np.ndarray:
    processor = Processor.from_dir(folder, family)
    config = processor.config
    params = load_params(folder, config, dtype=np.float32)
    prompt = processor.encode_question("What is in this image?", [tiny.picture(56, 84)])
    rows = pad_rows([causal_row(prompt)], tokens=len(prompt.tokens), patches=len(prompt.patches))
    model = PolicyModel(config)
    run = compile_fast(lambda p, r: model.apply({"params": p}, r) @ head_matrix(p, config))
    return np.asarray(run(params, rows))


def test_config_weights_pictures_and_logits_are_the_built_in_familys(outside, folders):
    ours, theirs = folders
    with pytest.raises(UserError, match="'one_eyed' is not supported"):
        load_model_config(theirs)
    spec = f"{outside}:FAMILY"
    found, expected = load_model_config(theirs, spec), load_model_config(ours)
    assert (found.text, found.vision) == (expected.text, expected.vision)
    assert found.model_type == "one_eyed" and found.family.tower is expected.family.tower
    assert np.array_equal(logits(theirs, spec), logits(ours))
    assert "one_eyed" not in FAMILIES  # what one run is told, no other one in the process is


def test_a_callable_is_asked_once(outside, folders):
    """Two reads give equal configs: what is compiled for one serves the other."""
    spec = f"{outside}:make"
    assert load_model_config(folders[1], spec) == load_model_config(folders[1], spec)
    assert known_families("") is FAMILIES


@pytest.mark.parametrize(
    "spec, said",
    [
        ("one_eyed_family", "is not module:Class"),
        ("one_eyed_family:NONE", "has no NONE"),
        ("no_such_module:FAMILY", "no module no_such_module"),
        ("one_eyed_family:NUMBER", "is a int"),
        ("one_eyed_family:TAKES_OURS", "'qwen2_5_vl' is srpo_jax's own"),
    ],
)
def test_what_is_no_family_is_told(outside, spec, said):
    with pytest.raises(UserError, match=said) as error:
        known_families(spec)
    assert "\n" not in str(error.value) and "model.family" in str(error.value)
