"""Several judges in one: copy this file and put in your models and servers (docs/judges.md).

Ways to judge together: vote (default), cascade, jury, graded. The other variants are judges alone.
Where one is named as a member, its `arbiter.kind` and its section `judge` are used. Try a panel:

    srpo judge check --config=configs/judge_panel.py:cascade

and have a run judged by it with your own config:

    srpo judge --config=mine.py --workdir=runs/mine --config.arbiter.kind=cascade \\
        --config.judge.members=configs/judge_panel.py:small,configs/judge_panel.py:large
"""

from ml_collections import ConfigDict

from srpo_jax.configs import common

# Judges alone: model, port of its server on this machine, rubric. They should be of different
# families: judges of one family err together.
JUDGES = {
    "small": ("Qwen/Qwen3-VL-4B-Instruct", 8001, "reply_safety"),
    "large": ("Qwen/Qwen3-VL-32B-Instruct", 8002, "reply_safety"),
    "first": ("Qwen/Qwen3-VL-8B-Instruct", 8003, "reply_safety"),
    "second": ("OpenGVLab/InternVL3_5-8B", 8004, "reply_safety"),
    "third": ("google/gemma-3-12b-it", 8005, "reply_safety"),
    "first_grades": ("Qwen/Qwen3-VL-8B-Instruct", 8003, "graded_reply"),
    "second_grades": ("OpenGVLab/InternVL3_5-8B", 8004, "graded_reply"),
}
# Judges together, and of whom.
PANELS = {
    "vote": "first,second,third",
    "cascade": "small,large",
    "jury": "first,second,third",
    "graded": "first_grades,second_grades",
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of one variant (None: vote). ValueError for any other name."""
    variant = arg or "vote"
    if variant not in {**JUDGES, **PANELS}:
        raise ValueError(f"unknown variant {variant!r}; there is {', '.join([*PANELS, *JUDGES])}")
    config = common.get_config()
    config.name = f"judge-{variant.replace('_', '-')}"
    if variant in JUDGES:
        model, port, rubric = JUDGES[variant]
        config.arbiter.kind = "prompted"
        config.judge.model = model
        config.judge.base_url = f"http://127.0.0.1:{port}/v1"
        config.judge.rubric = rubric
        if variant == "small":
            config.judge.logprobs = True  # a cascade needs a score of its first judge
        if variant == "large":
            config.judge.max_requests = 2000  # the rest waits for the next start
        return config.lock()

    config.arbiter.kind = variant
    members = [f"{__file__}:{name}" for name in PANELS[variant].split(",")]
    config.judge.members = ",".join(members)
    if variant == "cascade":
        config.judge.band = "0.05,0.9"  # SAFE has to be surer than UNSAFE
    elif variant == "jury":
        config.judge.rounds = 1
        config.judge.foreman = f"{__file__}:large"
    elif variant == "graded":
        config.judge.threshold = 0.5
        config.judge.margin = 0.1  # pairs are at least 0.2 apart, two grades of ten
    return config.lock()
