"""Which run a workdir holds: the settings that decide its parameters, and how two runs differ.

Resuming is right only for the same run. What only changes speed, place or reporting (mesh, remat,
accumulation, logging, how often to save) may change between two starts of it. Which is which says
`decides` at every field in srpo_jax/config/sections.py.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from srpo_jax.config.fields import FIELDS, Config
from srpo_jax.errors import UserError
from srpo_jax.files import file_sha256, read_json, write_json
from srpo_jax.models.hf.prompt_encoder import processor_digest

PROCESSOR = "tokenizer, chat template or image processor"
PROMPT = "prompt, chat template, tokenizer"  # the name of their digest


def identity(
    cfg: Config, *, model_digest: str, data: Mapping[str, Any], prompt_digest: str = ""
) -> dict[str, Any]:
    """{name: value} of everything that decides the run's parameters, as JSON gives it back.

    data: {name: value} of what names the trees and their verdicts. prompt_digest: of how the
    questions are asked. With a constant schedule `train.steps` decides nothing but the end, and is
    left out: such a run can be made longer. Without adapters their settings decide nothing; with
    dropout on them the slices of a batch do, because each draws its own masks.
    """
    deciding = {field.name: field.of(cfg) for field in FIELDS.values() if field.decides}
    found = {"seed": cfg.seed, "model weights": model_digest, **data} | deciding
    if prompt_digest:
        found[PROMPT] = prompt_digest
        found.pop("prompt.demos")  # their path; what they are is in the digest
    if cfg.prompt.demo_select == "first":  # nothing is drawn
        del found["prompt.demo_select"], found["prompt.demo_seed"]
    del found["pack.rows" if cfg.pack.questions else "pack.questions"]  # whichever says nothing
    if not cfg.objective.branch_coef:
        del found["objective.branch_coef"]  # as before there was one
    if cfg.pack.too_long == "refuse":
        del found["pack.too_long"]  # a run that goes on has refused nothing
    if cfg.train.schedule == "constant":
        del found["train.steps"]
    if not cfg.lora.rank:
        found = {name: value for name, value in found.items() if not name.startswith("lora.")}
    else:
        found.pop("train.param_dtype", None)  # adapters are float32
        if cfg.lora.dropout:
            found["train.accumulate"] = cfg.train.accumulate
    return json.loads(json.dumps(found))


def check_same(stored: dict[str, Any], current: dict[str, Any], place: pathlib.Path) -> None:
    """Errors: UserError that lists what differs."""
    names = sorted(stored.keys() | current.keys())
    differ = [name for name in names if stored.get(name) != current.get(name)]
    if differ:
        listed = "; ".join(
            f"{name} was {stored.get(name)!r}, now {current.get(name)!r}" for name in differ
        )
        raise UserError(
            f"{place} holds another run ({listed}); use another --workdir, or remove that folder"
        )


def check_end(step: int, steps: int, place: pathlib.Path) -> None:
    """Errors: UserError when the checkpoint of `step` is past the end of the run."""
    if step > steps:
        raise UserError(
            f"{place} is at step {step}, past train.steps={steps}; set that higher, or use another "
            "--workdir"
        )


def policy_files(folder: str | pathlib.Path) -> dict[str, str]:
    """{what it decides: digest} of the small files of a checkpoint folder. With the weights, which
    a run has of its own, they are the policy."""
    return {
        "config.json": file_sha256(pathlib.Path(folder) / "config.json")[:16],
        PROCESSOR: processor_digest(folder),
    }


def check_policy_files(workdir: pathlib.Path, folder: str | pathlib.Path) -> None:
    """UserError if the small files in `folder` are not those that the run of the workdir began
    with: with its weights they would be another policy. Runs of older versions did not record them.
    """
    path = workdir / "config.json"
    was = (read_json(path).get("policy") or {}) if path.is_file() else {}
    if not was:
        return
    now = policy_files(folder)
    differ = [name for name in now if was.get(name) != now[name]]
    if differ:
        raise UserError(
            f"{folder} has another {' and another '.join(differ)} than when {workdir} was trained; "
            "put the files back, or give that policy with --config.model.path"
        )


def write_config(
    cfg: Config,
    run: dict[str, Any],
    facts: dict[str, Any],
    workdir: pathlib.Path,
    policy: Mapping[str, str] | None = None,
) -> None:
    """WORKDIR/config.json: the resolved config, what decides the run, the digest of that, what it
    is trained on (facts), and what its policy consists of besides the weights (policy_files).
    """
    text = json.dumps(run, sort_keys=True)
    content = {
        "config": json.loads(json.dumps(cfg.to_dict())),
        "run": run,
        "data": facts,
        "policy": dict(policy or {}),
        "fingerprint": hashlib.sha256(text.encode()).hexdigest()[:16],
    }
    write_json(workdir / "config.json", content)


def fingerprint_of_trees(trees: Any) -> str:
    """Hex sha256 over ids, tokens, verdicts and pictures of trees that come from no folder."""
    digest = hashlib.sha256()
    for tree in trees:
        shape = [tree.id, [(branch.at, branch.safe) for branch in tree.branches]]
        digest.update(json.dumps(shape).encode())
        own = [branch.tokens for branch in tree.branches]
        for array in (tree.prompt.tokens, tree.prompt.patches, *tree.pieces, *own):
            digest.update(f"{array.shape}".encode() + np.ascontiguousarray(array).data)
    return digest.hexdigest()
