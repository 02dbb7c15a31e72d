"""The path formats by name. A new one is one file and one line here; a user's own is a class."""

from __future__ import annotations

from srpo_jax.data_pipelines.path_formats.base import FormatOptions, PathFormat
from srpo_jax.data_pipelines.path_formats.free import Free
from srpo_jax.data_pipelines.path_formats.headings import Mulberry, Ssui
from srpo_jax.data_pipelines.path_formats.lines import Lines
from srpo_jax.data_pipelines.path_formats.llava_cot import LlavaCot
from srpo_jax.data_pipelines.path_formats.think import Think
from srpo_jax.errors import UserError

FORMATS: dict[str, type[PathFormat]] = {
    "lines": Lines,
    "think": Think,
    "ssui": Ssui,
    "llava_cot": LlavaCot,
    "mulberry": Mulberry,
    "free": Free,
}


def make_format(
    kind: str | type[PathFormat] = "lines",
    *,
    split: str = "paragraph",
    max_steps: int = 12,
    open: str = "auto",
    markers: tuple[str, ...] = ("<think>", "</think>"),
    strict: bool = False,
) -> PathFormat:
    """The format of this name, or of this class, with the fields of the config's section `format`.

    UserError for a name that is not registered, and for a class that is no PathFormat.
    """
    made = FORMATS.get(kind) if isinstance(kind, str) else kind
    if made is None:
        raise UserError(f"format.kind={kind!r} does not exist; kinds: {', '.join(FORMATS)}")
    if not (isinstance(made, type) and issubclass(made, PathFormat)):
        raise UserError(
            f"format.kind: {made!r} is no subclass of srpo_jax.data_pipelines.path_formats."
            "base.PathFormat"
        )
    return made(FormatOptions(split, max_steps, open, tuple(markers), strict))
