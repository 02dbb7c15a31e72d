"""What a licence forbids, as far as its name says so, and the licences of a folder's data."""

from __future__ import annotations

import pathlib
import re

from srpo_jax.files import read_json

UNKNOWN = "unknown: nobody has said whether it may be used"
# A sign in the name of a licence, and what it means for who uses the data.
SIGNS = (
    (r"\bNC\b|NON-?COMMERCIAL", "no commercial use"),
    (r"\bND\b", "nothing made of it may be passed on"),
    (r"\bSA\b", "what is made of it has the same licence"),
    (r"RESEARCH", "research only"),
)


def forbids(name: str) -> list[str]:
    """What is not allowed, or only so, under the licence of this name, in a few words each."""
    if not name.strip():
        return [UNKNOWN]
    plain = re.sub(r"[\s_-]+", "-", name.upper())
    return [said for sign, said in SIGNS if re.search(sign, plain)]


def told(name: str) -> str:
    """A licence with what it forbids, on one line."""
    said = "; ".join(forbids(name))
    return f"{name} ({said})" if name and said else name or said


def licenses_in(folder: pathlib.Path) -> dict[str, int]:
    """{licence: number of questions} of the import, or the construction, in a folder; {} where
    there is none.
    """
    for name in ("import.json", "construct.json"):
        if (folder / name).is_file():
            about = read_json(folder / name)
            counts = about.get("counts", {}) if name == "import.json" else about
            return {str(name): int(count) for name, count in counts.get("licenses", {}).items()}
    return {}
