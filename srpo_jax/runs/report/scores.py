"""The evaluations of a run for the report: tiles, table, path against reply, bars by category.

Reads the dicts of eval/NAME/scores.json, and returns what templates/results.html shows of them. A
rate is a number in percent, or None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax.judge.results.changes import Tested, detectable_text, p_text
from srpo_jax.judge.results.paired import LEVEL
from srpo_jax.judge.results.rates import RATES
from srpo_jax.judge.results.scores import bounds, chosen_options, nothing_judged, read_rate
from srpo_jax.judge.roles import own_chooser, own_teacher, warning
from srpo_jax.runs.judge_facts import judge_facts
from srpo_jax.runs.workdir import BEFORE, asked

SHOWN = tuple(rate for rate in RATES if rate.title)
TILES = ("safety_rate", "both_risky", "effectiveness_rate", "path_safety_rate")
# (path, reply) -> what the literature calls it
NOTES = {("SAFE", "UNSAFE"): "late failure", ("UNSAFE", "SAFE"): "self-corrected"}
PANELS = (
    ("safety_rate", "n_risky", "Safe replies to risky questions"),
    ("effectiveness_rate", "n_benign", "Effective replies to harmless ones"),
)


def headline(
    evaluations: Mapping[str, Mapping], after: str, training: Mapping[str, Any] | None
) -> str | None:
    """The evaluation that is shown large: `after`, or another of the same policy that is asked
    alike, where the judge of that one is the policy's own teacher. None: there is no other.
    """
    policy, how = evaluations[after].get("policy_digest"), asked(evaluations[after])
    others = [
        name
        for name, scores in evaluations.items()
        if policy and scores.get("policy_digest") == policy and asked(scores) == how
    ]
    names = (name for name in (after, *others) if not own_teacher(evaluations[name], training))
    return next(names, None)


def tiles(before: Mapping | None, after: Mapping) -> list[dict[str, Any]]:
    """The rates that are shown large: {"rate", "new", "old", "bounds", "count"}; old is None
    without a `before`, or where nothing of it was judged. None are where nothing was judged, or
    options were chosen.
    """
    if nothing_judged(after) or chosen_options(after):
        return []
    then = {} if before is None or nothing_judged(before) else before
    return [
        {"rate": rate, "old": then.get(rate.name), **_shown(after, rate.name)}
        for rate in SHOWN
        if rate.name in TILES and after.get(rate.name) is not None
    ]


def _shown(scores: Mapping, name: str) -> dict[str, Any]:
    """{"new": percent or None, "bounds": "27.6 to 62.7", "count": "12/27"}, "" for what there is
    not.
    """
    found = read_rate(scores, name)
    if found is None:
        return {"new": None, "bounds": "", "count": ""}
    count = f"{found.k}/{found.n}" if found.n else ""
    return {"new": found.value, "bounds": bounds(found), "count": count}


def table(
    evaluations: Mapping[str, Mapping],
    tested: Sequence[Tested] | None,
    training: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """All rates of all evaluations. tested: the changes from before to after; None where there is
    nothing to compare.

    {"names", "change": whether there is one, "rows": [{"rate", "values", "change"}],
    "counts": [(questions, risky ones)], "judges": [(arbiter, digest, whether it is the policy's own
    teacher)]}.
    """
    changes = {each.name: each for each in tested or ()}
    rows = []
    for rate in SHOWN:
        values = [_shown(scores, rate.name) for scores in evaluations.values()]
        if any(value["new"] is not None for value in values):
            rows.append({"rate": rate, "values": values, "change": _change(changes.get(rate.name))})
    counts = [(scores.get("n", 0), scores.get("n_risky", 0)) for scores in evaluations.values()]
    found = []
    for name, scores in evaluations.items():
        judge = scores.get("judge") or {}
        taught = bool(own_chooser(scores)) or (name not in BEFORE and own_teacher(scores, training))
        found.append((judge.get("arbiter", "not recorded"), judge.get("digest", ""), taught))
    names = list(evaluations)
    return {
        **{"names": names, "change": tested is not None, "rows": rows},
        **{"counts": counts, "judges": found},
    }


def missing(evaluations: Mapping[str, Mapping]) -> list[dict[str, Any]]:
    """What could not be judged, where something could not: {"name" of the evaluation, "where",
    "share", "what", "worst", "best"}.
    """
    found = []
    for name, scores in evaluations.items():
        for group in scores.get("missing") or ():
            if group["errors"] and group["best"] is not None:
                kind = "risky" if group["risky"] else "harmless"
                where = kind if group["category"] is None else f"{kind}, {group['category']}"
                share = f"{group['errors']} of {group['answers']}"
                what = "safe" if group["risky"] else "effective"
                said = {"name": name, "where": where, "share": share, "what": what}
                found.append({**said, "worst": group["worst"], "best": group["best"]})
    return found


def judges(evaluations: Mapping[str, Mapping]) -> list[dict[str, Any]]:
    """Each judge once: {"of": names of the evaluations it judged, "facts": see judge_facts}."""
    found: dict[str, dict[str, Any]] = {}
    for name, scores in evaluations.items():
        judge = scores.get("judge")
        if judge:
            facts = judge_facts(judge)
            found.setdefault(str(judge["digest"]), {"of": [], "facts": facts})["of"].append(name)
    return list(found.values())


def warnings(evaluations: Mapping[str, Mapping], training: Mapping[str, Any] | None) -> list[str]:
    """What is to be said of judges that are in both roles, each sentence once."""
    found = (warning(training, scores.get("judge")) for scores in evaluations.values())
    return [said for said in dict.fromkeys(found) if said]


def _change(tested: Tested | None) -> dict[str, Any] | None:
    """A cell: {"css", "text", "word", "test": lines}; None for a rate that was not tested. What may
    be chance has no colour, and says so.
    """
    if tested is None or tested.change.change is None or tested.holm is None:
        return None
    found = tested.change
    points = float(found.change or 0.0)
    sign = "0.0" if abs(points) < 0.05 else f"{'+' if points > 0 else '−'}{abs(points):.1f}"
    test = [
        f"{found.low:+.1f} to {found.high:+.1f}",
        f"{found.gained} better, {found.lost} worse of {found.questions}",
        f"p {p_text(found.p_value)}, Holm {p_text(tested.holm)}",
        f"detects {detectable_text(found)}",
    ]
    if tested.holm >= LEVEL:
        word = "" if sign == "0.0" else "may be chance"
        return {"css": "change", "text": sign, "word": word, "test": test}
    good = points > 0
    css, word = ("change safe", "better") if good else ("change unsafe", "worse")
    return {"css": css, "text": sign, "word": word, "test": test}


def confusion(name: str, scores: Mapping) -> dict[str, Any]:
    """Path against reply: counts and shares, one cell per combination that can be told.

    {"name", "total", "verdicts", "rows": [(verdict of the path, cells)]}, a cell for every verdict
    of the reply: {"reply", "count", "share" in percent, for its shade, "note"}.
    """
    counts = scores.get("confusion") or {}
    total = sum(counts.values()) or 1
    cells = {tuple(p.split("_", 1)[1] for p in key.split("/")): n for key, n in counts.items()}
    used = {v for key, n in cells.items() if n for v in key} | {"SAFE", "UNSAFE"}
    verdicts = [v for v in ("SAFE", "UNSAFE", "ERROR") if v in used]
    rows = [
        (
            path,
            [
                {
                    "reply": reply,
                    "count": cells.get((path, reply), 0),
                    "share": 100 * cells.get((path, reply), 0) / total,
                    "note": NOTES.get((path, reply), ""),
                }
                for reply in verdicts
            ],
        )
        for path in verdicts
    ]
    return {"name": name, "total": total, "verdicts": verdicts, "rows": rows}


def categories(before: Mapping | None, after: Mapping) -> dict[str, Any] | None:
    """Per category a rate before and a rate after: safe of the risky, effective of the harmless.

    {"compared": whether there is a before, "titles", "rows": [(category, cells)]}, a cell for every
    title: (old, new), each {"new", "bounds", "count"}. None where there is nothing to show.
    """
    now = after.get("by_category") or {}
    then = (before or {}).get("by_category") or {}
    panels = [panel for panel in PANELS if any(scores.get(panel[1]) for scores in now.values())]
    if not now or not panels:
        return None
    rows = [
        (
            name.replace("_", " ").capitalize(),
            [(_shown(then.get(name, {}), rate), _shown(now[name], rate)) for rate, _, _ in panels],
        )
        for name in sorted(now)
    ]
    titles = [title for _, _, title in panels]
    return {"compared": bool(before), "titles": titles, "rows": rows}
