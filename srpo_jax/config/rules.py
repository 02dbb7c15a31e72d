"""How a field is declared, and which values it takes: words, a range, expressions or a name."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass
from typing import Any

# Of what others may add to: a word that a registry knows, or where a class is to be found. Whether
# there is such a thing is not known here: names are looked up by those who use them.
PLACE = r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*"
_AXIS = r"(data|fsdp|tensor)=[1-9]\d{0,5}"
SHAPES = {
    "mesh": (re.compile(rf"auto|{_AXIS}(,{_AXIS})*"), "auto, or axes as data=2,tensor=4"),
    "name": (re.compile(rf"[\w-]+|{PLACE}"), "a name, or module:Class"),
    "place": (re.compile(rf"({PLACE})?"), "module:Class, or empty"),
}


@dataclass(frozen=True)
class Rule:
    """Which values a field takes: a type, and words or a range. `low_open` excludes `low`, `also`
    adds single values to the range, `required` refuses "". `names`: one or more of these, with
    commas. `regexes` and `texts`: of a tuple. `shape`: one of SHAPES, for registered names.
    `address`: "" for a text that may not be one, gs:// or another; "bucket": gs://BUCKET/PATH is
    read; "server": what is no place of files at all.
    """

    kind: type
    words: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    also: tuple[float, ...] = ()
    required: bool = False
    regexes: bool = False
    texts: bool = False
    names: tuple[str, ...] = ()
    shape: str = ""
    address: str = ""

    def allowed(self) -> str:
        """The rule in words, for error messages and docs/configuration.md."""
        if self.words:
            return " | ".join(self.words)
        if self.regexes:
            return "a tuple of regular expressions"
        if self.texts:
            return "a tuple of texts"
        if self.names:
            return f"{self.names[0]}, or any of {','.join(self.names[1:])} with commas between"
        names = {int: "a whole number", float: "a number", str: "text", bool: "True | False"}
        name = names[self.kind]
        if self.address == "bucket":
            name += ", or gs://BUCKET/PATH"
        if self.required:
            return f"{name}, required"
        if self.shape:
            return SHAPES[self.shape][1]
        bounds = []
        if self.low > -math.inf:
            bounds.append(f"{'above' if self.low_open else 'from'} {self.low}")
        if self.high < math.inf:
            bounds.append(f"up to {self.high}")
        also = "".join(f", or {value:g}" for value in self.also)
        return " ".join([name, *bounds]) + also

    def _is_kind(self, value: Any) -> bool:
        if self.kind is float:
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        return type(value) is self.kind

    def accepts(self, value: Any) -> bool:
        """Whether a value is allowed. An int is taken where a float is meant, a bool never is."""
        if self.regexes:
            return isinstance(value, tuple) and all(_is_regex(item) for item in value)
        if self.texts:
            return isinstance(value, tuple) and all(isinstance(t, str) and t for t in value)
        if not self._is_kind(value):
            return False
        if self.words:
            return value in self.words
        if self.names:
            parts = value.split(",")
            return value == self.names[0] or (
                set(parts) <= set(self.names[1:]) and len(set(parts)) == len(parts)
            )
        if self.shape:
            return SHAPES[self.shape][0].fullmatch(value) is not None
        if self.kind in (int, float):
            if not math.isfinite(value):
                return False
            above = value > self.low if self.low_open else value >= self.low
            return value in self.also or (above and value <= self.high)
        return bool(value.strip()) if self.required else True


def shown(value: Any) -> str:
    """A default as one would write it in a config file."""
    if isinstance(value, tuple):
        return f"({' '.join(shown(item) + ',' for item in value)})"
    if isinstance(value, str):
        return json.dumps(value)
    return repr(value).replace("e-0", "e-")


def _is_regex(item: Any) -> bool:
    try:
        return isinstance(item, str) and bool(item) and re.compile(item) is not None
    except re.error:
        return False


def setting(
    default: Any,
    help: str,
    *,
    decides: bool,
    samples: bool = False,
    host_only: bool = False,
    **rule: Any,
) -> Any:
    """Declares a field. help: of one line, for the page and the command.

    decides: whether another value trains other parameters, so that a run cannot go on with it.
    samples: whether another value samples other branches, so that an exploration cannot go on.
    host_only: of the sections that the train step is made of, a field that changes neither bytes
    nor FLOPs of the compiled step. rule: which values are allowed, see Rule.
    """
    metadata = {
        "help": help,
        "decides": decides,
        "samples": samples,
        "host_only": host_only,
        "rule": Rule(type(default), **rule),
    }
    return dataclasses.field(default=default, metadata=metadata)
