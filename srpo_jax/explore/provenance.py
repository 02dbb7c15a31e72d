"""What sampled the trees of a workdir: provenance in every tree, and a check before going on."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from srpo_jax import __version__
from srpo_jax.config.fields import FIELDS, Config
from srpo_jax.data_pipelines.records import Record, records_digest
from srpo_jax.data_pipelines.tree_store import SUFFIX
from srpo_jax.errors import UserError
from srpo_jax.inference.engine.engine import SAMPLER_VERSION
from srpo_jax.inference.policy import Policy

RUN = "run.json"  # beside the shards: what made them


def make_provenance(cfg: Config, policy: Policy, records: Sequence[Record]) -> dict[str, Any]:
    """Names everything that decides which branches are sampled."""
    sampler = {field.leaf: field.of(cfg) for field in FIELDS.values() if field.samples}
    del sampler["demos"]  # their path; what they are is in the digest of the prompt
    sampler["dtype"] = cfg.model.dtype
    sampler["version"] = SAMPLER_VERSION
    sampler["records"] = records_digest(records)
    return {
        "policy_digest": policy.digest,
        "prompt_digest": policy.prompt_digest,
        "prompt": policy.asking.about,
        "sampler": json.loads(json.dumps(sampler)),  # as RUN gives it back: tuples are lists there
        "seed": cfg.seed,
        "created_by": f"srpo_jax {__version__}",
    }


def refuse_strangers(folder: pathlib.Path, run: dict[str, Any]) -> None:
    """Raises UserError when `folder` has shards that another run than `run` made.

    run: the provenance of this run and its number of shards, as RUN records them.
    """
    shards = sorted(folder.glob(f"*{SUFFIX}"))
    if not shards:
        return
    advice = "use another workdir, or remove its trees folder to explore again"
    try:
        theirs = _flat(json.loads((folder / RUN).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        why = f"made by an unknown run (no {RUN} beside it)"
        raise UserError(f"{shards[0]}: {why}; {advice}") from None
    if "prompt_digest" not in theirs:
        why = "made by an older version of srpo_jax, whose trees this one does not read"
        raise UserError(f"{shards[0]}: {why}; {advice}")
    ours = _flat(json.loads(json.dumps(run)))  # as JSON gives it back
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"{shards[0]}: made by another run ({name} was {theirs.get(name)!r}, "
                f"now {ours.get(name)!r}); {advice}"
            )


def _flat(run: dict[str, Any]) -> dict[str, Any]:
    flat = {**run, **run["sampler"]}
    # A newer version of the program may finish the run of an older one. prompt: in the digest.
    return {n: flat[n] for n in flat if n not in ("sampler", "created_by", "prompt")}
