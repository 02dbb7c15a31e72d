"""What a `config.json` may say: the values of its keys, checked before anything is sized by them.

`check_values` walks the whole file, also what only transformers reads of it: there a number of
layers of 1e9 is a list of 1e9 entries. `Reader` then gives single values, of the type and in the
range that they must have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeGuard

from srpo_jax.errors import UserError, one_line

_REQUIRED = object()

# Counts and sizes, in any section of the file: the largest value that is read. No release has a
# tenth of them; what is larger is a damaged file.
LARGEST: dict[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "depth", "num_labels"), 1 << 10),
    **dict.fromkeys(("num_attention_heads", "num_heads", "num_key_value_heads"), 1 << 12),
    **dict.fromkeys(("hidden_size", "out_hidden_size", "head_dim"), 1 << 17),
    **dict.fromkeys(("intermediate_size", "num_position_embeddings"), 1 << 21),
    "vocab_size": 1 << 23,
    "max_position_embeddings": 1 << 30,
    **dict.fromkeys(("image_size", "window_size"), 1 << 14),
    **dict.fromkeys(("patch_size", "in_channels", "in_chans", "num_channels"), 1 << 10),
    **dict.fromkeys(("temporal_patch_size", "spatial_merge_size", "scale_factor"), 1 << 6),
}
PER_AXIS = ("image_size", "patch_size", "temporal_patch_size")  # lists of one value are read too
# Real numbers: what lies strictly between the two is read.
BETWEEN: dict[str, tuple[float, float]] = {
    "rms_norm_eps": (0.0, 1.0),
    "layer_norm_eps": (0.0, 1.0),
    "rope_theta": (1.0, 1e15),
}
# Two spellings of one setting. Tools disagree on which one counts, so both must say the same.
SPELLINGS: dict[str, str] = {
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "in_channels": "in_chans",
    "image_token_index": "image_token_id",
}
# Settings by which transformers computes something else than this code, wherever they stand.
NOT_COMPUTED: dict[str, str] = {
    "quantization_config": "the weights are quantised; take the model that they were made of",
    "per_layer_config": "layers of different sizes are not supported",
    "tie_last_hidden_states": "it is not supported; remove it",
}
DEEPEST, MOST = 16, 100_000  # levels of a config.json, and values in it


class Reader:
    """Looks a key up in several dicts in turn and names the file and section when it is absent.

    A key that has two spellings (SPELLINGS) is found under both; UserError where they disagree.
    """

    def __init__(self, where: str, *sources: Any):
        self.where = where
        for source in sources:
            if not isinstance(source, dict):
                raise UserError(f"{where}: must be an object, not {shown(source)}")
        self.sources: tuple[dict[str, Any], ...] = sources

    def __call__(self, name: str, default: Any = _REQUIRED) -> Any:
        names = [name, SPELLINGS[name]] if name in SPELLINGS else [name]
        for source in self.sources:
            found = {n: source[n] for n in names if source.get(n) is not None}
            if len(found) == 2 and len(set(map(repr, found.values()))) == 2:
                said = " and ".join(f"{n} {shown(value)}" for n, value in found.items())
                raise UserError(f"{self.where}: {said} are one setting; remove the wrong one")
            if found:
                return next(iter(found.values()))
        if default is _REQUIRED:
            raise UserError(f"{self.where}: missing key {name!r}; is the file complete?")
        return default

    def section(self, name: str, default: Any = _REQUIRED) -> dict[str, Any]:
        """An object inside of this one."""
        return self._of_kind(name, dict, "an object", default)

    def flag(self, name: str, default: Any = _REQUIRED) -> bool:
        """True or false."""
        return self._of_kind(name, bool, "true or false", default)

    def integer(self, name: str, default: Any = _REQUIRED) -> int:
        """A positive count or size, at most LARGEST."""
        value = self(name, default)
        if name in PER_AXIS and isinstance(value, list) and value:
            value = value[0] if all(v == value[0] for v in value) else value
        if not is_integer(value) or value <= 0:
            raise UserError(f"{self.where}: {name} must be a positive integer, got {shown(value)}")
        check_size(self.where, name, value)
        return value

    def number(self, name: str) -> float:
        """A finite number, inside of BETWEEN."""
        value = self(name)
        if not (is_integer(value) or isinstance(value, float)):
            raise UserError(f"{self.where}: {name} must be a number, got {shown(value)}")
        low, high = BETWEEN[name]
        if not low < value < high:
            raise UserError(
                f"{self.where}: {name} must lie between {low:g} and {high:g}, got {shown(value)}"
            )
        return float(value)

    def token(self, name: str, vocab_size: int) -> int:
        """The number of a token, or of none: some files name tokens that have no row."""
        value = self(name)
        if not is_integer(value) or not 0 <= value < LARGEST["vocab_size"]:
            raise UserError(
                f"{self.where}: {name} must be a token's number, got {shown(value)} (the model has "
                f"{vocab_size} rows)"
            )
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of numbers from 0 on."""
        value = self(name)
        if not isinstance(value, list) or not all(is_integer(n) and n >= 0 for n in value):
            raise UserError(
                f"{self.where}: {name} must be a list of integers from 0 on, got {shown(value)}"
            )
        return tuple(value)

    def only(self, name: str, *allowed: Any, default: Any = _REQUIRED) -> Any:
        """The value of a key of which this code computes some values only."""
        value = self(name, default)
        if not any(type(value) is type(a) and value == a for a in allowed):
            listed = ", ".join(map(repr, allowed))
            raise UserError(f"{self.where}: {name} {shown(value)} is not supported; only {listed}")
        return value

    def _of_kind(self, name: str, kind: type, called: str, default: Any) -> Any:
        value = self(name, default)
        if not isinstance(value, kind):
            raise UserError(f"{self.where}: {name} must be {called}, got {shown(value)}")
        return value


def is_integer(value: Any) -> TypeGuard[int]:
    """Whether a value of JSON is a whole number: true and 1.0 are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """A value of a parsed file in a few printable characters."""
    try:
        return one_line(repr(value), 80)
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists
        return f"a {type(value).__name__}"


def check_size(where: str, name: str, value: float) -> None:
    """UserError if a size is above what LARGEST has for the name."""
    if value > LARGEST.get(name, value):
        raise UserError(f"{where}: {name} {shown(value)} is too large; at most {LARGEST[name]}")


def check_values(where: str, raw: dict[str, Any]) -> None:
    """UserError if a value anywhere in a parsed config.json is one that no config has: more levels
    than DEEPEST, more values than MOST, a number that is none or does not fit 64 bits, a size above
    LARGEST; or if a key says that something is computed that this code does not (NOT_COMPUTED).
    """
    for count, (place, name, value) in enumerate(_walk(where, raw)):
        if count >= MOST:
            raise UserError(f"{where}: has more than {MOST} values; is it the model's config?")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{place}: {name} is {value}; it must be a finite number")
        if is_integer(value) and abs(value) >= 1 << 63:
            raise UserError(f"{place}: {name} {shown(value)} is too large")
        if name in LARGEST:
            for size in value if isinstance(value, list) else [value]:
                if is_integer(size) or isinstance(size, float):
                    check_size(place, name, size)
        if value and name in NOT_COMPUTED:
            raise UserError(f"{place}: has {name}: {NOT_COMPUTED[name]}")


def _walk(where: str, raw: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(file and section, key, value) of everything in a parsed file. A list's entries have the
    list's key. No recursion: lists may lie in lists a thousand deep."""
    left: list[tuple[str, int, str, Any]] = [(where, 0, "", raw)]
    while left:
        place, depth, name, value = left.pop()
        if depth > DEEPEST:
            raise UserError(f"{where}: has values in values more than {DEEPEST} deep")
        if name:
            yield place, name, value
        if isinstance(value, dict):
            inside = f"{where} ({name})" if name else where
            left += [(inside, depth + 1, one_line(n, 80) or "''", v) for n, v in value.items()]
        elif isinstance(value, list):
            left += [(place, depth + 1, name, v) for v in value]
