"""Fields of a foreign row, checked: a ValueError says which one is wrong and how."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from srpo_jax.data_pipelines.exchange.item import Cell
from srpo_jax.data_pipelines.records import IMAGE_MARKER

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
SHOWN = 6  # roles of a dialogue
NO_DIALOGUE = (
    "one question of a user is read, no dialogue: write the earlier turns into the text of the "
    "last question, or leave the row out (--allow_bad=N)"
)


def text(row: Mapping[str, Any], name: str, *, empty: bool = False) -> str:
    """The text in a field. empty: whether white space alone will do."""
    if name not in row or row[name] is None:
        raise ValueError(f"field {name!r} is missing")
    return as_text(row[name], name, empty=empty)


def as_text(value: Any, name: str, *, empty: bool = False) -> str:
    """The value, if it is a text. name: for the message."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, not {_kind(value)}")
    if not empty and not value.strip():
        raise ValueError(f"{name} is empty")
    return value


def optional(row: Mapping[str, Any], name: str) -> str:
    """The text in a field; "" where it is missing or null."""
    value = row.get(name)
    return "" if value is None else as_text(value, name, empty=True)


def items(row: Mapping[str, Any], name: str) -> list[Any]:
    """The list in a field."""
    if name not in row or row[name] is None:
        raise ValueError(f"field {name!r} is missing")
    return as_list(row[name], name)


def as_list(value: Any, name: str) -> list[Any]:
    """The value, if it is a list."""
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, not {_kind(value)}")
    return value


def mapping(value: Any, name: str) -> Mapping[str, Any]:
    """The value, if it is an object."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be an object, not {_kind(value)}")
    return value


def one_of(value: Any, name: str, allowed: Sequence[Any]) -> Any:
    """The value, if it is allowed. A number may be written as text."""
    for each in allowed:
        if value == each and type(value) is type(each):
            return each
        if isinstance(value, str) and not isinstance(each, str) and value.strip() == str(each):
            return each
    raise ValueError(f"{name} is {value!r}, not one of {', '.join(map(str, allowed))}")


def pictures(row: Mapping[str, Any], *names: str) -> tuple[Cell, ...]:
    """The pictures in the first of these fields that is there: one, or a list of them."""
    for name in names:
        value = row.get(name)
        if value is None:
            continue
        cells = value if isinstance(value, list) else [value]
        for cell in cells:
            if not isinstance(cell, (str, bytes, Mapping)):
                raise ValueError(f"{name} holds {_kind(cell)}, which is no picture")
        return tuple(cells)
    return ()


class Turn:
    """One message. cells: pictures that it holds itself; the text has a mark for each place."""

    def __init__(self, role: str, text: str, cells: tuple[Cell, ...] = ()):
        self.role, self.text, self.cells = role, text, cells


def turns(
    value: Any,
    name: str,
    *,
    role: str = "role",
    content: str = "content",
    roles: Mapping[str, str] | None = None,
) -> list[Turn]:
    """The messages of a list. role, content: keys of a message. roles: its words for USER,
    ASSISTANT and SYSTEM, where they are others.
    """
    known = roles or {USER: USER, ASSISTANT: ASSISTANT, SYSTEM: SYSTEM}
    found = []
    for i, each in enumerate(as_list(value, name)):
        message = mapping(each, f"{name}[{i}]")
        said = text(message, role)
        if said not in known:
            raise ValueError(f"{name}[{i}].{role} is {said!r}, not one of {', '.join(known)}")
        found.append(Turn(known[said], *_content(message.get(content), f"{name}[{i}].{content}")))
    return found


def _content(value: Any, name: str) -> tuple[str, tuple[Cell, ...]]:
    """(text with a mark for every picture, pictures that it holds) of a message's content."""
    if isinstance(value, str):
        return value, ()
    texts, cells = [], []
    for i, part in enumerate(as_list(value, name)):
        part = mapping(part, f"{name}[{i}]")
        kind = part.get("type")
        if kind == "text":
            texts.append(text(part, "text", empty=True))
        elif kind in ("image", "image_url"):
            texts.append(IMAGE_MARKER)
            cell = part.get("image", part.get("image_url"))
            if isinstance(cell, Mapping) and "url" in cell:
                cell = cell["url"]
            if cell is not None:
                cells.append(cell)
        else:
            raise ValueError(f"{name}[{i}].type is {kind!r}, not text or image")
    return "".join(texts), tuple(cells)


def one_question(found: Sequence[Turn], name: str) -> tuple[Turn, str]:
    """(the question, the system text or "") of messages that hold nothing else."""
    rest = list(found)
    system = rest.pop(0).text if rest and rest[0].role == SYSTEM else ""
    if len(rest) != 1 or rest[0].role != USER:
        raise ValueError(f"{name} holds {_roles(found)}; {NO_DIALOGUE}")
    return rest[0], system


def _roles(found: Sequence[Turn]) -> str:
    """Whose the messages are, of a long talk the first ones."""
    shown = ", ".join(turn.role for turn in found[:SHOWN])
    return shown + f" and so on, {len(found)} turns" * (len(found) > SHOWN) or "nothing"


def one_reply(found: Sequence[Turn], name: str) -> str:
    """The text of messages that are one reply of an assistant, without pictures."""
    if len(found) != 1 or found[0].role != ASSISTANT:
        raise ValueError(f"{name} holds {_roles(found)}; one reply of an assistant is read")
    if IMAGE_MARKER in found[0].text or found[0].cells:
        raise ValueError(f"{name} holds a picture; a reply is text")
    return found[0].text


def rest_of(row: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """The fields of a row that nothing reads, without those that are null."""
    known = set(known)
    return {name: row[name] for name in row if name not in known and row[name] is not None}


def plain(value: Any) -> Any:
    """The value as JSON can hold it: of bytes (a picture that nothing reads) only their number,
    of what JSON has no word for (dates, say, or NaN) the text.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, (bytes, bytearray)):
        return f"({len(value)} bytes)"
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return str(value)


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
