"""Small pieces of the report page: escaping, pictures as data URIs, verdicts, folds.

Every function that takes text escapes it: nothing a model or a user wrote reaches the page as HTML.
"""

from __future__ import annotations

import base64
import html
import io
import pathlib
import unicodedata

from srpo_jax.data_pipelines.images import load_image
from srpo_jax.data_pipelines.records import RecordError

MAX_TEXT = 4000  # characters of one text; longer ones are cut and say so
PICTURE_SIDE = 360  # pixels; shown at most that large on a screen
WORDS = {"SAFE": "safe", "UNSAFE": "unsafe", "ERROR": "not judged"}


def esc(text: object) -> str:
    """Escaped for text and attribute values. Control and direction marks become U+FFFD."""
    plain = str(text)
    if len(plain) > MAX_TEXT:
        plain = plain[:MAX_TEXT] + f" [... {len(plain) - MAX_TEXT} more characters]"
    kept = (
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "\ufffd"
        for c in plain
    )
    return html.escape("".join(kept), quote=True)


def kind(verdict: str | None) -> str:
    """CSS class of a verdict: safe, unsafe or error (also for anything unknown)."""
    return verdict.lower() if verdict in ("SAFE", "UNSAFE") else "error"


def mark(verdict: str | None, title: str = "") -> str:
    """The verdict as a symbol: round for safe, diamond for unsafe, square for not judged."""
    label = WORDS.get(verdict or "", "not judged")
    said = esc(f"{title}: {label}" if title else label)
    return (
        f'<span class="mark {kind(verdict)}" role="img" aria-label="{said}" title="{said}"></span>'
    )


def chip(what: str, verdict: str | None) -> str:
    """ "reply unsafe" as a coloured label with its symbol."""
    label = esc(f"{what} {WORDS.get(verdict or '', 'not judged')}")
    return f'<span class="chip {kind(verdict)}">{mark(verdict)}{label}</span>'


def fold(summary: str, body: str, *, open_: bool = False, css: str = "") -> str:
    """A <details>; `summary` and `body` are HTML."""
    attributes = (f' class="{css}"' if css else "") + (" open" if open_ else "")
    return f"<details{attributes}><summary>{summary}</summary>{body}</details>"


def section(name: str, title: str, lead: str, body: str) -> str:
    """A section with an anchor; `lead` and `body` are HTML."""
    lead = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<section id="{name}"><h2>{esc(title)}</h2>{lead}{body}</section>'


def missing(text: str) -> str:
    """The line that stands where a part of the run is not there."""
    return f'<p class="missing">{esc(text)}</p>'


def picture(source: bytes | pathlib.Path | None, alt: str) -> str:
    """The picture as an <img> with its data inside, or a box that says why not."""
    if source is None:
        return '<div class="nopicture">no picture</div>'
    try:
        image = load_image(source, what="picture")
    except (RecordError, OSError) as error:
        return f'<div class="nopicture">{esc(" ".join(str(error).split())[:120])}</div>'
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    buffer, form = io.BytesIO(), "png"
    image.save(buffer, "PNG", optimize=True)
    if buffer.tell() > 40_000:  # a photograph
        buffer, form = io.BytesIO(), "jpeg"
        image.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    width, height = image.size
    return (
        f'<img src="data:image/{form};base64,{data}" alt="{esc(alt)}" '
        f'width="{width}" height="{height}">'
    )
