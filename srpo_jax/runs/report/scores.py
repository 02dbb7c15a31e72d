"""The evaluations of a run as HTML: tiles, table, path against reply, bars by category.

Reads the dicts of eval/NAME/scores.json; what the rates mean is in evaluate/scores.py.
"""

from __future__ import annotations

from statistics import mean, stdev

from srpo_jax.runs.report.html import WORDS, esc, kind

# (key, name, what it is a share of, whether more is better)
RATES = (
    ("safety_rate", "Safe replies", "risky questions", True),
    ("effectiveness_rate", "Effective replies", "harmless questions", True),
    ("both_all", "Safe and effective", "all questions", True),
    ("path_safety_rate", "Safe reasoning paths", "risky questions", True),
    ("self_correction_rate", "Self-correction", "risky questions with an unsafe path", True),
    ("late_failure_rate", "Late failure", "risky questions with a safe path", False),
    ("error_rate", "Not judged", "all questions", False),
)
TILES = ("safety_rate", "effectiveness_rate", "both_all", "path_safety_rate")


def number(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value:.1f}"


def tiles(before: dict | None, after: dict) -> str:
    """Four large numbers, each with the way from before to after on a line from 0 to 100."""
    made = []
    for key, name, of, _ in RATES:
        new = after.get(key)
        if key not in TILES or new is None:
            continue
        old = before.get(key) if before else None
        track = f'<i class="dot now" style="left:{new:.1f}%"></i>'
        told = ""
        if old is not None:
            left, width = min(old, new), abs(new - old)
            track = (
                f'<i class="way" style="left:{left:.1f}%;width:{width:.1f}%"></i>'
                f'<i class="dot then" style="left:{old:.1f}%"></i>' + track
            )
            told = f'<span class="was">from {old:.1f} %</span>'
        made.append(
            f'<div class="card tile"><h3>{esc(name)}</h3><p class="big">{new:.1f}<small> %</small>'
            f'</p><div class="track">{track}</div><p class="of">{told}of {esc(of)}</p></div>'
        )
    return f'<div class="tiles">{"".join(made)}</div>'


def table(evaluations: dict[str, dict], before: str | None, after: str | None) -> str:
    """All rates of all evaluations; with the change where there is a before and an after."""
    change = before is not None and after is not None
    names = list(evaluations)
    head = "".join(f'<th scope="col">{esc(name)}</th>' for name in names)
    head += '<th scope="col">change</th>' if change else ""
    rows = []
    for key, name, of, more in RATES:
        values = [evaluations[e].get(key) for e in names]
        if all(value is None for value in values):
            continue
        cells = "".join(f"<td>{number(value)}</td>" for value in values)
        if change:
            cells += _change(evaluations[before].get(key), evaluations[after].get(key), more)
        rows.append(
            f'<tr><th scope="row">{esc(name)}<small>% of {esc(of)}</small></th>{cells}</tr>'
        )
    counts = "".join(
        f"<td>{scores.get('n', 0)}<small>{scores.get('n_risky', 0)} risky</small></td>"
        for scores in evaluations.values()
    )
    rows.append(
        f'<tr class="counts"><th scope="row">Questions</th>{counts}{"<td></td>" * change}</tr>'
    )
    return (
        f'<div class="card scroll"><table class="rates"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def methods(base: dict | None, runs: dict[str, list[dict]]) -> str:
    """One row a method: mean over its seeds, with the deviation where there are several."""
    shown = [rate for rate in RATES if rate[0] != "error_rate"]
    head = "".join(f'<th scope="col">{esc(name)}</th>' for _, name, _, _ in shown)
    rows = []
    for method, scores in {**({"base": [base]} if base else {}), **runs}.items():
        cells = ""
        for key, *_ in shown:
            values = [row[key] for row in scores if row.get(key) is not None]
            spread = f"<small>&plusmn; {stdev(values):.1f}</small>" if len(values) > 1 else ""
            cells += f"<td>{number(mean(values) if values else None)}{spread}</td>"
        seeds = f"<small>{len(scores)} seeds</small>" if len(scores) > 1 else ""
        rows.append(f'<tr><th scope="row">{esc(method)}{seeds}</th>{cells}</tr>')
    return (
        f'<div class="card scroll"><table class="rates"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _change(old: float | None, new: float | None, more_is_better: bool) -> str:
    if old is None or new is None:
        return "<td>&ndash;</td>"
    difference = new - old
    if abs(difference) < 0.05:
        return '<td class="change">0.0</td>'
    better = (difference > 0) == more_is_better
    word = "better" if better else "worse"
    css = "safe" if better else "unsafe"
    sign = "+" if difference > 0 else "&minus;"
    return f'<td class="change {css}">{sign}{abs(difference):.1f}<small>{word}</small></td>'


def confusion(name: str, scores: dict) -> str:
    """Path against reply: counts and shares, one cell per combination, shaded by its share."""
    counts = scores.get("confusion") or {}
    total = sum(counts.values()) or 1
    cells = {tuple(p.split("_", 1)[1] for p in key.split("/")): n for key, n in counts.items()}
    used = {v for key, n in cells.items() if n for v in key} | {"SAFE", "UNSAFE"}
    verdicts = [v for v in ("SAFE", "UNSAFE", "ERROR") if v in used]
    special = {("SAFE", "UNSAFE"): "late failure", ("UNSAFE", "SAFE"): "self-corrected"}
    head = "".join(f'<th scope="col">reply {WORDS[v]}</th>' for v in verdicts)
    rows = []
    for path in verdicts:
        row = ""
        for reply in verdicts:
            n = cells.get((path, reply), 0)
            share = 100 * n / total
            note = f"<small>{special[path, reply]}</small>" if (path, reply) in special else ""
            row += (
                f'<td class="{kind(reply)}" style="--share:{8 + 0.62 * share:.0f}%"><b>{n}</b>'
                f"<span>{share:.0f} %</span>{note}</td>"
            )
        rows.append(f'<tr><th scope="row">path {WORDS[path]}</th>{row}</tr>')
    return (
        f'<figure class="card"><figcaption><h3>{esc(name)}</h3><small>{total} questions</small>'
        f'</figcaption><table class="confusion"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></figure>"
    )


def categories(before: dict | None, after: dict) -> str:
    """Per category a bar before and a bar after: safe of the risky, effective of the harmless."""
    now = after.get("by_category") or {}
    then = (before or {}).get("by_category") or {}
    panels = [
        (key, count, title)
        for key, count, title in (
            ("safety_rate", "n_risky", "Safe replies to risky questions"),
            ("effectiveness_rate", "n_benign", "Effective replies to harmless ones"),
        )
        if any(scores.get(count) for scores in now.values())
    ]
    rows = []
    for name in sorted(now):
        cells = ""
        for key, count, _ in panels:
            old, new = then.get(name, {}).get(key), now[name].get(key)
            n = now[name].get(count) or 0
            cells += f'<div class="bars">{_bar(old, "then")}{_bar(new, "now")}<em>n={n}</em></div>'
        rows.append(f'<div class="name">{esc(name.replace("_", " ").capitalize())}</div>{cells}')
    if not rows or not panels:
        return ""
    keys = '<span class="key then">before</span><span class="key now">after</span>'
    return (
        f'<div class="card"><div class="keys">{keys if before else ""}</div>'
        f'<div class="bycategory n{len(panels)}"><div></div>'
        f"{''.join(f'<h3>{title}</h3>' for _, _, title in panels)}{''.join(rows)}</div></div>"
    )


def _bar(value: float | None, css: str) -> str:
    if value is None:
        return ""
    said = f"{'before' if css == 'then' else 'after'}: {value:.1f} %"
    return (
        f'<div class="bar" title="{said}"><i class="{css}" style="width:{max(value, 0.5):.1f}%">'
        f"</i><span>{value:.0f}</span></div>"
    )
