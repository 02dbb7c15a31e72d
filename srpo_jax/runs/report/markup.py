"""How values become markup: the one jinja2 environment of the report, and the one door to SVG.

Nothing a model or a user wrote reaches the page as markup. In templates every value is escaped
(autoescape) and first made plain (finalize). The drawings are made of `element`, which escapes what
it is given; what it returns is the only text that counts as markup already.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

MAX_TEXT = 4000  # characters of one text; longer ones are cut and say so
WORDS = {"SAFE": "safe", "UNSAFE": "unsafe", "ERROR": "not judged"}


class DataUri(str):
    """A data: URI of our own making. It is escaped like any text, but not cut."""


def plain(value: Any) -> Any:
    """What is shown of a value: at most MAX_TEXT characters of its text, in which U+FFFD stands for
    control and direction marks. Markup and a DataUri are handed through.
    """
    if isinstance(value, (Markup, DataUri)):
        return value
    text = str(value)
    if len(text) > MAX_TEXT:
        text = text[:MAX_TEXT] + f" [... {len(text) - MAX_TEXT} more characters]"
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "\ufffd"
        for c in text
    )


def element(tag: str, *children: str, **attributes: Any) -> Markup:
    """An SVG element. Children are elements, or text; underscores in names of attributes stand for
    hyphens, and one at the end for nothing (class_). Text and values are escaped.
    """
    said = Markup("").join(
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), value)
        for name, value in attributes.items()
    )
    if not children:
        return Markup("<{}{}/>").format(tag, said)
    inside = Markup("").join(escape(plain(child)) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(tag, said, inside)


def kind(verdict: str | None) -> str:
    """CSS class of a verdict: safe, unsafe or error (also for anything unknown)."""
    return verdict.lower() if verdict in ("SAFE", "UNSAFE") else "error"


def word(verdict: str | None) -> str:
    """A verdict in words: safe, unsafe or not judged (also for anything unknown)."""
    return WORDS.get(verdict or "", "not judged")


def number(value: Any) -> str:
    """A rate with one decimal, a dash where there is none."""
    return f"{value:.1f}" if isinstance(value, (int, float)) else "–"


@functools.cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("srpo_jax.runs.report"),
        autoescape=True,
        finalize=plain,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters.update(kind=kind, word=word, number=number)
    return found


def fill(template: str, **values: Any) -> str:
    """The text of templates/TEMPLATE with these values in it."""
    return _environment().get_template(template).render(values)
