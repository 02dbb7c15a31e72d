"""Texts and pictures that are nearly the same, found without comparing all with all.

Texts: MinHash over runs of five characters (Broder 1997), in bands, so that only texts which share
a band are compared; two are near from a Jaccard similarity of NEAR_TEXT on. Pictures: 64 bits that
say which of two neighbours in a grid of 9x8 is brighter (dHash); two are near when at most
NEAR_BITS of them differ. Neither depends on a random seed of the process.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from srpo_jax.data_pipelines.exchange.item import normal

SHINGLE = 5  # characters
NEAR_TEXT = 0.8
NEAR_BITS = 4
BANDS, PER_BAND = 16, 4
CROWDED = 50  # texts of one band that are compared with each other; more are much alike anyway
PICTURE_BANDS = ((0, 13), (13, 13), (26, 13), (39, 13), (52, 12))  # one stays when 4 bits differ
_PRIME = (1 << 31) - 1
_RNG = np.random.default_rng(0)
_FACTORS = _RNG.integers(1, _PRIME, BANDS * PER_BAND, dtype=np.int64)
_TERMS = _RNG.integers(0, _PRIME, BANDS * PER_BAND, dtype=np.int64)


def shingles(text: str) -> np.ndarray:
    """int64 [n]: the runs of SHINGLE characters of the text, as numbers, each once, sorted."""
    plain = normal(text).casefold().encode()
    runs = range(max(len(plain) - SHINGLE + 1, 1))
    return np.unique([zlib.crc32(plain[i : i + SHINGLE]) % _PRIME for i in runs])


def signature(runs: np.ndarray) -> list[bytes]:
    """BANDS keys, of which near texts share one."""
    values = (runs[None, :] * _FACTORS[:, None] + _TERMS[:, None]) % _PRIME
    lowest = values.min(axis=1).astype(np.int32).reshape(BANDS, PER_BAND)
    return [bytes([i]) + band.tobytes() for i, band in enumerate(lowest)]


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Shared by all of two sorted sets."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


class TextIndex:
    """Texts by number; `near` finds those that an earlier one is like."""

    def __init__(self) -> None:
        self._bands: dict[bytes, list[int]] = defaultdict(list)
        self._runs: dict[int, np.ndarray] = {}

    def near(self, text: str) -> int | None:
        """The number of the first text here that is near this one."""
        runs = shingles(text)
        found = {n for key in signature(runs) for n in self._bands.get(key, ())[:CROWDED]}
        return next((n for n in sorted(found) if jaccard(runs, self._runs[n]) >= NEAR_TEXT), None)

    def add(self, number: int, text: str) -> None:
        """Takes in a text."""
        self._runs[number] = runs = shingles(text)
        for key in signature(runs):
            self._bands[key].append(number)


def picture_hash(image: Image.Image) -> int:
    """64 bits of an RGB picture; 0 for one without any difference of brightness from left to right,
    which says nothing.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = (grey[:, 1:] > grey[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


class PictureIndex:
    """Picture hashes by number; `near` finds the first that differs in few bits."""

    def __init__(self) -> None:
        self._bands: dict[tuple[int, int], list[int]] = defaultdict(list)
        self._hashes: dict[int, int] = {}

    def near(self, value: int) -> int | None:
        """The number of the first picture here that is near this hash; None for 0."""
        if not value:
            return None
        found = {n for key in _parts(value) for n in self._bands.get(key, ())[:CROWDED]}
        close = (n for n in sorted(found) if (self._hashes[n] ^ value).bit_count() <= NEAR_BITS)
        return next(close, None)

    def add(self, number: int, value: int) -> None:
        """Takes in a hash."""
        if value:
            self._hashes[number] = value
            for key in _parts(value):
                self._bands[key].append(number)


def _parts(value: int) -> Iterable[tuple[int, int]]:
    return [(at, value >> at & ((1 << width) - 1)) for at, width in PICTURE_BANDS]


def quantiles(values: Sequence[float]) -> tuple[float, float, float, float]:
    """(smallest, median, 95 %, largest); zeros of none."""
    if not values:
        return 0, 0, 0, 0
    low, middle, high, top = np.quantile(np.asarray(values, float), [0, 0.5, 0.95, 1])
    return float(low), float(middle), float(high), float(top)
