"""WORKDIR/rounds.json: which run of rounds this is, and what the stages that are done have left.

    {"run": what decides it, "rounds": [{"round", "seed", "policy", "policy_digest", "stage",
     "left": {stage: digests}}]}

It is written whole, at the end of every stage. `policy` is the folder that the round explored with,
`stage` the last one that ended. What is written there is never trusted alone: walk.py compares it
with what lies on disk.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax.buckets.fetch import local_folder
from srpo_jax.config.fields import FIELDS, Config
from srpo_jax.data_pipelines.records import Record, records_digest
from srpo_jax.errors import UserError
from srpo_jax.files import read_json, write_json
from srpo_jax.models.hf.weights_digest import policy_digest
from srpo_jax.runs.identity import check_same, identity
from srpo_jax.runs.workdir import ROUNDS

# What decides the rounds besides what decides the branches, or what is trained.
ALSO = (
    "rounds.start",
    "explore.num_questions",
    "explore.shards",
    "eval.split",
    "eval.num_questions",
    "eval.samples",
    "eval.temperature",
    "eval.max_new_tokens",
    "eval.forced_prefix",
)


def what_decides(
    cfg: Config, records: Mapping[str, Sequence[Record]], judge: str
) -> dict[str, Any]:
    """{name: value} of all that decides what the rounds become, as JSON gives it back.

    records: by field of the config. judge: name and digest of the arbiter, "" without one.
    """
    sampled = {f.name: f.of(cfg) for f in FIELDS.values() if f.samples or f.name in ALSO}
    data = {name: records_digest(own) for name, own in records.items()}
    model = policy_digest(local_folder(cfg.model.path))
    found = identity(cfg, model_digest=model, data={**data, "judge": judge})
    return {**found, **{n: list(v) if isinstance(v, tuple) else v for n, v in sampled.items()}}


class Progress:
    """What rounds.json of a workdir says, and says from now on.

    Errors: UserError when it is of another run, or is no such file.
    """

    def __init__(self, workdir: pathlib.Path, run: dict[str, Any]):
        self._path = workdir / ROUNDS
        self._run = run
        self._rounds: list[dict[str, Any]] = []
        if self._path.is_file():
            found = read_json(self._path)
            if not isinstance(found.get("run"), dict) or not _are_rounds(found.get("rounds")):
                raise UserError(f"{self._path} is no record of rounds; restore it, or remove it")
            check_same(found["run"], run, workdir)
            self._rounds = found["rounds"]

    def check_rounds(self, rounds: int) -> None:
        """Errors: UserError for fewer rounds than have begun."""
        if rounds < len(self._rounds):
            raise UserError(
                f"--rounds={rounds}: {self._path.parent} has {len(self._rounds)} rounds already; "
                f"give --rounds={len(self._rounds)} or more, or another --workdir"
            )

    def left(self, number: int, stage: str) -> dict[str, Any] | None:
        """What the stage of a round (from 1) had left when it ended; None if it has not."""
        if number > len(self._rounds):
            return None
        return self._rounds[number - 1]["left"].get(stage)

    def ended(
        self, number: int, about: Mapping[str, Any], stage: str, left: Mapping[str, Any]
    ) -> None:
        """Writes that a stage ended. about: what else there is to say of the round."""
        known = self._rounds[number - 1]["left"] if number <= len(self._rounds) else {}
        now = {**known, stage: dict(left)}
        sampled_by = now.get("explore", {}).get("policy")
        entry = {"round": number, **about, "policy_digest": sampled_by, "stage": stage, "left": now}
        self._rounds[number - 1 :] = [entry, *self._rounds[number:]]
        write_json(self._path, {"run": self._run, "rounds": self._rounds})


def _are_rounds(rounds: Any) -> bool:
    return isinstance(rounds, list) and all(
        isinstance(each, dict) and isinstance(each.get("left"), dict) for each in rounds
    )
