"""The sections of a config: every field's default, meaning, allowed values, and what it decides.

A field stands here and nowhere else. From these classes come configs/common.py, the checks of a
config (check.py), what identifies a run (srpo_jax/runs/identity.py), docs/configuration.md
(`python -m srpo_jax.command.config_page`) and the help of the command. 0 means "no limit" where a
help says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from srpo_jax.config.rules import setting

DTYPES = ("float32", "bfloat16")
# What train.best_metric may be, and the sign that makes more of it better.
BEST_METRICS = {
    "loss": -1,
    "srpo/loss_ref": -1,
    "srpo/loss_exp": -1,
    "rewards/accuracies": 1,
    "rewards/margins": 1,
    # Of looks at held-out data: docs/validation.md.
    "validation/loss": -1,
    "validation/loss_ref": -1,
    "validation/loss_exp": -1,
    "validation/accuracies": 1,
    "validation/margins": 1,
    "validation/safety_rate": 1,
    "validation/path_safety_rate": 1,
    "validation/both_all": 1,
    "validation/benign_perplexity": -1,
    "validation/benign_agreement": 1,
}


@dataclass(frozen=True)
class ModelSettings:
    """The policy's network: what it is read from and how it is computed."""

    path: str = setting(
        "",
        "HF directory of the base policy, with its processor",
        required=True,
        address="bucket",
        decides=False,
        host_only=True,
    )
    family: str = setting(
        "",
        "module:Class of a model family that is not built in; empty: by config.json",
        shape="place",
        decides=False,  # the weights' digest does
    )
    dtype: str = setting(
        "float32",
        "of the computation; parameters: see train.param_dtype",
        words=DTYPES,
        decides=True,
    )
    remat: str = setting(
        "none",
        "what layers keep for the backward pass: docs/performance.md",
        words=("none", "full", "dots", "attention", "offload"),
        decides=False,
    )
    attention: str = setting(
        "auto",
        "fastest for the platform and length; xla: the plain reference",
        words=("auto", "xla", "block", "pallas_tpu", "pallas_gpu"),
        decides=False,
    )


@dataclass(frozen=True)
class DataSettings:
    """Where records and trees lie."""

    train_records: str = setting(
        "",
        "JSONL of the questions to explore and train on",
        required=True,
        address="bucket",
        decides=False,
    )
    test_records: str = setting(
        "", "JSONL of the held-out questions", required=True, address="bucket", decides=False
    )
    validation_records: str = setting(
        "", "JSONL of questions to look at while training", address="bucket", decides=False
    )
    validation_trees: str = setting(
        "", "folder of judged trees to look at while training", address="bucket", decides=False
    )
    benign_records: str = setting(
        "",
        "JSONL of harmless questions that are to be answered as before",
        address="bucket",
        decides=False,
    )
    trees: str = setting(
        "",
        "folder of the trees to train on; empty: WORKDIR/trees",
        address="bucket",
        decides=False,
    )
    max_pixels: int = setting(
        0,
        "of a picture, to which larger ones are shrunk; 0: the model's own",
        low=0,
        decides=False,  # the digest of the prompt does
    )

    def records(self, split: str) -> str:
        """The records of a split, "train", "test" or "validation"."""
        return {
            "train": self.train_records,
            "test": self.test_records,
            "validation": self.validation_records,
        }[split]


@dataclass(frozen=True)
class ObjectiveSettings:
    """The loss, and the pairs that it compares; sources are in srpo_jax/train/losses."""

    lambda_exp: float = setting(
        0.3, "weight of L_exp; 0 is SFT on the reference path", low=0, decides=True
    )
    contrast: str = setting(
        "odds_ratio",
        "the term that compares a safe and an unsafe branch",
        shape="name",
        decides=True,
    )
    normalise: str = setting(
        "mean",
        "log-probability of a branch: mean or sum over its tokens",
        words=("mean", "sum"),
        decides=True,
    )
    pairing: str = setting(
        "all",
        "all safe x unsafe, one pair, or the RPO code's pooled pairs",
        words=("all", "one", "rpo_code"),
        decides=True,
    )
    max_pairs: int = setting(
        8, "most pairs of a question, for pairing rpo_code", low=1, decides=True
    )
    branch_points: str = setting(
        "all", "first: whole replies only, as in ORPO and DPO", words=("all", "first"), decides=True
    )
    reference: str = setting(
        "dataset",
        "L_ref on the record's path, the chosen branch, none",
        words=("dataset", "chosen", "none"),
        decides=True,
    )
    odds_from: str = setting(
        "branch",
        "odds over own tokens; divergence: after a pair's prefix",
        words=("branch", "divergence"),
        decides=True,
    )
    ref_reduction: str = setting(
        "question",
        "every question counts the same, or every token",
        words=("question", "token"),
        decides=True,
    )
    exp_denominator: str = setting(
        "paired",
        "L_exp is the mean over questions with a pair, or over all",
        words=("paired", "all"),
        decides=True,
    )
    ref_coef: float = setting(1.0, "weight of L_ref", low=0, decides=True)
    branch_coef: float = setting(
        0.0,
        "what the safe branches of a question count in L_ref, its reference path being 1",
        low=0,
        decides=True,
    )
    beta: float = setting(
        0.1, "of the contrasts dpo, simpo and ipo", low=0, low_open=True, decides=True
    )
    gamma: float = setting(0.5, "target margin of simpo", low=0, decides=True)


@dataclass(frozen=True)
class PackSettings:
    """The rows of a batch."""

    row_tokens: int = setting(
        0,
        "length of a row of packed trees; 0: fit to the longest tree",
        low=0,
        decides=True,
        host_only=True,
    )
    rows: int = setting(8, "rows of the global batch, whatever the mesh is", low=1, decides=True)
    questions: int = setting(
        0,
        "of every step, in as many rows as the fullest one needs; 0: as many as pack.rows hold",
        low=0,
        decides=True,
    )
    too_long: str = setting(
        "refuse",
        "trees of which one branch point is longer than a row",
        words=("refuse", "drop"),
        decides=True,
        host_only=True,
    )


@dataclass(frozen=True)
class TrainSettings:
    """The optimizer, its schedule, and what a run keeps and tells."""

    steps: int = setting(100, "optimizer steps", low=1, decides=True, host_only=True)
    optimizer: str = setting(
        "adamw",
        "adafactor: factored second moments, no first ones",
        words=("adamw", "adafactor"),
        decides=True,
    )
    param_dtype: str = setting(
        "float32",
        "bfloat16: weights in it, their master copy in float32",
        words=DTYPES,
        decides=True,
    )
    learning_rate: float = setting(
        1e-5, "peak, after the warm-up", low=0, low_open=True, decides=True, host_only=True
    )
    warmup_steps: int = setting(10, "linear, up to the peak", low=0, decides=True, host_only=True)
    schedule: str = setting(
        "cosine",
        "after the warm-up, down to 0 unless constant",
        words=("cosine", "linear", "constant"),
        decides=True,
        host_only=True,
    )
    weight_decay: float = setting(
        0.0, "decoupled; on kernels, adapters and embeddings", low=0, decides=True, host_only=True
    )
    b1: float = setting(
        0.9, "AdamW: decay of the first moment", low=0, high=1, decides=True, host_only=True
    )
    b2: float = setting(
        0.95, "AdamW: decay of the second moment", low=0, high=1, decides=True, host_only=True
    )
    eps: float = setting(
        1e-8,
        "AdamW: added to the root of the second moment",
        low=0,
        low_open=True,
        decides=True,
        host_only=True,
    )
    clip_norm: float = setting(
        1.0, "largest global gradient norm; 0: no clipping", low=0, decides=True
    )
    freeze: tuple[str, ...] = setting(
        (),
        'regexes over parameter paths that stay as they are: ("vision/.*",)',
        regexes=True,
        decides=True,
    )
    accumulate: int = setting(
        1, "slices that a batch is computed in; the result is the same", low=1, decides=False
    )
    save_every: int = setting(
        50,
        "steps between checkpoints; the last step is always saved",
        low=1,
        decides=False,
        host_only=True,
    )
    keep: int = setting(2, "newest checkpoints that are kept", low=1, decides=False, host_only=True)
    keep_best: int = setting(
        0,
        "besides: so many with the best mean metric since the save before",
        low=0,
        decides=False,
        host_only=True,
    )
    best_metric: str = setting(
        "loss",
        "what best means: losses low, rewards and rates high",
        words=tuple(BEST_METRICS),
        decides=False,
        host_only=True,
    )
    patience: int = setting(
        0,
        "end when best_metric, one of validation/, is no better after so many looks; 0: never",
        low=0,
        decides=False,
        host_only=True,
    )
    log_every: int = setting(
        1, "steps between lines of metrics.jsonl", low=1, decides=False, host_only=True
    )
    watchdog_minutes: float = setting(
        30.0,
        "without a step: stacks are written, then it ends; 0: off",
        low=0,
        decides=False,
        host_only=True,
    )
    compilation_cache: str = setting(
        "auto",
        "folder; auto: the user's, not for CPU; off: none",
        required=True,
        decides=False,
        host_only=True,
    )
    report_to: str = setting(
        "none",
        "besides metrics.jsonl: tensorboard,wandb,trackio (extras)",
        names=("none", "tensorboard", "wandb", "trackio"),
        decides=False,
        host_only=True,
    )


@dataclass(frozen=True)
class LoraSettings:
    """Adapters beside frozen weights."""

    rank: int = setting(
        0,
        "train adapters of this rank on the frozen policy; 0: train the policy",
        low=0,
        decides=True,
    )
    alpha: float = setting(
        16.0, "adapters count alpha / rank times", low=0, low_open=True, decides=True
    )
    use_rslora: bool = setting(
        False, "alpha / sqrt(rank) instead (rank stabilisation)", decides=True
    )
    dropout: float = setting(
        0.0,
        "of their inputs; above 0 a run cannot change train.accumulate",
        low=0,
        high=0.9,
        decides=True,
    )
    targets: tuple[str, ...] = setting(
        ("layers/.*/kernel",),
        "regexes over the parameter paths of kernels",
        regexes=True,
        decides=True,
    )
    base_dtype: str = setting(
        "float32",
        "of the frozen weights; bfloat16 takes half the memory",
        words=DTYPES,
        decides=True,
    )


@dataclass(frozen=True)
class MeshSettings:
    """How many devices each axis of the mesh takes, in training; see explore.mesh for sampling."""

    data: int = setting(1, "replicas", low=1, decides=False)
    fsdp: int = setting(
        -1,
        "parts of parameters and optimizer state; -1: all other devices",
        low=1,
        also=(-1,),
        decides=False,
    )
    tensor: int = setting(1, "parts of each matrix multiplication", low=1, decides=False)


@dataclass(frozen=True)
class ProcessesSettings:
    """Which process of a job this one is; most are found: docs/runs.md."""

    coordinator: str = setting(
        "", "HOST:PORT of process 0; empty: SRPO_COORDINATOR, or found", decides=False
    )
    index: int = setting(
        -1,
        "of this process, from 0; -1: SRPO_PROCESS_ID, or found",
        low=0,
        also=(-1,),
        decides=False,
    )
    count: int = setting(
        0, "of all processes; 0: SRPO_NUM_PROCESSES, or found", low=0, decides=False
    )
    heartbeat_seconds: int = setting(
        0, "silent so long is dead; 0: 30 on one host, else 100", low=5, also=(0,), decides=False
    )
