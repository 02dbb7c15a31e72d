"""What a stage's answer must be: said to the model, given to its server as a JSON schema, and read.

The whole answer must be what was asked for, or it says nothing: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from srpo_jax.errors import one_line


@dataclass(frozen=True)
class Part:
    """One key of an answer. kind: text, list (of texts), labels or grade. says: what is to be
    written there. words: the most of a text. least, most: of the items of a list, or of a grade.
    labels: {name: when it is right}.
    """

    key: str
    kind: str
    says: str = ""
    words: int = 0
    least: int = 0
    most: int = 0
    may_be_empty: bool = False
    labels: Mapping[str, str] | None = None

    def schema(self) -> dict[str, Any]:
        """Of its value, in the subset that servers take as strict."""
        match self.kind:
            case "labels":
                return {"type": "string", "enum": list(self.labels or ())}
            case "grade":
                return {"type": "integer", "enum": list(range(self.least, self.most + 1))}
            case "list":
                return {"type": "array", "items": {"type": "string"}}
        return {"type": "string"}

    def layout(self) -> list[str]:
        """What the model is told of it, in lines."""
        match self.kind:
            case "labels":
                when = [f'  "{name}": {said}' for name, said in (self.labels or {}).items()]
                return [f'"{self.key}": one of these strings. {self.says}'.rstrip(), *when]
            case "grade":
                return [f'"{self.key}": a whole number, {self.least} to {self.most}. {self.says}']
            case "list":
                count = f"{self.least} to {self.most}" if self.least < self.most else f"{self.most}"
                return [
                    f'"{self.key}": a list of {count} strings, each on one line of at most '
                    f"{self.words} words. {self.says}"
                ]
        return [f'"{self.key}": a string of at most {self.words} words. {self.says}']

    def read(self, value: Any) -> Any:
        """The value, without white space around its texts. Errors: ValueError that says why not."""
        match self.kind:
            case "labels":
                if not isinstance(value, str) or value not in (self.labels or ()):
                    raise ValueError(f"{self.key} is none of {', '.join(self.labels or ())}")
                return value
            case "grade":
                if type(value) is not int or not self.least <= value <= self.most:
                    raise ValueError(f"{self.key} is no number from {self.least} to {self.most}")
                return value
            case "list":
                if not isinstance(value, list) or not self.least <= len(value) <= self.most:
                    raise ValueError(f"{self.key} is no list of {self.least} to {self.most}")
                return [
                    self._text(item, f"{self.key}[{i}]", one=True) for i, item in enumerate(value)
                ]
        return self._text(value, self.key, one=False)

    def _text(self, value: Any, name: str, *, one: bool) -> str:
        if not isinstance(value, str):
            raise ValueError(f"{name} is no text")
        text = value.replace("\r\n", "\n").replace("\r", "\n").strip()
        if not text and not self.may_be_empty:
            raise ValueError(f"{name} is empty")
        if one and "\n" in text:
            raise ValueError(f"{name} has more than one line")
        # Models count words badly; what is twice as long as it should be is another thing.
        if len(text.split()) > 2 * self.words:
            raise ValueError(f"{name} has {len(text.split())} words, the limit is {2 * self.words}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} holds half a surrogate pair") from None
        return text


def answer_schema(parts: tuple[Part, ...]) -> dict[str, Any]:
    """JSON schema of the whole answer."""
    return {
        "type": "object",
        "properties": {part.key: part.schema() for part in parts},
        "required": [part.key for part in parts],
        "additionalProperties": False,
    }


def layout(parts: tuple[Part, ...]) -> str:
    """What the model is told of how to answer."""
    lines = ["Answer with one JSON object and nothing else. Its keys, in this order:"]
    return "\n".join([*lines, *(line for part in parts for line in part.layout())])


def read_answer(parts: tuple[Part, ...], data: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an answer, by key. Errors: ValueError, with a short reason."""
    if set(data) != {part.key for part in parts}:
        names = one_line(", ".join(part.key for part in parts), 200)
        raise ValueError(f"the answer must have exactly the keys {names}")
    return {part.key: part.read(data[part.key]) for part in parts}
