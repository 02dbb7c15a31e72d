"""The decoder's configuration, read from a Hugging Face `config.json`, and the reader of its keys.

All families share the decoder. What is particular to a vision tower is read in the family's folder.

Released files leave keys out and then mean a default of the library that wrote them. A missing key
is an error all the same, except for those in a table of defaults (CLASS_DEFAULTS here, others in
the family files), which tests compare with transformers: a silent guess would load and be wrong.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from srpo_jax.errors import UserError

_REQUIRED = object()

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


class Reader:
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

    def number(self, *names: str) -> float:
        value = self(*names)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise UserError(f"{self.where}: {names[0]} must be a number, got {value!r}")
        return float(value)

    def only(self, name: str, *allowed: Any) -> Any:
        """The value of a key of which this code computes some values only."""
        value = self(name)
        if value not in allowed:
            shown = ", ".join(map(repr, allowed))
            raise UserError(f"{self.where}: {name} {value!r} is not supported; only {shown}")
        return value


def read_text(where: str, raw: dict[str, Any], kind: str) -> TextConfig:
    """The decoder of a whole `config.json`, from its `text_config` or from the root.

    kind: "qwen2", "qwen3", "llama" or "mistral". The rope is M-RoPE if the file has a
    `mrope_section`. Accepts the forms of transformers 4 (`rope_theta`, `rope_scaling`) and 5
    (`rope_parameters`). Raises UserError for a missing key and for what this code does not compute.
    """
    nested = raw.get("text_config") or {}
    name = f"{where} (text_config)" if nested else where
    get = Reader(name, nested, raw, CLASS_DEFAULTS.get(kind, {}))
    qkv_bias, qk_norm = _KINDS[kind]
    # Values that would change the computation if they were anything else.
    for key, allowed in (
        ("hidden_act", "silu"),
        ("attention_bias", qkv_bias),
        ("mlp_bias", False),
        ("use_sliding_window", False),
    ):
        value = get(key, default=allowed)
        if value != allowed:
            raise UserError(f"{name}: {key} {value!r} is not supported; only {allowed!r}")
    if kind == "mistral" and get("sliding_window", default=None) is not None:
        raise UserError(f"{name}: sliding_window is not supported; only null")
    hidden, heads = get.integer("hidden_size"), get.integer("num_attention_heads")
    kv_heads = get("num_key_value_heads", default=heads)
    head_dim = get("head_dim", default=None)
    if head_dim is None:
        if kind == "qwen3":
            raise UserError(f"{name}: missing key 'head_dim'; is the file complete?")
        head_dim = hidden // heads if hidden % heads == 0 else 0
    if not head_dim or head_dim % 2 or heads % kv_heads:
        raise UserError(
            f"{name}: hidden_size {hidden}, {heads} heads of size {head_dim or 'unknown'} and "
            f"{kv_heads} kv heads do not divide"
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
        rms_norm_eps=get.number("rms_norm_eps"),
        tie_word_embeddings=tied,
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        **_rope(get, head_dim),
    )


def _rope(get: Reader, head_dim: int) -> dict[str, Any]:
    """The fields of TextConfig that say how positions turn queries and keys."""
    rope = get("rope_parameters", "rope_scaling", default={})
    inner = Reader(f"{get.where} (rope)", rope, *get.sources)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "mrope", "dynamic"):
        raise UserError(
            f"{get.where}: RoPE type {kind!r} is not supported; supported: default, mrope, dynamic"
        )
    found: dict[str, Any] = {"rope_theta": inner.number("rope_theta"), "rope": "1d"}
    if inner("partial_rotary_factor", default=1.0) != 1.0:
        raise UserError(f"{get.where}: partial_rotary_factor is not supported; only 1.0")
    if kind == "dynamic":  # equals the default form up to here, and differs beyond
        found["max_positions"] = get.integer("max_position_embeddings")
    section = rope.get("mrope_section")
    if section is None:
        return found
    section = tuple(int(n) for n in section)
    if len(section) != 3 or 2 * sum(section) != head_dim:
        raise UserError(
            f"{get.where}: mrope_section {list(section)} must be 3 numbers that sum to "
            f"{head_dim // 2}"
        )
    form = "mrope_interleaved" if rope.get("mrope_interleaved") else "mrope"
    return found | {"mrope_section": section, "rope": form}
