"""What must not come into a data set: what is there already, what is tested on, and what harms
minors.

Texts and pictures that are nearly the same are found as `srpo data check` finds them. Sexual matter
and minors in one text is looked for by words, in English: a net with holes, beside what the prompts
say and the models refuse, and not instead of people who look.
"""

from __future__ import annotations

import hashlib
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from srpo_jax.data_pipelines.construct.rows import START, Row
from srpo_jax.data_pipelines.exchange.checking.near import PictureIndex, TextIndex, picture_hash
from srpo_jax.data_pipelines.exchange.item import Item, normal
from srpo_jax.data_pipelines.exchange.pictures import PictureStore
from srpo_jax.data_pipelines.images import load_image
from srpo_jax.data_pipelines.records import RecordError
from srpo_jax.errors import UserError, one_line

MINORS = "sexual matter and minors: refused"
_MINOR = re.compile(
    r"(?i)\b(?:minors?|child(?:ren|ish|like)?|kids?|toddlers?|bab(?:y|ies)|infants?|teen(?:s|ager|agers|age)?"
    r"|underage[d]?|under-age|pre-?teens?|pupils?|school-?(?:girl|boy|child|kid)(?:s|ren)?"
    r"|(?:little|young) (?:girl|boy)s?|(?:[1-9]|1[0-7])[ -]?(?:years?|yrs?)[ -]?old"
    r"|adolescents?|juveniles?"
    r"|lolitas?|grade[ -]?schoolers?|kindergart\w*)\b"
)
_SEXUAL = re.compile(
    r"(?i)\b(?:sex\w*|porn\w*|nud(?:e|es|ity)|naked\w*|undress\w*|erotic\w*|arous\w*|seduc\w*|fetish\w*"
    r"|genital\w*|masturbat\w*|orgasm\w*|intercourse|lewd|lingerie|topless|strip(?:tease|ping)|molest\w*"
    r"|grooming|nsfw|explicit (?:photo|image|picture|content)s?)\b"
)


class Guard:
    """Knows what came before; the first of its kind stays.

    against: {name: (items, the folder that names of their pictures begin in)} of sets that nothing
    may be shared with. Errors: UserError for a picture of theirs that cannot be read: what is not
    seen is not guarded.
    """

    def __init__(self, against: dict[str, tuple[Iterable[Item], pathlib.Path]] | None = None):
        self._texts, self._pictures = TextIndex(), PictureIndex()
        self._exact: dict[str, str] = {}  # by text: what it is the same as
        self._names: list[str] = []  # of the texts, by number
        self._seen: list[str] = []  # of the pictures, by number
        self._files: dict[bytes, str] = {}
        for name, (items, root) in (against or {}).items():
            store = PictureStore(root, root, dry_run=True)
            for item in items:
                told = f"in common with {name}: {item.id}"
                self._add_text(item.question, told)
                try:
                    for cell in item.images:
                        self._add_picture(store.bytes_of(cell), told)
                except (ValueError, RecordError) as error:
                    raise UserError(f"--against={name}: {item.id}: {one_line(error)}") from None

    def look_at_pictures(self, rows: Iterable[Row]) -> None:
        """Rejects rows whose pictures cannot be used, and those of a picture that is nearly another
        file's, in this set or in one of `against`.
        """
        verdicts: dict[tuple[pathlib.Path, ...], str] = {}
        for row in rows:
            if row.files not in verdicts:
                verdicts[row.files] = self._picture_fault(row)
            if why := verdicts[row.files]:
                row.reject(START, why)

    def _picture_fault(self, row: Row) -> str:
        try:
            for data in row.pictures():
                image = load_image(data, what="the picture")
                number = self._pictures.near(picture_hash(image))
                known = self._files.get(hashlib.sha256(data).digest())
                # Questions may share a picture; pictures of a folder are to be different ones.
                if known or number is not None:
                    told = known or self._seen[number or 0]
                    if told.startswith("in common") or row.question is None:
                        return told
                else:
                    self._add_picture(data, f"nearly the picture of {row.id}")
        except RecordError as error:
            return one_line(error, 200)
        return ""

    def text_fault(self, row: Row, text: str) -> str:
        """Why a question is too near to another one; "" when it is not, and it is known from now
        on.
        """
        exact = self._exact.get(normal(text).casefold())
        near = None if exact else self._texts.near(text)
        if exact or near is not None:
            return exact or self._names[near or 0]
        self._add_text(text, f"nearly the question of {row.id}")
        return ""

    def _add_text(self, text: str, told: str) -> None:
        self._exact.setdefault(normal(text).casefold(), told)
        self._texts.add(len(self._names), text)
        self._names.append(told)

    def _add_picture(self, data: bytes, told: str) -> None:
        self._files.setdefault(hashlib.sha256(data).digest(), told)
        self._pictures.add(len(self._seen), picture_hash(load_image(data, what="the picture")))
        self._seen.append(told)


def about_minors(value: Any) -> bool:
    """Whether texts, taken together, speak of sexual matter and of minors."""
    text = "\n".join(_texts(value))
    return bool(_MINOR.search(text) and _SEXUAL.search(text))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
