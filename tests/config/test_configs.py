"""The configs of the repository, the checks on values, and the page made from them."""

import dataclasses
import json
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from srpo_jax.command import config_page
from srpo_jax.config.check import flatten, validate
from srpo_jax.config.convert import as_config, config_dict, stored_config
from srpo_jax.config.fields import FIELDS, Config, arguments
from srpo_jax.config.load import load_config
from srpo_jax.configs import common
from srpo_jax.errors import UserError
from tests.support import ROOT

MINI = f"{ROOT}/configs/ssui_mini.py"


@pytest.mark.parametrize(
    "variant", ["", ":srpo", ":sft", ":sft_filtered", ":taught", ":orpo", ":dpo", ":dpo_ref"]
)
def test_the_mini_world_loads_in_all_variants(variant, monkeypatch, tmp_path):
    """Every variant validates, is immutable, and all explore alike; from any directory."""
    monkeypatch.chdir(tmp_path)
    config = load_config(MINI + variant)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.steps = 3
    assert config.explore == load_config(MINI).explore
    assert config.train.steps == load_config(MINI).train.steps


def test_variants_are_the_methods_they_are_named_after():
    """sft has no exploration term; orpo and dpo compare whole replies, dpo without L_ref."""
    sft, orpo, dpo = (load_config(f"{MINI}:{name}").objective for name in ("sft", "orpo", "dpo"))
    assert sft.lambda_exp == 0
    assert (orpo.contrast, orpo.branch_points) == ("odds_ratio", "first")
    assert (dpo.contrast, dpo.branch_points, dpo.ref_coef) == ("dpo", "first", 0)
    assert load_config(f"{MINI}:dpo_ref").objective.ref_coef == 1
    taught, filtered = (load_config(f"{MINI}:{name}") for name in ("taught", "sft_filtered"))
    assert taught.objective.lambda_exp == filtered.objective.lambda_exp == 0
    assert taught.objective.branch_coef == 1 and filtered.arbiter.filter_references


def test_the_template_asks_for_what_it_cannot_know():
    """photos.py refuses to start without a model and an arbiter, and loads when they are given."""
    photos = f"{ROOT}/configs/photos.py"
    with pytest.raises(UserError, match="config.model.path is empty"):
        load_config(photos)
    with pytest.raises(UserError, match="config.arbiter.kind is empty"):
        load_config(photos, ["--config.model.path=x"])
    load_config(photos, ["--config.model.path=x", "--config.arbiter.kind=ssui_mini"])


def test_the_7b_recipe_loads_in_both_variants():
    """It asks for the model's folder alone, and its warm-up is SFT with adapters that explores and
    judges nothing else than the run it is for."""
    recipe = f"{ROOT}/configs/qwen2_5_vl_7b.py"
    with pytest.raises(UserError, match="config.model.path is empty"):
        load_config(recipe)
    full, warmup = (load_config(recipe + v, ["--config.model.path=x"]) for v in ("", ":warmup"))
    assert full.lora.rank == 0 < warmup.lora.rank
    assert warmup.objective.lambda_exp == 0 < full.objective.lambda_exp
    assert (full.explore, full.format, full.prompt) == (
        warmup.explore,
        warmup.format,
        warmup.prompt,
    )
    with pytest.raises(UserError, match="unknown variant 'dpo'; there is srpo, warmup"):
        load_config(f"{recipe}:dpo")


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
    with pytest.raises(UserError, match="branch_coef is 1: safe branches count in L_ref"):
        load_config(
            f"{MINI}:dpo", ["--config.objective.branch_coef=1", "--config.objective.ref_coef=0"]
        )
    with pytest.raises(UserError, match="set both to the same"):
        load_config(MINI, ["--config.explore.branch_points=first"])
    with pytest.raises(UserError, match="does not divide"):
        load_config(MINI, ["--config.train.accumulate=3", "--config.pack.questions=0"])
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


def test_a_field_is_declared_once_and_the_page_is_current():
    """Every default keeps its own rule, and docs/configuration.md says what the classes say."""
    for name, field in FIELDS.items():
        assert field.help and (field.rule.accepts(field.default) or field.rule.required), name
    assert (ROOT / "docs" / "configuration.md").read_text() == config_page.page()


def test_both_forms_of_a_config_hold_the_same():
    """A ConfigDict and the typed config give the same dict, in the same order, which is what
    ledgers hold; a change of one field survives both ways, also through JSON."""
    template = common.get_config()
    template.train.freeze = ("vision/.*",)
    template.train.learning_rate = 1
    typed = as_config(template)
    assert set(flatten(template.to_dict())) == set(FIELDS)
    assert json.dumps(typed.to_dict()) == json.dumps(template.to_dict())
    assert config_dict(typed) == template and as_config(typed) is typed
    assert hash(typed) == hash(stored_config(json.loads(json.dumps(typed.to_dict()))))
    assert stored_config({"seed": 3, "gone": {"x": 1}}) == Config(seed=3)  # of another version
    loose = ConfigDict(template.to_dict())
    loose.train.stpes = 3
    with pytest.raises(UserError, match="did you mean config.train.steps"):
        as_config(loose)


def test_a_function_gets_the_fields_that_it_names():
    """`arguments` hands over same-named fields and no others."""

    def takes(tree, *, beta, gamma=0.0, seed=1): ...

    assert arguments(takes, Config().objective) == {"beta": 0.1, "gamma": 0.5}


@pytest.mark.parametrize(
    "name, good, bad",
    [
        ("objective.contrast", ("dpo", "my_losses:Hinge"), ("", "a b", "a:b:c", ":x")),
        ("arbiter.kind", ("ssui_mini", "my.judges:Judge"), ("a b", "judge:")),
        ("model.family", ("", "my.family:Family"), ("qwen", "my family:x")),
    ],
)
def test_names_are_checked_by_shape(name, good, bad):
    """A registered name, or module:Class; whether there is one is not for the config to know."""
    assert all(FIELDS[name].rule.accepts(value) for value in good)
    assert not any(FIELDS[name].rule.accepts(value) for value in bad)


COMMON = "from configs import common\n\n\ndef get_config():\n    return common.get_config()\n"


def load_in(folder, file):
    """What loading `file` says in a program that is started in `folder`."""
    code = f"from srpo_jax.config.load import load_config\nload_config({file!r})"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    return found.stderr.strip().rpartition("UserError: ")[2]


def test_configs_are_found_from_anywhere_and_never_shadowed(tmp_path):
    """configs/NAME.py is the working directory's, else ours; folders of our names in the working
    directory are not ours; a file with an own configs/common.py uses that, any other is told."""
    for name in ("configs", "launch", "data_pipelines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('shadowed')")
    assert load_in(tmp_path, "configs/pod.py").startswith("config.model.path is empty")
    assert "did you mean configs/pod.py?" in load_in(tmp_path, "configs/pdo.py")
    (tmp_path / "configs" / "pod.py").write_text("def get_config():\n    return 3\n")
    assert "returned int" in load_in(tmp_path, "configs/pod.py")

    elsewhere = tmp_path / "far" / "away"
    elsewhere.mkdir(parents=True)
    (elsewhere / "mine.py").write_text(COMMON)
    for folder, file in ((ROOT, str(elsewhere / "mine.py")), (elsewhere, "mine.py")):
        told = load_in(folder, file)
        assert "write `from srpo_jax.configs import common`" in told and "\n" not in told
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs" / "common.py").write_text("def get_config():\n    return 'own'\n")
    assert "returned str" in load_in(elsewhere, "mine.py")
