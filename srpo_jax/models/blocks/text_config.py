"""The decoder's configuration, read from a Hugging Face `config.json`.

All families share the decoder. What is particular to a vision tower is read in the family's folder.

Released files leave keys out and then mean a default of the library that wrote them. A missing key
is an error all the same, except for those in a table of defaults (CLASS_DEFAULTS here, others in
the family files), which tests compare with transformers: a silent guess would load and be wrong.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from srpo_jax.errors import UserError
from srpo_jax.models.blocks.config_reader import Reader, is_integer, shown

# In memory the vocabulary is padded to a multiple of this, so that a mesh can split it: InternVL3
# has 151674 rows. Tables of fewer rows than the limit are so small that a device may hold them.
VOCAB_MULTIPLE, UNPADDED_VOCAB = 128, 8192

# What the text_config of a family means when it leaves these keys out (transformers' LlamaConfig
# and MistralConfig). The Qwen classes have no entry: their defaults are not those of the releases.
CLASS_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
    "mistral": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
}

# Kinds of text_config -> (biases of q, k and v; norms of queries and keys).
_KINDS = {
    "qwen2": (True, False),
    "qwen3": (False, True),
    "llama": (False, False),
    "mistral": (False, False),
}


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The decoder.

    rope: "1d"; "mrope", where the frequencies are split into blocks for (time, height, width); or
    "mrope_interleaved", where these take turns. mrope_section counts frequencies per axis.
    max_positions: positions must stay below it (0: no limit that we know of).
    padded_vocab: rows of the embedding in memory, at least vocab_size; the others are 0 and unused.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    mrope_section: tuple[int, ...] = ()
    rope: str = "mrope"
    qkv_bias: bool = True
    qk_norm: bool = False
    max_positions: int = 0
    padded_vocab: int = dataclasses.field(init=False)

    def __post_init__(self):
        padded = -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        small = self.vocab_size < UNPADDED_VOCAB
        object.__setattr__(self, "padded_vocab", self.vocab_size if small else padded)


def read_text(where: str, raw: dict[str, Any], kind: str) -> TextConfig:
    """The decoder of a whole `config.json`: of its `text_config`, or of a flat file's root.

    kind: "qwen2", "qwen3", "llama" or "mistral". The rope is M-RoPE if the file has a
    `mrope_section`. Accepts the forms of transformers 4 (`rope_theta`, `rope_scaling`) and 5
    (`rope_parameters`). The head is tied if the root or the decoder's section says so. Raises
    UserError for a missing key and for what this code does not compute.
    """
    get = text_reader(where, raw, CLASS_DEFAULTS.get(kind, {}))
    qkv_bias, qk_norm = _KINDS[kind]
    # Values that would change the computation if they were anything else.
    for key, allowed in (
        ("hidden_act", "silu"),
        ("attention_bias", qkv_bias),
        ("mlp_bias", False),
        ("use_sliding_window", False),
    ):
        get.only(key, allowed, default=allowed)
    windowed = kind == "mistral" and get("sliding_window", default=None) is not None
    layers = get("layer_types", default=[])  # overrides use_sliding_window in transformers 5
    if windowed or not isinstance(layers, list) or any(t != "full_attention" for t in layers):
        raise UserError(f"{get.where}: sliding_window is not supported; only null")
    hidden, heads = get.integer("hidden_size"), get.integer("num_attention_heads")
    kv_heads = get.integer("num_key_value_heads", default=heads)
    if get("head_dim", default=None) is not None:
        head_dim = get.integer("head_dim")
    elif kind == "qwen3":
        raise UserError(f"{get.where}: missing key 'head_dim'; is the file complete?")
    else:
        head_dim = hidden // heads if hidden % heads == 0 else 0
    if not head_dim or head_dim % 2 or heads % kv_heads:
        raise UserError(
            f"{get.where}: hidden_size {hidden}, {heads} heads of size {head_dim or 'unknown'} and "
            f"{kv_heads} kv heads do not divide"
        )
    return TextConfig(
        vocab_size=get.integer("vocab_size"),
        hidden_size=hidden,
        num_layers=get.integer("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=get.integer("intermediate_size"),
        rms_norm_eps=get.number("rms_norm_eps"),
        tie_word_embeddings=root_ties(where, raw) or get.flag("tie_word_embeddings", False),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        **_rope(get, head_dim),
    )


def text_reader(where: str, raw: dict[str, Any], defaults: dict[str, Any]) -> Reader:
    """Reads the decoder's keys. A file with a text_config has them there: like transformers, this
    looks at no other key of its root."""
    if raw.get("text_config") is None:
        return Reader(where, raw, defaults)
    return Reader(f"{where} (text_config)", raw["text_config"], defaults)


def root_ties(where: str, raw: dict[str, Any]) -> bool:
    """Whether the root of a config.json says that the output head is the embedding. transformers
    reads the flag there, and for some families in text_config too."""
    return Reader(where, raw).flag("tie_word_embeddings", False)


def rope_settings(get: Reader) -> Reader:
    """The settings of the rotary embedding, as transformers 5 takes them together: those of
    `rope_scaling`, or without it of `rope_parameters`; then those beside them."""
    rope = get("rope_scaling", default=None) or get("rope_parameters", default=None) or {}
    return Reader(f"{get.where} (rope)", rope, *get.sources)


def rope_type(rope: Reader) -> str:
    """The kind of a rotary embedding: "default" where nothing is said."""
    own = rope.sources[0]
    kind = own.get("rope_type") or own.get("type") or "default"
    if not isinstance(kind, str):
        raise UserError(f"{rope.where}: rope_type must be a name, got {shown(kind)}")
    return kind


def _rope(get: Reader, head_dim: int) -> dict[str, Any]:
    """The fields of TextConfig that say how positions turn queries and keys."""
    rope = rope_settings(get)
    kind = rope_type(rope)
    if kind not in ("default", "mrope", "dynamic"):
        raise UserError(
            f"{get.where}: RoPE type {shown(kind)} is not supported; supported: default, mrope, "
            "dynamic"
        )
    found: dict[str, Any] = {"rope_theta": rope.number("rope_theta"), "rope": "1d"}
    if rope("partial_rotary_factor", default=1.0) != 1.0:
        raise UserError(f"{get.where}: partial_rotary_factor is not supported; only 1.0")
    if kind == "dynamic":  # equals the default form up to here, and differs beyond
        found["max_positions"] = get.integer("max_position_embeddings")
    own = Reader(rope.where, rope.sources[0])
    section = own("mrope_section", default=None)
    if section is None:
        return found
    whole = isinstance(section, list) and all(is_integer(n) and n > 0 for n in section)
    if not whole or len(section) != 3 or 2 * sum(section) != head_dim:
        raise UserError(
            f"{get.where}: mrope_section {shown(section)} must be 3 numbers that sum to "
            f"{head_dim // 2}"
        )
    form = "mrope_interleaved" if own.flag("mrope_interleaved", False) else "mrope"
    return found | {"mrope_section": tuple(section), "rope": form}
