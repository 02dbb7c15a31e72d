"""What is particular to LLaVA: sparse config files, which features are shown, tiles and newlines.

Logits, bytes and answers of both families are compared in test_all_families.py.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from srpo_jax.errors import UserError
from srpo_jax.models.blocks.image_layout import NEWLINE
from srpo_jax.models.blocks.text_config import CLASS_DEFAULTS
from srpo_jax.models.families.llava import FAMILY
from srpo_jax.models.families.llava import model as llava
from srpo_jax.models.hf import tensor_match as names
from srpo_jax.models.registry import load_model_config
from tests.support import RELEASED as RELEASED_CONFIGS
from tests.support import tiny_llava, tiny_llava_next
from tests.support.families import Case, Loaded
from tests.support.tiny_llava import IMAGE, V_DEPTH

RELEASED = sorted(RELEASED_CONFIGS.glob("llava_*.json"))


def read(raw: dict):
    return llava.read_config("here", raw, FAMILY)


def raw_llava() -> dict:
    return tiny_llava.config(tied=False, dtype="float32")


def raw_next(decoder: str = "mistral") -> dict:
    return tiny_llava_next.config(tied=False, dtype="float32", decoder=decoder)


def test_defaults_are_those_of_transformers():
    """What a file means when it leaves a key out: the class defaults, all of them looked up."""
    transformers = pytest.importorskip("transformers")
    clip = transformers.CLIPVisionConfig()
    assert llava.VISION_DEFAULTS == {key: getattr(clip, key) for key in llava.VISION_DEFAULTS}
    for config in (transformers.LlavaConfig(), transformers.LlavaNextConfig()):
        assert llava.ROOT_DEFAULTS == {key: getattr(config, key) for key in llava.ROOT_DEFAULTS}
    assert llava.PINPOINT_DEFAULT == config.image_grid_pinpoints
    for kind, config in (
        ("llama", transformers.LlamaConfig()),
        ("mistral", transformers.MistralConfig()),
    ):
        theirs = dict(config.rope_parameters, **config.to_dict())
        ours = CLASS_DEFAULTS[kind]
        assert ours == {key: theirs[key] for key in ours}
        for size in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size"):
            assert size in ours
    assert config.sliding_window == 4096  # why a Mistral decoder must say that it has none


@pytest.mark.parametrize("file", RELEASED, ids=lambda file: file.stem)
def test_released_files_mean_what_transformers_reads(file):
    """Sizes that the file leaves out included; and transformers' model has as many parameters."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    raw = json.loads(file.read_text())
    ours = read(raw)
    kind = {"llava": transformers.LlavaConfig, "llava_next": transformers.LlavaNextConfig}
    theirs = kind[raw["model_type"]].from_dict(raw)
    text, vision = theirs.text_config, theirs.vision_config
    assert (ours.text.hidden_size, ours.text.num_layers, ours.text.num_heads) == (
        text.hidden_size,
        text.num_hidden_layers,
        text.num_attention_heads,
    )
    assert (ours.text.num_kv_heads, ours.text.head_dim, ours.text.rms_norm_eps) == (
        text.num_key_value_heads,
        text.head_dim,
        text.rms_norm_eps,
    )
    assert ours.text.rope_theta == text.rope_parameters["rope_theta"]
    assert (ours.vision.eps, ours.vision.activation) == (vision.layer_norm_eps, vision.hidden_act)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(theirs)
    held = sum(np.prod(entry.disk) * (entry.layers or 1) for entry in names.table(ours))
    assert held == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("raw", [raw_llava(), raw_next(), raw_next("llama")])
def test_files_saved_again_by_transformers_agree(tmp_path, raw):
    """Sparse or with every key written out: the same model."""
    transformers = pytest.importorskip("transformers")
    for folder in (tmp_path / "hub", tmp_path / "again"):
        folder.mkdir()
    (tmp_path / "hub" / "config.json").write_text(json.dumps(raw))
    transformers.AutoConfig.from_pretrained(tmp_path / "hub").save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert "hidden_act" in written["vision_config"] and "hidden_act" not in raw["vision_config"]
    assert load_model_config(tmp_path / "again") == load_model_config(tmp_path / "hub")


@pytest.mark.parametrize(
    ("raw", "change", "message"),
    [
        (raw_llava(), {"text_config": {"model_type": "qwen2"}}, "'qwen2' is not supported"),
        (raw_llava(), {"vision_config": {"model_type": "siglip_vision_model"}}, "siglip"),
        (raw_llava(), {"vision_config": {"hidden_act": "relu"}}, "hidden_act 'relu'"),
        (raw_llava(), {"vision_config": {"patch_size": 15}}, "does not divide image_size"),
        (raw_llava(), {"projector_hidden_act": "gelu_new"}, "projector_hidden_act 'gelu_new'"),
        (raw_llava(), {"vision_feature_layer": [-2, -5]}, r"vision_feature_layer \[-2, -5\]"),
        (raw_llava(), {"vision_feature_layer": 0}, "vision_feature_layer 0"),
        (raw_llava(), {"vision_feature_layer": V_DEPTH + 1}, "vision_feature_layer 4"),
        (raw_llava(), {"vision_feature_layer": -V_DEPTH - 1}, "vision_feature_layer -4"),
        (raw_llava(), {"vision_feature_select_strategy": "cls"}, "'cls' is not supported"),
        (raw_next(), {"vision_feature_select_strategy": "full"}, "'full' is not supported"),
        (raw_next(), {"text_config": {"sliding_window": 4096}}, "sliding_window is not supported"),
        (raw_next(), {"image_grid_pinpoints": [[56, 100]]}, r"\[\[56, 100\]\] must be pairs"),
        (raw_next(), {"image_grid_pinpoints": [56, 112]}, "must be pairs"),
        (raw_next(), {"image_grid_pinpoints": []}, "must be pairs"),
    ],
)
def test_what_is_not_computed_is_refused(raw, change, message):
    """One line that names the file's key and value, never a guess."""
    for key, value in change.items():
        raw[key] = {**raw[key], **value} if isinstance(value, dict) else value
    with pytest.raises(UserError, match=message) as error:
        read(raw)
    assert "\n" not in str(error.value) and "here" in str(error.value)


def test_absent_keys_that_mean_something_else_are_refused():
    """A Mistral decoder without the key has a window; the authors' files have no text_config."""
    raw = raw_next()
    del raw["text_config"]["sliding_window"]
    with pytest.raises(UserError, match="which means 4096"):
        read(raw)
    with pytest.raises(UserError, match="llava-hf"):
        read({"model_type": "llava", "mm_vision_tower": "openai/clip-vit-large-patch14-336"})


class Tower:
    """What LlavaNextModel.pack_image_features needs of a model."""

    def __init__(self, side: int, tile: int, pinpoints):
        vision = SimpleNamespace(image_size=tile, patch_size=tile // side)
        self.config = SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints)


sizes = st.integers(1, 1500) | st.integers(1, 9000)


@pytest.mark.parametrize("tile", [336, 42, IMAGE])  # 24, 3 and 4 patches a side
def test_tokens_show_the_features_that_transformers_packs(tile):
    """Any picture size: tiles, their order, what is cut away, newlines, by their numbers."""
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.llava_next.modeling_llava_next")
    pinpoints = [[r * tile, c * tile] for r, c in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3), (2, 4))]
    raw = raw_next() | {"image_grid_pinpoints": pinpoints}
    raw["vision_config"] |= {"image_size": tile}
    config = read(raw)
    tower = Tower(config.vision.side, tile, pinpoints)

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(sizes, sizes)
    @example(1, 1500)
    @example(1500, 1)
    @example(tile, tile)
    @example(2 * tile, 2 * tile)
    def check(height, width):
        layout = llava.image_layout((height, width), config)
        size = torch.tensor([height, width])
        tiles = modeling.image_size_to_num_patches(size, pinpoints, tile)
        number = torch.arange(tiles * config.vision.patch_unit, dtype=torch.float64)
        features = number.reshape(tiles, config.vision.patch_unit, 1)
        newline = torch.tensor([float(NEWLINE)], dtype=torch.float64)
        (packed,), _ = modeling.LlavaNextModel.pack_image_features(
            tower, [features], size[None], "default", newline
        )
        assert layout.features == len(number) and layout.token_index.dtype == np.int32
        assert layout.token_index.tolist() == packed[:, 0].int().tolist()
        assert layout.order.tolist() == list(range(len(number)))

    check()


def test_a_grid_of_another_family_is_refused():
    """(frames, rows, columns) is no size of a picture."""
    for raw, grid in ((raw_llava(), (56, 56)), (raw_next(), (1,)), (raw_next(), (1, 4, 4))):
        with pytest.raises(UserError, match="is not one of a llava"):
            llava.image_layout(grid, read(raw))


VARIANTS = [
    Case(
        "class token shown",
        tiny_llava,
        (("strategy", "full"), ("projector_bias", False)),
        in_front=True,
    ),
    Case("last block", tiny_llava, (("feature_layer", -1),), in_front=True),
    Case("first block", tiny_llava, (("feature_layer", 1),), in_front=True),
    Case("vicuna", tiny_llava_next, (("decoder", "llama"),), in_front=True),
]


@pytest.mark.parametrize("case", VARIANTS, ids=lambda case: case.name)
def test_logits_of_other_settings_equal_transformers(case, tmp_path):
    """Which block is taken, with its class token or not, and the other decoder of LLaVA-NeXT."""
    pytest.importorskip("torch")
    loaded = Loaded(case, case.make(tmp_path))
    more = ([31, 32], [33], [34, 35, 36])
    for ours, theirs in zip(loaded.logits(more), loaded.oracle_logits(more), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def spelled(spell) -> dict[str, tuple[int, ...]]:
    """Shapes of the tiny LLaVA-NeXT checkpoint by its names in another spelling."""
    shapes = tiny_llava.shapes(raw_next()) | {"image_newline": (tiny_llava.HIDDEN,)}
    return {spell(name): shape for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "spell",
    [
        *tiny_llava.LAYOUTS.values(),
        lambda n: n if n.endswith("lm_head.weight") else "model." + n,
        # Saved without its head, and the head beside it.
        lambda n: n.replace("language_model.model.", "language_model.").replace(
            "language_model.lm_head", "lm_head"
        ),
    ],
    ids=[*tiny_llava.LAYOUTS, "prefixed", "base_model"],
)
def test_every_spelling_goes_to_the_same_places(spell):
    """Each form that transformers loads without a missing or unexpected key."""
    config = read(raw_next())
    hub = names.match(spelled(str), config, "here")
    assert names.match(spelled(spell), config, "here") == {spell(n): p for n, p in hub.items()}


def test_tensors_that_nothing_uses_must_be_there():
    """The last block and the norm behind it: exported, so never silently absent or twice."""
    config = read(raw_next())
    found = spelled(str)
    unused = {n for n, p in names.match(found, config, "here").items() if p.entry.param is None}
    tower = "vision_tower.vision_model."
    wanted = (f"{tower}encoder.layers.{V_DEPTH - 1}.", f"{tower}post_layernorm.")
    assert unused == {name for name in found if name.startswith(wanted)} and len(unused) == 18
    for name in unused:
        with pytest.raises(UserError, match=f"not in the checkpoint: {name}"):
            names.match({n: s for n, s in found.items() if n != name}, config, "here")
    twice = {**found, "vision_tower.post_layernorm.bias": (32,)}
    with pytest.raises(UserError, match="two tensors for one place"):
        names.match(twice, config, "here")
