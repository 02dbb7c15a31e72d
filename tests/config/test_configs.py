"""The configs of the repository, the checks on values, and the page made from them."""

import pytest
from ml_collections import ConfigDict

from srpo_jax.config import docs as config_docs
from srpo_jax.config.check import RULES, flatten, validate
from srpo_jax.config.load import REPOSITORY, load_config
from srpo_jax.errors import UserError

MINI = f"{REPOSITORY}/configs/ssui_mini.py"


@pytest.mark.parametrize("variant", ["", ":srpo", ":sft", ":orpo", ":dpo"])
def test_the_mini_world_loads_in_all_variants(variant, monkeypatch, tmp_path):
    """Every variant validates, is locked, and all explore in the same way; from any directory."""
    monkeypatch.chdir(tmp_path)
    config = load_config(MINI + variant)
    assert config.is_locked and set(flatten(config)) == set(RULES)
    assert config.explore == load_config(MINI).explore
    assert config.train.steps == load_config(MINI).train.steps


def test_variants_are_the_methods_they_are_named_after():
    """sft has no exploration term; orpo and dpo compare whole replies, dpo without L_ref."""
    sft, orpo, dpo = (load_config(f"{MINI}:{name}").objective for name in ("sft", "orpo", "dpo"))
    assert sft.lambda_exp == 0
    assert (orpo.contrast, orpo.branch_points) == ("odds_ratio", "first")
    assert (dpo.contrast, dpo.branch_points, dpo.ref_coef) == ("dpo", "first", 0)


def test_the_template_asks_for_what_it_cannot_know():
    """photos.py refuses to start without a model and an arbiter, and loads when they are given."""
    photos = f"{REPOSITORY}/configs/photos.py"
    with pytest.raises(UserError, match="config.model.path is empty"):
        load_config(photos)
    with pytest.raises(UserError, match="config.arbiter.kind is empty"):
        load_config(photos, ["--config.model.path=x"])
    load_config(photos, ["--config.model.path=x", "--config.arbiter.kind=ssui_mini"])


BAD = [
    ("seed", -1),
    ("train.steps", 0),
    ("train.steps", True),
    ("train.learning_rate", 0.0),
    ("train.learning_rate", float("inf")),
    ("objective.lambda_exp", float("nan")),
    ("train.b1", 1.5),
    ("mesh.fsdp", 0),
    ("mesh.fsdp", -2),
    ("model.dtype", "float16"),
    ("train.freeze", ("(",)),
    ("train.freeze", ("",)),
    ("name", ""),
    ("model.path", " "),
]


@pytest.mark.parametrize("field, value", BAD)
def test_validate_names_the_field(field, value):
    """A value outside its rule is refused with the field's name, in one line."""
    config = ConfigDict(load_config(MINI).to_dict(), type_safe=False)
    section, _, leaf = field.rpartition(".")
    (config[section] if section else config)[leaf] = value
    with pytest.raises(UserError) as error:
        validate(config)
    assert f"config.{field} is" in str(error.value) and "\n" not in str(error.value)


def test_validate_sees_unknown_and_missing_fields_and_senseless_combinations():
    """What no field can be blamed for alone is said too."""
    with pytest.raises(UserError, match="leaves no loss"):
        load_config(f"{MINI}:sft", ["--config.objective.ref_coef=0"])
    with pytest.raises(UserError, match="set both to the same"):
        load_config(MINI, ["--config.explore.branch_points=first"])
    with pytest.raises(UserError, match="does not divide"):
        load_config(MINI, ["--config.train.accumulate=3"])
    config = ConfigDict(load_config(MINI).to_dict())
    config.train.stpes = 3
    with pytest.raises(UserError, match="no config.train.stpes; did you mean config.train.steps"):
        validate(config)
    del config.train.stpes, config.train.keep
    with pytest.raises(UserError, match="config.train.keep is missing"):
        validate(config)


@pytest.mark.parametrize(
    "text, said",
    [
        ("def get_config():\n    return 3\n", "returned int"),
        ("x = 1\n", "has no function get_config"),
        ("def get_config(:\n", r"SyntaxError: .*\(line 1\)"),
        ("def get_config():\n    import os\n    return os.nope\n", r"no attribute 'nope' \(line 3"),
        (
            "from srpo_jax.configs import common\ndef get_config(): return common.get_config()\n",
            "is empty",
        ),
    ],
)
def test_a_broken_config_file_is_one_line(tmp_path, text, said):
    """Whatever a user's file does, the message names the file (or field) and has no newline."""
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as error:
        load_config(str(path))
    assert "\n" not in str(error.value)


def test_every_default_has_a_rule_and_a_comment_and_the_page_is_current():
    """common.py, the rules and docs/configuration.md say the same."""
    found = config_docs.fields((REPOSITORY / "configs" / "common.py").read_text())
    assert set(found) == set(RULES)
    assert (REPOSITORY / "docs" / "configuration.md").read_text() == config_docs.page()
