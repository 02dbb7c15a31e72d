"""The report's table of where the time of a run went."""

from __future__ import annotations

import pathlib
from typing import Any

from srpo_jax.runs.goodput import MEANING, goodput, line
from srpo_jax.runs.metrics import duration


def goodput_table(workdir: pathlib.Path) -> dict[str, Any] | None:
    """{"line": goodput in a sentence, "rows": [(part, time, share, meaning)], largest part first};
    None for a run without a ledger.
    """
    found = goodput(workdir)
    if found is None or found["wall"] <= 0:
        return None
    parts = {name: seconds for name, seconds in found["parts"].items() if seconds > 0}
    rows = [
        (name, duration(parts[name]), f"{parts[name] / found['wall']:.1%}", MEANING[name])
        for name in sorted(parts, key=parts.__getitem__, reverse=True)
    ]
    return {"line": line(found), "rows": rows}
