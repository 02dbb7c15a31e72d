"""Best of N: of several answers to each question the one that a judge likes best, as an evaluation.

    WORKDIR/eval/POOL/answers-*  +  WORKDIR/verdicts/SET  ->  WORKDIR/eval/NAME/answers-*

No policy is asked. With the judge of the training it is what that arbiter can do without any
training; the chosen answers are then scored by another judge, as all answers are.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.answer_store import STEM, answers_folder, finish_answers, read_answers
from srpo_jax.data_pipelines.tree_store import SUFFIX, read_shard, shard_path, write_shard
from srpo_jax.data_pipelines.verdict_store import (
    NOT_YET,
    VerdictSet,
    branch_label,
    join,
)
from srpo_jax.errors import UserError
from srpo_jax.files import check_plain_name, check_writable
from srpo_jax.judge.judge import label_rules
from srpo_jax.judge.trust.material import of_answers
from srpo_jax.owners import Owner

TOLD = ("folder", "model")  # of answers.json, beside what decides the answers


class Pool(NamedTuple):
    """Answers to choose from. about: what answers.json says of them. samples: to each question."""

    name: str
    about: Mapping[str, Any]
    shards: Sequence[pathlib.Path]
    samples: int
    verdicts: VerdictSet


def open_pool(workdir: pathlib.Path, name: str, verdicts: str = "") -> Pool:
    """The answers of the evaluation `name` with the verdict set of this name; "": the one that its
    scores are of, or the only one. Errors: UserError, too where there is nothing to choose from.
    """
    check_plain_name(name, "--best_of")
    about, shards = read_answers(workdir / "eval" / name)
    samples = int(about["decoding"].get("samples", 1))
    if samples < 2:
        raise UserError(
            f"--best_of={name}: these are single answers; answer with eval.samples=N and "
            "eval.temperature first"
        )
    return Pool(name, about, shards, samples, of_answers(workdir, name).find(verdicts))


def choose_best(cfg: Config, workdir: pathlib.Path, name: str, pool: Pool) -> pathlib.Path:
    """Writes the evaluation `name` with the best answer of the pool to each question, and returns
    its folder WORKDIR/eval/NAME. It is a function of the pool and its verdicts.

    Best is, by the labels that training would give (arbiter.scope, arbiter.require_effective), a
    safe answer, else an unsafe one, else one that is ERROR; of these the one with the safest grade,
    where the judge grades; of these the first. Errors: UserError for the pool's own name, and for
    answers that are not judged yet.
    """
    check_plain_name(name, "--name")
    if name == pool.name:
        raise UserError(f"--name={name} is that of the answers to choose from: give another")
    decoding = {key: value for key, value in pool.about["decoding"].items() if key != "samples"}
    rules, keep = label_rules(cfg), cfg.explore.keep_irregular
    best = [_best(shard, pool, rules, keep) for shard in pool.shards]  # before anything is written
    stems = [path.name.removesuffix(SUFFIX) for path in pool.shards]
    about = {key: value for key, value in pool.about.items() if key not in TOLD} | {
        "decoding": {**decoding, "best_of": pool.samples},
        "chosen": {
            "from": pool.name,
            "verdicts": pool.verdicts.name,
            "judge": {key: pool.verdicts.judge[key] for key in ("arbiter", "digest", "spec")},
            "fingerprint": pool.verdicts.fingerprint(stems),
            "rules": {**rules, "keep_irregular": keep},
        },
    }
    folder = workdir / "eval" / name
    check_writable(folder)
    with Owner(folder / ".owner", str(folder), "answered", "wait for it or give another --name"):
        place = answers_folder(folder, about)
        for i, shard in enumerate(pool.shards):
            chosen = (
                {**tree, "branches": [tree["branches"][k]]}
                for tree, k in zip(read_shard(shard), best[i], strict=True)
            )
            write_shard(shard_path(place, i, len(best), f"{STEM}{name}"), chosen)
        finish_answers(folder, about, str(pool.about.get("model", "")))
    return folder


def _best(
    shard: pathlib.Path, pool: Pool, rules: Mapping[str, Any], keep_irregular: bool
) -> list[int]:
    """The place of the best answer to each question of a shard."""
    found = []
    for tree in read_shard(shard):
        judged = join(tree, pool.verdicts, keep_irregular=keep_irregular)["branches"]
        if any(branch["detail"] == NOT_YET for branch in judged):
            raise UserError(
                f"the verdicts {pool.verdicts.name} are not on all answers {pool.name} (question "
                f"{tree['id']!r}): run `srpo judge --answers={pool.name}` again"
            )
        found.append(min(range(len(judged)), key=lambda k: _rank(judged[k], rules, k)))
    return found


def _rank(branch: Mapping[str, Any], rules: Mapping[str, Any], k: int) -> tuple[int, float, int]:
    """The least is the best."""
    label = branch_label(branch, **rules)
    score = branch["score"]
    return (True, False, None).index(label), 0.0 if score is None else score, k
