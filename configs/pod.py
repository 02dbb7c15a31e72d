"""Full fine-tuning of a 7B on a TPU pod slice. Copy it and fill in the paths.

    srpo plan --config=configs/pod.py --config.model.path=DIR --topology=v5e:8x8
    srpo train --config=configs/pod.py ... with the lines that the plan says to use

Written for 64 chips of v5e (16 GB each): for another slice, or another model, ask `srpo plan`,
which needs no TPU and of DIR only config.json. The arbiter has to be named, as in photos.py.
Policy, data and workdir may lie in a bucket (gs://BUCKET/PATH); or the workdir is a folder that all
hosts see: docs/places.md says what that must do.
"""

from ml_collections import ConfigDict

from srpo_jax.configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.name = "pod"

    config.model.path = ""  # required: a HF directory, or gs://: say Qwen2.5-VL-7B-Instruct
    config.model.dtype = "bfloat16"  # activations; parameters and optimizer stay float32
    config.model.remat = "full"  # without it a row's activations alone are several times 16 GB

    config.data.train_records = "data/train.jsonl"
    config.data.test_records = "data/test.jsonl"
    config.arbiter.kind = ""  # required: who judges your branches
    config.arbiter.scope = "path"

    config.explore.branches = 8  # K; about 7000 tokens a question with a picture of 1024 tokens
    config.explore.max_new_tokens = 512
    config.explore.shards = 256

    config.pack.row_tokens = 8192  # longer rows are filled better; 16 GB chips have no room
    config.pack.rows = 64  # one per chip: about 64 questions and half a million tokens a step

    config.mesh.data = 1  # of training: explore and eval have their own, explore.mesh
    config.mesh.fsdp = 64  # parameters, gradients and moments: 16 bytes x 8.3e9 / 64 = 2 GB a chip
    config.mesh.tensor = 1

    config.train.steps = 500
    config.train.learning_rate = 5e-6
    config.train.warmup_steps = 50
    config.train.save_every = 50  # a checkpoint is 100 GB: parameters and both moments
    return config.lock()
