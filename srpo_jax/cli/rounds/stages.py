"""The stages of a round: what each does, which is what its verb does, and what it leaves on disk.

What is left is told by digests that the stages make anyway: of the shards of trees, the verdicts,
a checkpoint's arrays, an export's files. Equal digests mean that the stage is done.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from srpo_jax.buckets.fetch import local_folder
from srpo_jax.cli.validation.evaluators import make_evaluators
from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.answer_store import read_answers
from srpo_jax.data_pipelines.tree_store import SUFFIX, fingerprint, shards_of
from srpo_jax.data_pipelines.verdict_store import VerdictSet, find_set
from srpo_jax.errors import UserError
from srpo_jax.evaluate.evaluate import evaluate
from srpo_jax.explore.explore import explore
from srpo_jax.explore.provenance import RUN
from srpo_jax.export.digests import DIGESTS
from srpo_jax.export.export import export
from srpo_jax.files import file_sha256, read_json
from srpo_jax.judge.judge import all_explored, judge
from srpo_jax.keepers import place_of, remove_folder
from srpo_jax.models.hf.weights_digest import policy_digest
from srpo_jax.runs.identity import policy_files
from srpo_jax.runs.workdir import round_folder
from srpo_jax.train.checkpoint.seal import Damaged, read_meta, steps_in
from srpo_jax.train.loop import train
from srpo_jax.train.setup import needs_verdicts

Left = dict[str, Any] | None


class Waits(Exception):
    """A round that cannot go on before somebody has judged its trees. The text says what to do."""


@dataclass(frozen=True)
class Round:
    """One round. folder: its workdir. cfg: the user's, with records that are drawn. policy: the
    folder or address of the policy that explores; start: of the one that training begins with.
    verdicts: the name of the verdict set that the arbiter writes; without one of that which is
    waited for, "" for the only one there is.
    """

    number: int
    folder: pathlib.Path
    cfg: Config
    policy: str
    start: str
    verdicts: str = ""
    allow_upload: bool = False

    @classmethod
    def of(
        cls,
        cfg: Config,
        workdir: pathlib.Path,
        number: int,
        verdicts: str = "",
        allow_upload: bool = False,
    ) -> Round:
        """The round of this number, from 1."""
        policy = cfg.model.path
        if number > 1:
            before = round_folder(workdir, number - 1) / "export"
            policy = place_of(before)  # on another host it is elsewhere
        start = policy if cfg.rounds.start == "previous" else cfg.model.path
        folder = round_folder(workdir, number)
        return cls(number, folder, cfg, policy, start, verdicts, allow_upload)

    @property
    def seed(self) -> int:
        """Of its branches and of the order in which it trains."""
        return round_seed(self.cfg.seed, self.number)

    @property
    def exploring(self) -> Config:
        """By which its branches are sampled, and judged."""
        return self._with(self.policy, self.seed)

    @property
    def training(self) -> Config:
        """By which it trains."""
        return self._with(self.start, self.seed)

    @property
    def answering(self) -> Config:
        """By which its policy is evaluated: with the run's seed, so that every round answers the
        same questions.
        """
        return self._with(str(self.folder / "export"), self.cfg.seed)

    def _with(self, policy: str, seed: int) -> Config:
        name = self.cfg.name if self.number == 1 else f"{self.cfg.name}-round-{self.number}"
        return replace(self.cfg, name=name, seed=seed, model=replace(self.cfg.model, path=policy))


def round_seed(seed: int, number: int) -> int:
    """The seed of a round: the run's own in the first one, which so has the branches of `srpo
    explore`; later the first 31 bits of the SHA-256 of "SEED round NUMBER".
    """
    if number == 1:
        return seed
    digest = hashlib.sha256(f"{seed} round {number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


class Stage(NamedTuple):
    """do: runs it, or finishes it. left: what a stage that is done has left, None where it is not.
    kept: whether that is needed for good; what else is left serves the next stage alone.
    """

    name: str
    do: Callable[[Round], object]
    left: Callable[[Round], Left]
    kept: bool = False


def _explore(each: Round) -> None:
    cfg = each.exploring
    roots = None
    if cfg.arbiter.kind:
        roots = functools.partial(_ask, each)
    explore(cfg, each.folder, judge_roots=roots)
    if not all_explored(each.folder / "trees"):  # the roots of explore.reference=self
        raise Waits(_to_judge(each, "the whole paths in roots"))


def _explored(each: Round) -> Left:
    trees = each.folder / "trees"
    if not all_explored(trees) or not shards_of(trees):
        return None
    sampled_by = read_json(trees / RUN).get("policy_digest")
    if sampled_by != policy_digest(local_folder(each.policy)):
        return None  # explore refuses to go on with them, and says why
    return {"trees": fingerprint(trees), "policy": sampled_by}


def _ask(each: Round, answers: str = "") -> object:
    cfg = each.exploring
    return judge(
        cfg, each.folder, name=each.verdicts, answers=answers, allow_upload=each.allow_upload
    )


def _judge(each: Round) -> None:
    if each.cfg.arbiter.kind:
        _ask(each)
    elif _judged(each) is None:
        raise Waits(_to_judge(each, "its branches"))


def _judged(each: Round) -> Left:
    if not each.cfg.arbiter.kind and not needs_verdicts(each.cfg):
        return {}
    trees = each.folder / "trees"
    stems = [path.name.removesuffix(SUFFIX) for path in shards_of(trees)]
    try:
        verdicts: VerdictSet = find_set(trees, each.verdicts)
    except UserError:  # none, or not this one
        return None
    if not stems or any(verdicts.of_shard(stem) is None for stem in stems):
        return None
    judge = verdicts.judge["digest"]
    return {"set": verdicts.name, "judge": judge, "verdicts": verdicts.fingerprint(stems)}


def _to_judge(each: Round, what: str) -> str:
    return (
        f"round {each.number} waits for verdicts on {what}: run `srpo judge --workdir={each.folder}"
        " --config=FILE` with an arbiter (--write_batch and --read_batch judge elsewhere), then "
        "this command again"
    )


def _trained(each: Round) -> Left:
    folder = each.folder / "checkpoints"
    steps = steps_in(folder)
    try:
        arrays = read_meta(folder / str(steps[-1]), steps[-1])["arrays"] if steps else None
    except (OSError, Damaged):
        return None
    if arrays is None:
        return None
    text = json.dumps(arrays, sort_keys=True)
    return {"step": steps[-1], "arrays": hashlib.sha256(text.encode()).hexdigest()[:16]}


def _export(each: Round) -> None:
    out = each.folder / "export"
    if out.is_dir():  # a stopped one, or of another step
        remove_folder(out)
    export(each.folder, out)


def _exported(each: Round) -> Left:
    out = each.folder / "export"
    if not (out / DIGESTS).is_file():
        return None
    try:
        files = policy_files(out)
        return {"policy": policy_digest(out), **files, "files": file_sha256(out / DIGESTS)[:16]}
    except (OSError, UserError):  # a file of it is gone
        return None


def answers_name(cfg: Config, when: str = "after") -> str:
    """What the evaluation of a round's policy is called: "after", or with the split behind it."""
    return when if cfg.eval.split == "test" else f"{when}-{cfg.eval.split}"


def evaluate_policy(each: Round, name: str = "") -> None:
    """Answers the questions of eval.split with the round's policy; an arbiter judges the answers.
    name: default answers_name.
    """
    name = name or answers_name(each.cfg)
    evaluate(each.answering, each.folder, name, model_dir=each.folder / "export")
    if each.cfg.arbiter.kind:
        _ask(each, name)


def _evaluated(each: Round) -> Left:
    folder = each.folder / "eval" / answers_name(each.cfg)
    try:
        read_answers(folder)
    except UserError:
        return None
    names = ["answers.json"] + ["scores.json"] * bool(each.cfg.arbiter.kind)
    if not all((folder / name).is_file() for name in names):
        return None
    return {name: file_sha256(folder / name)[:16] for name in names}


STAGES = (
    Stage("explore", _explore, _explored),
    Stage("judge", _judge, _judged),
    Stage(
        "train",
        lambda each: train(each.training, each.folder, make_evaluators=make_evaluators),
        _trained,
    ),
    Stage("export", _export, _exported, kept=True),
    Stage("eval", evaluate_policy, _evaluated, kept=True),
)
