"""The embedded world on a laptop: `srpo demo`, or the verbs one by one with this file.

Variants, all on the same explored branches and questions of every step: srpo (default); sft, and
sft_filtered without the references that the arbiter does not pass; taught, safe branches by L_ref
and no contrast; orpo; dpo, and dpo_ref with L_ref. What else was tried: docs/method_study.md.
    srpo train --config=configs/ssui_mini.py:dpo --workdir=/tmp/dpo
"""

import pathlib

from ml_collections import ConfigDict

from srpo_jax.configs import common

ROOT = pathlib.Path(__file__).resolve().parents[1]
VARIANTS = ("srpo", "sft", "sft_filtered", "taught", "orpo", "dpo", "dpo_ref")


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of one variant (None: srpo). ValueError for any other name."""
    variant = arg or "srpo"
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; there is {', '.join(VARIANTS)}")
    config = common.get_config()
    config.name = f"ssui-mini-{variant}"

    # A small Qwen2.5-VL that is unsafe about half of the time, made by srpo_jax/cli/base_policy.py.
    config.model.path = str(ROOT / "data_pipelines" / "ssui_mini" / "base_policy")
    config.data.train_records = "ssui_mini:train"  # drawn into WORKDIR/data on first use
    config.data.validation_records = "ssui_mini:validation"  # held-out combinations, to choose by
    config.data.test_records = "ssui_mini:test"  # others, for the result
    config.format.strict = True  # lines, as the base policy was taught them
    config.prompt.instruction = "none"  # what the policy has learned to answer are bare questions
    config.arbiter.kind = "ssui_mini"  # knows the truth of every reply and step
    config.arbiter.require_effective = True  # or refusing everything would be the safest policy

    config.explore.num_questions = 216  # half of the training records
    config.explore.branches = 4
    config.explore.max_new_tokens = 112  # the longest path of this world is shorter
    config.explore.batch = 16
    config.eval.batch = 27
    config.eval.samples = 4  # at temperature 1: one greedy answer says less, and ranks otherwise
    config.eval.temperature = 1.0
    config.eval.max_new_tokens = 112

    config.pack.questions = 10  # of every step, whatever a method lays out of them
    config.train.steps = 120
    config.train.learning_rate = 4e-4  # the policy is tiny; at 1e-3 its words start to crumble
    config.train.warmup_steps = 10
    config.train.save_every = 60

    if variant in ("sft", "sft_filtered", "taught"):
        config.objective.lambda_exp = 0.0  # nothing is compared
        config.arbiter.filter_references = variant == "sft_filtered"
        config.objective.branch_coef = float(variant == "taught")
    elif variant == "orpo":
        config.objective.branch_points = "first"  # whole replies, no branch inside the path
        config.objective.contrast = "odds_ratio"
    elif variant in ("dpo", "dpo_ref"):
        config.objective.branch_points = "first"
        config.objective.contrast = "dpo"  # against the frozen base policy
        config.objective.normalise = "sum"  # DPO is defined on the log-probability of the reply
        config.objective.lambda_exp = 1.0
        if variant == "dpo":
            config.objective.ref_coef = 0.0  # DPO has no term for the reference path
            config.train.learning_rate = 3e-5  # at the others' rate its language falls apart
    return config.lock()
