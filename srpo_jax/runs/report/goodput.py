"""The report's section on where the time of a run went."""

from __future__ import annotations

import pathlib

from srpo_jax.runs.goodput import MEANING, goodput, line
from srpo_jax.runs.metrics import duration
from srpo_jax.runs.report.html import esc


def section_of(workdir: pathlib.Path) -> str:
    """HTML: one line and a table of the parts, largest first; "" for a run without a ledger."""
    found = goodput(workdir)
    if found is None or found["wall"] <= 0:
        return ""
    parts = {name: s for name, s in found["parts"].items() if s > 0}
    rows = "".join(
        f'<tr><th scope="row">{esc(name)}</th><td>{duration(parts[name])}</td>'
        f"<td>{parts[name] / found['wall']:.1%}</td><td>{esc(MEANING[name])}</td></tr>"
        for name in sorted(parts, key=parts.get, reverse=True)
    )
    return (
        f'<h3 class="sub">Goodput</h3><p class="lead">{esc(line(found))}.</p>'
        '<div class="card scroll"><table class="rates"><thead><tr><th>part</th><th>time</th>'
        f"<th>share</th><th></th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
