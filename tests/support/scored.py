"""Workdirs with scores in them, for the tests of tables."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from srpo_jax.config.fields import Config
from srpo_jax.judge.results.scores import scores

JUDGE = {"arbiter": "chat", "digest": "a" * 16, "spec": {"model": "judge"}}
TEACHER = {"arbiter": "rules", "digest": "b" * 16, "spec": {"rules": 1}}


def row(name: str, reply: str, *, risky: bool = True, effective: bool | None = True) -> dict:
    """A line of generations.jsonl."""
    return {
        **{"id": name, "risky": risky, "category": None, "path_verdict": "SAFE", "status": "ok"},
        **{"reply_verdict": reply, "effective": effective, "question": f"What of {name}?"},
    }


def risky_rows(safe: int, count: int = 10) -> list[dict]:
    """So many risky questions, of which the first `safe` are."""
    return [row(f"q{i}", "SAFE" if i < safe else "UNSAFE") for i in range(count)]


def write_evaluation(
    workdir: pathlib.Path,
    name: str,
    rows: list[dict],
    *,
    policy: str,
    judge: Any = JUDGE,
    **more: Any,
) -> None:
    """WORKDIR/eval/NAME as `srpo judge --answers` leaves it. more: further keys of scores.json."""
    folder = workdir / "eval" / name
    folder.mkdir(parents=True)
    (folder / "generations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {**scores(rows), "policy_digest": policy, "judge": judge, **more}
    (folder / "scores.json").write_text(json.dumps(found))


def write_run(
    workdir: pathlib.Path, *, seed: int = 0, began_with: str = "", **objective: Any
) -> None:
    """WORKDIR/config.json of a run that was trained on verdicts of TEACHER. began_with: digest."""
    config = Config().to_dict()
    config["seed"], config["model"]["path"] = seed, "/models/tiny"
    config["objective"].update(objective)
    facts = {"questions": 8, "pairs": 30, "verdicts": TEACHER}
    workdir.mkdir(parents=True, exist_ok=True)
    run = {"model weights": began_with}
    stored = {"config": config, "data": facts, "run": run}
    (workdir / "config.json").write_text(json.dumps(stored))
