"""A template for your own records on a real Qwen2.5-VL checkpoint. Copy it and fill in the paths.

    srpo explore --config=configs/photos.py --workdir=runs/mine \\
        --config.model.path=/models/Qwen2.5-VL-3B-Instruct --config.arbiter.kind=prompted
    srpo judge, train, eval  (the same flags; running one again resumes)

The records are JSONL, one question a line, with the pictures in a folder beside it: the format is
described in docs/data.md. Who judges has to be named; docs/own_questions.md shows a whole file.
"""

from ml_collections import ConfigDict

from srpo_jax.configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.name = "photos"

    config.model.path = ""  # required: a downloaded HF directory, say Qwen2.5-VL-3B-Instruct
    config.model.dtype = "bfloat16"  # activations; parameters stay float32
    config.model.remat = "full"  # recompute the layers: long rows with pictures need the memory

    config.data.train_records = "data/train.jsonl"
    config.data.test_records = "data/test.jsonl"
    config.arbiter.kind = ""  # required: who judges your branches
    config.arbiter.scope = "path"  # a branch is safe when every step and the reply are

    config.explore.branches = 4
    config.explore.max_new_tokens = 512
    config.explore.shards = 64  # an interrupted run loses at most one shard

    config.objective.lambda_exp = 0.3
    config.train.steps = 500
    config.train.learning_rate = 5e-6
    config.train.warmup_steps = 50
    config.train.freeze = ("vision/.*",)  # pictures are seen as before; only the words change
    config.train.save_every = 100
    return config.lock()
