"""srpo_jax/models/blocks/config_reader.py: whatever a config.json says, it means what transformers
takes it for, or it is one line that says what is wrong."""

from __future__ import annotations

import copy
import itertools
import json
import time

import pytest

from srpo_jax.errors import UserError
from srpo_jax.models.blocks.config_reader import LARGEST, SPELLINGS, check_values
from srpo_jax.models.hf import tensor_match
from srpo_jax.models.registry import load_model_config, parse_model_config
from tests.support.families import CASES

NAMES = [name for name in CASES if name != "idefics3"]  # reads as smolvlm does


@pytest.fixture(scope="module")
def raws(tmp_path_factory):
    """Family -> its tiny checkpoint's parsed config.json."""
    folders = {n: CASES[n].make(tmp_path_factory.mktemp(n) / "m") for n in NAMES}
    return {n: json.loads((f / "config.json").read_text()) for n, f in folders.items()}


def read(raw):
    return parse_model_config("here", raw)


def written(tmp_path, text: str):
    (tmp_path / "config.json").write_text(text)
    return tmp_path


def theirs(tmp_path, raw):
    """transformers' config of the same file."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoConfig.from_pretrained(written(tmp_path, json.dumps(raw)))


def text_section(raw) -> dict:
    return raw.get("text_config", raw)


# --- two spellings of one setting ---

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
PLAIN = {"rope_type": "default"}
ROPES = [
    # (rope_scaling, rope_parameters, rope_theta beside them); None: the key is not there
    (None, PLAIN, 5e5),
    (PLAIN, None, 5e5),
    (YARN, PLAIN, 5e5),
    (PLAIN, YARN, 5e5),
    ({}, YARN, 5e5),
    ({"type": "yarn", "rope_type": "default"}, None, 5e5),
    (YARN | {"type": "default"}, None, 5e5),
    (PLAIN | {"rope_theta": 3e5}, PLAIN | {"rope_theta": 2e5}, 5e5),
    (PLAIN, PLAIN | {"rope_theta": 2e5}, 5e5),
    (None, PLAIN | {"rope_theta": 2e5}, 5e5),
    (PLAIN, PLAIN | {"rope_theta": 2e5}, None),
    ({"rope_type": "dynamic", "factor": 2.0}, PLAIN, 5e5),
    ({"rope_type": "linear", "factor": 2.0}, PLAIN, 5e5),
]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "internvl3", "llava", "smolvlm"])
def test_rope_is_what_transformers_computes_or_refused(raws, tmp_path, name):
    """Also where rope_scaling and rope_parameters say different things: rope_scaling counts."""
    accepted = 0
    for scaling, parameters, theta in ROPES:
        raw = copy.deepcopy(raws[name])
        text = text_section(raw)
        old = text.get("rope_scaling") or {}
        keep = {key: v for key, v in old.items() if key.startswith("mrope")}
        for key, value in (("rope_scaling", scaling), ("rope_parameters", parameters)):
            text.pop(key, None)
            if value is not None:
                text[key] = value and keep | value
        text.pop("rope_theta", None)
        if theta is not None:
            text["rope_theta"] = theta
        said = theirs(tmp_path, raw).text_config.rope_parameters
        if said["rope_type"] not in ("default", "dynamic"):
            with pytest.raises(UserError, match="RoPE type"):
                read(raw)
            continue
        try:
            ours = read(raw).text
        except UserError as error:  # transformers takes a class default then
            assert theta is None and "missing key 'rope_theta'" in str(error)
            continue
        assert ours.rope_theta == said["rope_theta"], (scaling, parameters, theta)
        accepted += 1
    assert accepted >= 8


def test_only_the_decoders_own_section_is_read(raws, tmp_path):
    """A nested file's root is not where transformers looks for a size or an epsilon."""
    raw = copy.deepcopy(raws["llava"])
    raw |= {"rms_norm_eps": 0.125, "rope_theta": 77.0}
    for key in ("rms_norm_eps", "rope_theta"):
        raw["text_config"].pop(key, None)
    said, ours = theirs(tmp_path, raw).text_config, read(raw).text
    assert ours.rms_norm_eps == said.rms_norm_eps != 0.125
    assert ours.rope_theta == said.rope_parameters["rope_theta"] != 77.0


TIED_BY_ROOT = ["qwen3_vl", "llava_next", "smolvlm"]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava", *TIED_BY_ROOT, "internvl3"])
def test_a_head_is_tied_where_transformers_ties_it(raws, tmp_path, name):
    """The flag at the root and in text_config, each true, false or not there."""
    for root, nested in itertools.product((None, False, True), repeat=2):
        raw = copy.deepcopy(raws[name])
        if name == "qwen2_5_vl":  # the form that transformers 5 saves
            raw = theirs(tmp_path, raw).to_dict()
            raw = json.loads(json.dumps(raw, default=str))
        for section, value in ((raw, root), (raw["text_config"], nested)):
            section.pop("tie_word_embeddings", None)
            if value is not None:
                section["tie_word_embeddings"] = value
        said, ours = theirs(tmp_path, raw).tie_word_embeddings, read(raw).text.tie_word_embeddings
        if name == "internvl3":  # its class default is true, also beside a head in the file
            expected = bool(root) if nested is None else nested and root is not False
            assert ours == expected and (said or not ours)
        else:
            assert ours == said, (root, nested)


TWICE = [
    *((name, "vision_config", key) for name in ("qwen2_5_vl", "qwen3_vl") for key in SPELLINGS),
    *((name, "", "image_token_index") for name in ("llava", "llava_next")),
]
TWICE = [row for row in TWICE if (row[1] == "") == (row[2] == "image_token_index")]


@pytest.mark.parametrize(("name", "section", "first"), TWICE)
def test_other_spellings_that_disagree_are_refused(raws, name, section, first):
    """Both names are told; where they agree, or one is alone, the model is the same."""
    second = SPELLINGS[first]
    changed = copy.deepcopy(raws[name])
    place = changed[section] if section else changed
    value = place.pop(first, None) or place.pop(second)
    for said in ({first: value}, {second: value}, {first: value, second: value}):
        again = copy.deepcopy(changed)
        (again[section] if section else again).update(said)
        assert read(again) == read(raws[name])
    place |= {first: value, second: value + 1}
    with pytest.raises(UserError, match=f"{first} .* and {second} .* are one setting"):
        read(changed)


def test_a_dtype_is_read_from_the_tensors_alone(raws):
    """What config.json says of it, in either spelling, changes nothing."""
    for raw in raws.values():
        assert read(raw | {"dtype": "float16", "torch_dtype": "bfloat16"}) == read(raw)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised"),
        ({"per_layer_config": {"0": {"hidden_size": 32}}}, "different sizes"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "sliding_window"),
    ],
)
def test_settings_that_only_transformers_follows_are_refused(raws, change, says):
    """At the root and in the decoder's section."""
    for raw in raws.values():
        for section in {id(s): s for s in (raw, text_section(raw))}.values():
            if "layer_types" in change and section is not text_section(raw):
                continue
            changed = copy.deepcopy(raw)
            (changed if section is raw else changed["text_config"]).update(change)
            with pytest.raises(UserError, match=says):
                read(changed)


def test_the_towers_rope_is_checked_in_every_spelling(raws):
    """Qwen's towers turn by a fixed theta; a file that says another one means another model."""
    for name in ("qwen2_5_vl", "qwen3_vl"):
        for change in (
            {"rope_theta": 5e5},
            {"rope_parameters": {"rope_theta": 5e5}},
            {"rope_scaling": {"rope_type": "yarn"}},
        ):
            raw = copy.deepcopy(raws[name])
            raw["vision_config"] |= change
            with pytest.raises(UserError, match="rope_theta .* is not supported; only 10000"):
                read(raw)


# --- absurd and wrong values ---

NAN, INF = float("nan"), float("inf")
SENSELESS = [
    *(True, 0, -1, 10**9, 2**70, 10**400, 1.5, -0.0, NAN, INF),
    *("2", "\x1b[31m\n" * 90, [], [1], [[NAN]], {}, {"a": 1}),
]


def places(value, at=()):
    """The way to every value in a parsed file."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inside in inner:
        yield (*at, key)
        if isinstance(inside, (dict, list)):
            yield from places(inside, (*at, key))


@pytest.mark.parametrize("name", NAMES)
def test_a_senseless_value_is_one_line_or_a_model_that_can_be_sized(raws, name):
    """Every key, in every section, with every senseless value: no other kind of error, no wait."""
    refused = accepted = 0
    for place in places(raws[name]):
        for value in SENSELESS:
            raw = copy.deepcopy(raws[name])
            section = raw
            for key in place[:-1]:
                section = section[key]
            section[place[-1]] = value
            began = time.process_time()
            try:
                config = read(raw)
            except UserError as error:
                refused += 1
                assert str(error).isprintable() and len(str(error)) < 500
            else:
                accepted += 1
                sizes = [entry.full_shape for entry in tensor_match.table(config)]
                assert all(0 < n < 1 << 24 for shape in sizes for n in shape), (place, value)
                assert 0 < config.text.rms_norm_eps < 1 and config.text.rope_theta > 1
            assert time.process_time() - began < 1
    assert refused > accepted / 2 > 0


@pytest.mark.parametrize("name", sorted(LARGEST))
def test_a_size_is_refused_wherever_transformers_may_read_it(raws, name):
    """Also at the root of a nested file, and in a section that this code does not know."""
    for place in ({name: 2 * 10**9}, {"audio_config": {"inner": {name: 2 * 10**9}}}):
        with pytest.raises(UserError, match=f"{name} 2000000000 is too large"):
            check_values("here", raws["llava"] | place)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_key_value_heads", 0),
        ("num_key_value_heads", -2),
        ("num_key_value_heads", "2"),
        ("image_token_id", 1.5),
        ("image_token_id", "x"),
        ("model_type", ["qwen2_5_vl"]),
        ("text_config", [1]),
        ("vision_config", [1]),
        ("rope_scaling", [1]),
        ("rope_scaling", {"type": "mrope", "mrope_section": "abc"}),
        ("head_dim", "32"),
        ("rms_norm_eps", NAN),
        ("rms_norm_eps", -1),
        ("rope_theta", 0),
        ("rope_theta", 10**400),
    ],
)
def test_wrong_values_of_the_decoder_are_refused(raws, tmp_path, key, value):
    """By a message that names the key, from the file itself."""
    folder = written(tmp_path, json.dumps(raws["qwen2_5_vl"] | {key: value}))
    says = "text_config" if key == "text_config" else key.removesuffix("_scaling")
    with pytest.raises(UserError, match=says) as error:
        load_model_config(folder)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        '{"x": ' + "9" * 5000 + "}",
        '{"x": ' + "[" * 20_000 + "]" * 20_000 + "}",
        '{"x": ' + "[" * 50 + "]" * 50 + "}",
        '{"x": [' + "0, " * 200_000 + "0]}",
        "[1]",
        '"\\ud800"',
        " " * (33 << 20),
    ],
    ids=["digits", "lists", "fifty lists", "values", "a list", "half a character", "size"],
)
def test_a_file_that_is_no_config_is_one_line_at_once(tmp_path, text):
    """Before transformers sees it."""
    began = time.process_time()
    with pytest.raises(UserError) as error:
        load_model_config(written(tmp_path, text))
    assert str(error.value).isprintable() and len(str(error.value)) < 400
    assert time.process_time() - began < 1
