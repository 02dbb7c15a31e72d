"""Reading config.json: both historical forms, and an error for everything that is not computed."""

import json

import pytest

from srpo_jax.errors import UserError
from srpo_jax.models.registry import load_model_config
from tests.support.tiny import config as tiny_config


def write(folder, raw):
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def test_flat_and_nested_forms_agree(tmp_path):
    """A folder saved again by transformers 5 describes the same model as the Hub's own file."""
    transformers = pytest.importorskip("transformers")
    flat = load_model_config(write(tmp_path, tiny_config(tied=True, dtype="float32")))
    nested = tmp_path / "nested"
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(nested)
    raw = json.loads((nested / "config.json").read_text())
    assert "rope_theta" not in raw and "rope_parameters" in raw["text_config"]
    assert load_model_config(nested) == flat
    assert hash(load_model_config(nested)) == hash(flat)
    assert flat.text.rms_norm_eps == 1e-6 and flat.text.tie_word_embeddings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mllama"}, "mllama.*supported: qwen2_5_vl"),
        ({"num_attention_heads": None}, "missing key 'num_attention_heads'"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_scaling": {"type": "yarn", "mrope_section": [2, 3, 3]}}, "yarn"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 4]}}, "sum to 8"),
        ({"hidden_size": 32}, "out_hidden_size 64"),
        ({"hidden_act": "gelu"}, "only 'silu'"),
        ({"vision_config": None}, "missing key 'vision_config'"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path, change, message):
    """A config that asks for another computation is an error of one line, never a silent guess."""
    raw = tiny_config(tied=True, dtype="float32") | change
    if "hidden_size" in change:
        raw["rope_scaling"] = {"type": "mrope", "mrope_section": [1, 1, 2]}
    with pytest.raises(UserError, match=message) as error:
        load_model_config(write(tmp_path, raw))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_missing_and_damaged_files_are_named(tmp_path):
    """No file, and a file that is not JSON, are user errors that name the file."""
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        load_model_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        load_model_config(tmp_path)
