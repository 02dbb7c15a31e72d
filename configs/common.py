"""Every setting there is, with its default. An experiment file starts from this and changes a few.

Allowed values are checked by srpo_jax/config/check.py; docs/configuration.md is made from the
comments below (`python -m srpo_jax.config.docs`). 0 means "no limit" where a comment says so.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = "srpo"  # name of the run: shown in the report and in the model card
    config.seed = 0  # all randomness is a function of (seed, step)

    config.model = ConfigDict()
    config.model.path = ""  # HF directory of the base policy, with its processor
    config.model.dtype = "float32"  # of the computation; parameters: see train.param_dtype
    config.model.remat = "none"  # what layers keep for the backward pass: docs/performance.md
    config.model.attention = "auto"  # fastest for the platform and length; xla: the plain reference

    config.data = ConfigDict()
    config.data.train_records = ""  # JSONL of the questions to explore and train on
    config.data.test_records = ""  # JSONL of the held-out questions
    config.data.trees = ""  # folder of the trees to train on; empty: WORKDIR/trees

    config.explore = ConfigDict()
    config.explore.branches = 4  # K: continuations sampled at every branch point
    config.explore.temperature = 1.0  # of the sampler; 0 is greedy
    config.explore.max_new_tokens = 256  # a branch that has not ended by then is unfinished
    config.explore.batch = 4  # questions that are sampled together
    config.explore.num_questions = 0  # explore so many of the records, half of them risky; 0: all
    config.explore.branch_points = "all"  # after every prefix; first: whole replies only
    config.explore.reference = "dataset"  # path to branch from; self: the policy's first safe one
    config.explore.shards = 4  # files that the trees are written to; each is resumable

    config.arbiter = ConfigDict()
    config.arbiter.kind = ""  # who judges a branch
    config.arbiter.scope = "reply"  # what makes a branch safe: its reply, or every step of its path
    config.arbiter.require_effective = False  # a safe branch must also be of use to count as chosen

    config.objective = ConfigDict()
    config.objective.lambda_exp = 0.3  # weight of L_exp; 0 is SFT on the reference path
    config.objective.contrast = "odds_ratio"  # the term that compares a safe and an unsafe branch
    config.objective.normalise = "mean"  # log-probability of a branch: mean or sum over its tokens
    config.objective.pairing = "all"  # all safe x unsafe, one pair, or the RPO code's pooled pairs
    config.objective.max_pairs = 8  # most pairs of a question, for pairing rpo_code
    config.objective.branch_points = "all"  # first: whole replies only, as in ORPO and DPO
    config.objective.reference = "dataset"  # L_ref on the record's path, the chosen branch, none
    config.objective.odds_from = "branch"  # odds over own tokens; divergence: after a pair's prefix
    config.objective.ref_reduction = "question"  # every question counts the same, or every token
    config.objective.ref_coef = 1.0  # weight of L_ref
    config.objective.beta = 0.1  # of the contrasts dpo, simpo and ipo
    config.objective.gamma = 0.5  # target margin of simpo

    config.pack = ConfigDict()
    config.pack.row_tokens = 0  # length of a row of packed trees; 0: fit to the longest tree
    config.pack.rows = 8  # rows of the global batch, whatever the mesh is

    config.train = ConfigDict()
    config.train.steps = 100  # optimizer steps
    config.train.optimizer = "adamw"  # adafactor: factored second moments, no first ones
    config.train.param_dtype = "float32"  # bfloat16: weights in it, their master copy in float32
    config.train.learning_rate = 1e-5  # peak, after the warm-up
    config.train.warmup_steps = 10  # linear, up to the peak
    config.train.schedule = "cosine"  # after the warm-up, down to 0 unless constant
    config.train.weight_decay = 0.0  # decoupled; on kernels, adapters and embeddings
    config.train.b1 = 0.9  # AdamW: decay of the first moment
    config.train.b2 = 0.95  # AdamW: decay of the second moment
    config.train.eps = 1e-8  # AdamW: added to the root of the second moment
    config.train.clip_norm = 1.0  # largest global gradient norm; 0: no clipping
    config.train.freeze = ()  # regexes over parameter paths that stay as they are: ("vision/.*",)
    config.train.accumulate = 1  # slices that a batch is computed in; the result is the same
    config.train.save_every = 50  # steps between checkpoints; the last step is always saved
    config.train.keep = 2  # newest checkpoints that are kept
    config.train.keep_best = 0  # besides: so many with the best mean metric since the save before
    config.train.best_metric = "loss"  # what best means: losses low, rewards high
    config.train.log_every = 1  # steps between lines of metrics.jsonl
    config.train.watchdog_minutes = 30.0  # without a step: stacks are written, then it ends; 0: off
    config.train.compilation_cache = "auto"  # folder; auto: the user's, not for CPU; off: none
    config.train.report_to = "none"  # besides metrics.jsonl: tensorboard,wandb,trackio (extras)

    config.lora = ConfigDict()
    config.lora.rank = 0  # train adapters of this rank on the frozen policy; 0: train the policy
    config.lora.alpha = 16.0  # adapters count alpha / rank times
    config.lora.use_rslora = False  # alpha / sqrt(rank) instead (rank stabilisation)
    config.lora.dropout = 0.0  # of their inputs; above 0 a run cannot change train.accumulate
    config.lora.targets = ("layers/.*/kernel",)  # regexes over the parameter paths of kernels
    config.lora.base_dtype = "float32"  # of the frozen weights; bfloat16 takes half the memory

    config.mesh = ConfigDict()
    config.mesh.data = 1  # replicas
    config.mesh.fsdp = -1  # parts of parameters and optimizer state; -1: all other devices
    config.mesh.tensor = 1  # parts of each matrix multiplication

    config.processes = ConfigDict()
    config.processes.coordinator = ""  # HOST:PORT of process 0; empty: SRPO_COORDINATOR, or found
    config.processes.index = -1  # of this process, from 0; -1: SRPO_PROCESS_ID, or found
    config.processes.count = 0  # of all processes; 0: SRPO_NUM_PROCESSES, or found
    config.processes.heartbeat_seconds = 0  # silent so long is dead; 0: 30 on one host, else 100

    config.eval = ConfigDict()
    config.eval.batch = 8  # questions that are answered together
    config.eval.max_new_tokens = 256  # a reply that has not ended by then is unfinished
    config.eval.num_questions = 0  # answer so many of the records, half of them risky; 0: all
    config.eval.split = "test"  # which records are answered
    return config.lock()
