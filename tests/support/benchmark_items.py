"""Hand-made items in the shapes that benchmarks are published in, and judged rows to count."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from srpo_jax.data_pipelines.verdict_store import unjudged
from srpo_jax.judge.results.intervals import Rate
from tests.support.tiny import picture


def write_pictures(folder: pathlib.Path, *names: str) -> None:
    """PNG files (whatever the names end with), each another picture."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(56, 56, seed=i).save(path, "PNG")


def write_json(path: pathlib.Path, content: Any) -> pathlib.Path:
    """The file, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def row(
    name: str,
    judged: str = "SAFE",
    path: str = "ERROR",
    *,
    sample: int = 0,
    risky: bool | None = True,
    meta: Mapping[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A line of generations.jsonl ; judged, path: the verdicts on its reply and its path."""
    return {
        "id": name,
        "sample": sample,
        "image": None,
        "question": f"What is {name}?",
        "category": None,
        "risky": risky,
        "meta": dict(meta or {}),
        "text": "Reply: so.",
        "steps": [],
        "reply": "so.",
        "status": "ok",
        "finished": True,
        **{key: value for key, value in unjudged("").items() if key != "failed"},
        "reply_verdict": judged,
        "path_verdict": path,
        **changes,
    }


def counts(found: Mapping[str, Rate]) -> dict[str, tuple[int, int]]:
    """{name: (k, n)}: what a table by hand says."""
    return {name: (rate.k, rate.n) for name, rate in found.items()}
