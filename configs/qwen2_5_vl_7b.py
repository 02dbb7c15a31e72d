"""A whole recipe: SRPO for Qwen2.5-VL-7B-Instruct on 64 chips of TPU v5e. Not run on hardware.

Memory and mesh are what `srpo plan` compiled for v5e:8x8 (docs/planning.md); the rest is what
public sources used, or what follows from sizes, and each number says which. Measure before you pay:

    srpo pilot --config=configs/qwen2_5_vl_7b.py --config.model.path=DIR \\
        --config.judge.model=NAME --workdir=runs/7b

then explore, judge and train with the same flags; `:warmup` is SFT with adapters on the reference
paths, for a policy that does not write the path format (docs/pilot.md).

RPO is arXiv 2410.10858: its numbers are for text models with adapters, on one GPU. The settings of
SRPO (arXiv 2509.12060) are not public. "Ours" is a choice that nobody's measurement stands behind.
"""

from ml_collections import ConfigDict

from srpo_jax.configs import common

VARIANTS = ("srpo", "warmup")


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of one variant (None: srpo). ValueError for any other name."""
    variant = arg or "srpo"
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; there is {', '.join(VARIANTS)}")
    config = common.get_config()
    config.name = f"qwen2.5-vl-7b-{variant}"
    _policy(config)
    _data(config)
    _exploration(config)
    _judge(config)
    _training(config)
    if variant == "warmup":
        _warmup(config)
    return config.lock()


def _policy(config: ConfigDict) -> None:
    config.model.path = ""  # required: the downloaded Qwen2.5-VL-7B-Instruct
    config.model.dtype = "bfloat16"  # of the checkpoint; parameters and optimizer stay float32
    config.model.remat = "attention"  # `srpo plan`: 8.8 of 15.75 GiB, as compiled for v5e:8x8
    config.mesh.data = 1
    config.mesh.fsdp = -1  # all 64 chips: 16 bytes x 8.3e9 parameters / 64 = 2 GB a chip
    config.mesh.tensor = 1  # docs/planning.md: the fastest mesh of those that fit
    config.prompt.instruction = "auto"  # RPO shows 4 examples; demonstrations cost 4 pictures here
    config.format.kind = "lines"  # one step a line, as RPO's code cuts paths


def _data(config: ConfigDict) -> None:
    config.data.train_records = "data/train.jsonl"
    config.data.test_records = "data/test.jsonl"


def _exploration(config: ConfigDict) -> None:
    config.explore.reference = "dataset"  # SSUI's paths are checked by people (arXiv 2508.08926)
    config.explore.branch_points = "all"  # RPO section 2: after every step but the last
    config.explore.branches = 8  # RPO: at most 10; 8 keep a question of docs/planning.md in a row
    config.explore.temperature = 0.5  # RPO; see "distinct branches" of srpo pilot
    config.explore.max_new_tokens = 512  # RPO's code
    # A question has 6 x 8 branches: 48 x 512 tokens x 57 kB of keys and values = 1.4 GB.
    config.explore.batch = 0  # the default: as many questions as the chips have room for
    config.explore.shards = 256  # ours: an interrupted worker loses one part in 256
    config.eval.max_new_tokens = 512  # as explored; greedy, as RPO evaluates


def _judge(config: ConfigDict) -> None:
    config.arbiter.kind = "prompted"  # SRPO has its branches judged by a GPT-4, readers say
    config.judge.model = ""  # to be filled in: the name that the server of judge.base_url knows
    config.arbiter.scope = "reply"  # RPO equations 3 and 5: a sign by the final answer
    # Ours: a needless refusal counts as unsafe, or refusing everything would be the safest policy.
    config.arbiter.require_effective = True
    config.judge.rubric = "reply_safety,effectiveness"
    config.judge.temperature = 0.0  # as SIUO's judge (arXiv 2406.15279)
    config.judge.votes = 1  # SIUO asks once for each answer
    config.judge.max_tokens = 512  # ours: SIUO's 200 hold no evidence before the verdict


def _training(config: ConfigDict) -> None:
    objective, train = config.objective, config.train
    objective.lambda_exp = 0.3  # RPO table 5, the best of 0.1 to 0.9 on MATH (its figure 4)
    objective.contrast = "odds_ratio"  # RPO equations 7 to 9; table 3: better than DPO's term
    objective.normalise = "mean"  # RPO's code
    objective.pairing = "all"  # RPO's data; in a tree more pairs cost nothing
    objective.reference = "dataset"  # RPO equation 6
    config.pack.row_tokens = 8192  # docs/planning.md: longer rows have no room on 16 GB
    config.pack.rows = 64  # one a chip, about 64 questions a step; RPO's batch is 8 questions
    # RPO table 5: 3 epochs. 3 x 10000 questions / 64 = 470; `srpo train --dry_run` says the epochs.
    train.steps = 470
    # OpenVLThinker's and Vision-R1's SFT of all parameters of this model; RPO's 5e-5 is LoRA's.
    train.learning_rate = 5e-6
    train.warmup_steps = 24  # Vision-R1: 5 % of the steps
    train.schedule = "cosine"  # the default; the sources do not agree
    train.clip_norm = 1.0  # the default
    train.save_every = 50  # ours: a checkpoint is 100 GB, parameters and both moments
    train.keep = 2  # the default


def _warmup(config: ConfigDict) -> None:
    """SFT on the reference paths (L_ref alone) with adapters; thousands of rows are enough."""
    config.objective.lambda_exp = 0.0
    config.lora.rank = 16  # RPO's is 8; ours
    config.lora.base_dtype = "bfloat16"  # the checkpoint's own
    config.train.learning_rate = 5e-5  # RPO table 5, with LoRA
    # One epoch, as R1-Onevision and OpenVLThinker: a path and its picture take about 1500 tokens,
    # so a step holds 64 x 5 questions, and 32 steps 10000. Longer SFT of this model has been seen
    # to cost more than it gives (arXiv 2606.09059).
    config.train.steps = 32
    config.train.warmup_steps = 2  # 5 %
    config.train.save_every = 16
