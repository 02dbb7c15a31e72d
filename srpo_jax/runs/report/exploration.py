"""The report's section of reasoning trees: which trees, whose verdicts, and what these count."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from srpo_jax.data_pipelines.path_formats.statuses import count_statuses
from srpo_jax.data_pipelines.tree_schema import OldFormat
from srpo_jax.data_pipelines.tree_store import fingerprint, read_shards
from srpo_jax.data_pipelines.verdict_store import FOLDER, JudgedTrees, VerdictSet, set_names
from srpo_jax.errors import one_line
from srpo_jax.files import read_json
from srpo_jax.runs.judge_facts import judge_facts
from srpo_jax.runs.report.trees import as_judged, choose_trees, tree_card

SUMMARY = "summary.json"  # of the trees, and of each verdict set


def exploration(
    folder: pathlib.Path | None, config: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What templates/trees.html shows, None without trees. config, facts: of the run, {} without
    one: the verdict set that it trained on is shown, else the first. {"unreadable": why} for trees
    that another version wrote.
    """
    if folder is None:
        return None
    names = set_names(folder)
    wanted = (facts.get("verdicts") or {}).get("set", "")
    name = wanted if wanted in names else next(iter(names), "")
    verdicts = VerdictSet(folder.parent / FOLDER / name) if name else None
    source = read_shards(folder)
    keep = (config.get("explore") or {}).get("irregular") == "keep"
    trees = source if verdicts is None else JudgedTrees(source, verdicts, keep_irregular=keep)
    try:
        chosen = choose_trees(as_judged(trees[i]) for i in range(len(source)))
    except OldFormat as error:  # what else there is of that run can be shown
        return {"unreadable": one_line(error)}
    summary = {} if verdicts is None else _summary(verdicts.folder, folder)
    trained = facts if wanted and wanted == name else {}
    return {
        "unreadable": "",
        "judge": [] if verdicts is None else judge_facts({**verdicts.judge, "set": name}),
        "others": [other for other in names if other != name],
        "missing_set": wanted if wanted and wanted != name else "",
        "counts": _counts(summary, trained) + _statuses(folder),
        "points": _points(summary),
        "total": len(source),
        "cards": [tree_card(tree, i) for i, tree in enumerate(chosen)],
    }


def _summary(folder: pathlib.Path, trees: pathlib.Path) -> dict[str, Any]:
    """summary.json of a verdict set; {} without one that counts the trees as they are now."""
    path = folder / SUMMARY
    found = read_json(path) if path.is_file() else {}
    if found.get("trees") != fingerprint(trees) or not isinstance(found.get("points"), list):
        return {}
    return found


def _counts(summary: Mapping[str, Any], trained: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value): questions, pairs, and shares of the branches. trained: facts of the run."""
    if not summary:
        return []
    branches = summary["branches"]
    shares = [
        f"{100 * summary[key] / max(branches, 1):.1f} % {said}"
        for key, said in (("safe", "safe"), ("unsafe", "unsafe"), ("error", "not judged (ERROR)"))
    ]
    unfinished = f"{100 * summary['unfinished'] / max(branches, 1):.1f} % unfinished"
    references = ", ".join(
        f"{count} {'not judged' if name == 'error' else name}"
        for name, count in summary["references"].items()
        if count
    )
    safe = "a safe reply" if summary["scope"] == "reply" else "a safe reply after a safe path"
    if summary["require_effective"]:
        safe += ", which must be of use"
    found = [
        ("questions", f"{summary['questions']}, {summary['questions_with_pair']} with a pair"),
        ("branches", f"{branches}: {', '.join(shares)}; {unfinished}"),
        ("reference paths", references),
        ("what counts as safe", safe),
    ]
    if "pairs" in trained:
        used, paired = trained["questions"], trained["questions_with_pair"]
        pairs = f"{trained['pairs']} pairs, of {paired} of {used} questions"
        found.insert(1, ("trained on", pairs))
    return [(name, value) for name, value in found if value]


def _statuses(folder: pathlib.Path) -> list[tuple[str, str]]:
    """How the branches could be read, as exploration counted it."""
    path = folder / SUMMARY
    found = read_json(path).get("statuses") if path.is_file() else None
    return [("read as", status_line(found))] if isinstance(found, dict) and found else []


def status_line(statuses: Any) -> str:
    """How often each status of the path format occurs: "ok 108, unfinished 3"."""
    return ", ".join(f"{name} {count}" for name, count in count_statuses(statuses).items())


def _points(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per branch point {"where", "parts": [(safe, unsafe or error, branches, share)], "with_pair",
    "questions"}: shares in percent of the branches that leave there.
    """
    return [
        {
            "where": f"after step {point['at']}" if point["at"] else "from the question",
            "parts": [
                (kind, point[kind], 100 * point[kind] / (point["branches"] or 1))
                for kind in ("safe", "unsafe", "error")
                if point[kind]
            ],
            "with_pair": point["with_pair"],
            "questions": point["questions"],
        }
        for point in summary.get("points", ())
    ]
