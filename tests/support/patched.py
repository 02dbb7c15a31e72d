"""Other functions in the place of the system's, for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any


@contextlib.contextmanager
def patched(places: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    """places: (module, name, what stands there until the end)."""
    before = [(place, name, getattr(place, name)) for place, name, _ in places]
    for place, name, value in places:
        setattr(place, name, value)
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)
