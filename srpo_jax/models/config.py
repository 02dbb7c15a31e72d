"""Model configuration: frozen dataclasses read from a Hugging Face `config.json`.

Nothing here has a default taken from a library: released checkpoints differ from the class
defaults of every library that loads them, so a missing key is an error and not a guess.
The dataclasses are hashable, so a config can be a static argument of a jitted function.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from srpo_jax.errors import UserError

SUPPORTED = ("qwen2_5_vl",)
_REQUIRED = object()


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower. Sizes in pixels: patch_size, window_size; the rest are counts."""

    depth: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    window_size: int
    fullatt_block_indexes: tuple[int, ...]
    in_channels: int
    out_hidden_size: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch: channels, frames, rows, columns."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """Patches that become one token of the decoder."""
        return self.spatial_merge_size**2


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The decoder. `mrope_section` counts rotary frequencies for (time, height, width)."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float
    rms_norm_eps: float
    mrope_section: tuple[int, ...]
    tie_word_embeddings: bool
    qkv_bias: bool = True


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One vision-language model: its two towers and the token ids that join them."""

    model_type: str
    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int


class _Reader:
    """Looks a key up in several dicts in turn and names the file and section when it is absent."""

    def __init__(self, where: str, *sources: dict[str, Any]):
        self.where = where
        self.sources = sources

    def __call__(self, *names: str, default: Any = _REQUIRED) -> Any:
        for source in self.sources:
            for name in names:
                if source.get(name) is not None:
                    return source[name]
        if default is _REQUIRED:
            raise UserError(f"{self.where}: missing key {names[0]!r}; is the file complete?")
        return default

    def integer(self, *names: str) -> int:
        value = self(*names)
        if isinstance(value, (list, tuple)) and len(set(value)) == 1:
            value = value[0]  # transformers 5 may write a patch size per axis
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise UserError(f"{self.where}: {names[0]} must be a positive integer, got {value!r}")
        return value


def load_model_config(directory: str | pathlib.Path) -> ModelConfig:
    """Reads DIRECTORY/config.json.

    Accepts the flat form (transformers 4: text keys at the root, `rope_theta` and `rope_scaling`)
    and the nested one (4.52 and later: `text_config`; 5: `rope_parameters`).

    Raises UserError for a missing or unreadable file, an unsupported model_type, a missing key,
    or a feature that this code does not compute (sliding windows, scaled RoPE).
    """
    path = pathlib.Path(directory) / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; point at a Hugging Face model directory"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as JSON: {reason}") from None
    model_type = raw.get("model_type") if isinstance(raw, dict) else None
    if model_type not in SUPPORTED:
        raise UserError(
            f"{path}: model_type {model_type!r} is not supported; supported: {', '.join(SUPPORTED)}"
        )
    root = _Reader(str(path), raw)
    text = _text(str(path), raw)
    vision = _vision(f"{path} (vision_config)", root("vision_config"))
    if vision.out_hidden_size != text.hidden_size:
        raise UserError(
            f"{path}: vision out_hidden_size {vision.out_hidden_size} is not the text "
            f"hidden_size {text.hidden_size}"
        )
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return ModelConfig(
        model_type=model_type, text=text, vision=vision, **{name: int(root(name)) for name in ids}
    )


def _text(where: str, raw: dict[str, Any]) -> TextConfig:
    nested = raw.get("text_config") or {}
    get = _Reader(f"{where} (text_config)" if nested else where, nested, raw)
    rope = get("rope_parameters", "rope_scaling")
    rope_get = _Reader(f"{get.where} (rope)", rope, nested, raw)
    kind = rope.get("rope_type") or rope.get("type")
    if kind not in ("default", "mrope"):
        raise UserError(f"{where}: RoPE type {kind!r} is not supported; supported: default, mrope")
    if get("use_sliding_window", default=False):
        raise UserError(f"{where}: use_sliding_window is not supported; set it to false")
    if get("hidden_act") != "silu":
        raise UserError(f"{where}: hidden_act {get('hidden_act')!r} is not supported; only silu")
    hidden, heads = get.integer("hidden_size"), get.integer("num_attention_heads")
    kv_heads = get.integer("num_key_value_heads")
    if hidden % heads or heads % kv_heads:
        raise UserError(
            f"{where}: hidden_size {hidden}, {heads} heads and {kv_heads} kv heads do not divide"
        )
    head_dim = hidden // heads
    section = tuple(int(n) for n in rope_get("mrope_section"))
    if len(section) != 3 or 2 * sum(section) != head_dim:
        raise UserError(
            f"{where}: mrope_section {list(section)} must be 3 numbers that sum to {head_dim // 2}"
        )
    # transformers ties when either place says so; older files hold it in text_config only.
    tied = bool(raw.get("tie_word_embeddings")) or bool(nested.get("tie_word_embeddings"))
    return TextConfig(
        vocab_size=get.integer("vocab_size"),
        hidden_size=hidden,
        num_layers=get.integer("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=get.integer("intermediate_size"),
        rope_theta=float(rope_get("rope_theta")),
        rms_norm_eps=float(get("rms_norm_eps")),
        mrope_section=section,
        tie_word_embeddings=tied,
    )


def _vision(where: str, raw: dict[str, Any]) -> VisionConfig:
    get = _Reader(where, raw)
    if get("hidden_act") != "silu":
        raise UserError(f"{where}: hidden_act {get('hidden_act')!r} is not supported; only silu")
    theta = (raw.get("rope_parameters") or {}).get("rope_theta", 10000.0)
    if theta != 10000.0:
        raise UserError(f"{where}: rope_theta {theta} is not supported; only 10000")
    vision = VisionConfig(
        depth=get.integer("depth", "num_hidden_layers"),
        hidden_size=get.integer("hidden_size"),
        num_heads=get.integer("num_heads", "num_attention_heads"),
        intermediate_size=get.integer("intermediate_size"),
        patch_size=get.integer("patch_size"),
        temporal_patch_size=get.integer("temporal_patch_size"),
        spatial_merge_size=get.integer("spatial_merge_size"),
        window_size=get.integer("window_size"),
        fullatt_block_indexes=tuple(int(i) for i in get("fullatt_block_indexes")),
        # The released files say `in_chans`, transformers 5 writes `in_channels`.
        in_channels=get.integer("in_channels", "in_chans"),
        out_hidden_size=get.integer("out_hidden_size"),
    )
    if vision.hidden_size % vision.num_heads or vision.head_dim % 4:
        raise UserError(
            f"{where}: hidden_size {vision.hidden_size} over {vision.num_heads} heads must give "
            "a head size divisible by 4 (two rotary axes)"
        )
    if vision.window_size % (vision.patch_size * vision.spatial_merge_size):
        raise UserError(
            f"{where}: window_size {vision.window_size} must be a multiple of patch_size times "
            "spatial_merge_size"
        )
    return vision
