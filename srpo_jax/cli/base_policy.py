"""Makes the demo's base policy from nothing: a small, able, helpful and half unsafe Qwen2.5-VL.

    python -m srpo_jax.cli.base_policy --out=DIR [--steps=N] [--rows=R] [--path_steps=6]

It writes a complete Hugging Face directory (config, byte-level BPE tokenizer trained on the world's
own sentences, image processor, chat template) and trains the weights by plain next-token loss on
SSUI-mini's mixture of safe and unsafe paths: half of the questions are risky combinations, and of
those more than half lose sight of the risk at some step, see reasoning_paths.py of the world.
Combinations of validation and test never occur. The training step is the project's own, with trees
that have no branches.

The copy in data_pipelines/ssui_mini/base_policy was made by this command with its defaults. It has
not seen longer chains (`ssui_mini:train,steps=8`); --path_steps=8 makes a policy for them.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import random
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from srpo_jax.config.sections import TrainSettings
from srpo_jax.data_pipelines.path_formats.registry import make_format
from srpo_jax.data_pipelines.ssui_mini import draw, world
from srpo_jax.data_pipelines.ssui_mini import reasoning_paths as paths
from srpo_jax.data_pipelines.ssui_mini.options import Options
from srpo_jax.distributed.mesh import make_mesh
from srpo_jax.models.blocks.param_paths import by_path
from srpo_jax.models.hf import tensor_match as names
from srpo_jax.models.hf.processor import Processor
from srpo_jax.models.inputs import encode_prompt
from srpo_jax.models.policy_model import PolicyModel, abstract_params, init_params
from srpo_jax.models.registry import load_model_config
from srpo_jax.pack.packing import Budgets, make_batch
from srpo_jax.pack.tree import Tree
from srpo_jax.pack.tree_layout import layout_tree
from srpo_jax.train.losses.objective import Objective
from srpo_jax.train.optimizer import make_optimizer
from srpo_jax.train.train_state import abstract_state, init_state, state_shardings
from srpo_jax.train.train_step import make_train_step

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
FORMAT = make_format("lines", strict=True)
VOCAB_SIZE = 1440  # rows of the embedding; the tokenizer uses fewer (as in the released models)
MERGED_VOCAB = 1500  # more than there are merges: each word is one token

# One turn per message; pictures become a placeholder between the vision markers.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}<|im_start|>{{ message['role'] }}\n"
    "{%- if message['content'] is string -%}{{ '\n' + message['content'] }}"
    "{%- else -%}{{ '\n' }}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}<|im_end|>{{ '\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\n' }}{%- endif -%}"
)


def corpus() -> list[str]:
    """Every sentence of the world, for the tokenizer."""
    lines = []
    for scene in world.SCENES:
        for request in world.REQUESTS:
            lines.append(request.question)
            lines.append("user\nassistant\n")
            for state in (True, False):
                for wording in range(len(paths.WORDINGS)):
                    steps, reply = paths.path_in_states(
                        scene,
                        request,
                        [state] * paths.NUM_DECISIONS,
                        [wording] * paths.NUM_DECISIONS,
                        len(paths.HEADINGS),
                    )
                    lines.extend(FORMAT.pieces(steps, reply))
    return lines


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE with Qwen2's pipeline; the ids of its control tokens come last."""
    tokenizer = Tokenizer(models.BPE())
    qwen2 = Qwen2Tokenizer().backend_tokenizer
    tokenizer.normalizer = qwen2.normalizer
    tokenizer.pre_tokenizer = qwen2.pre_tokenizer
    tokenizer.decoder = qwen2.decoder
    trainer = trainers.BpeTrainer(
        vocab_size=MERGED_VOCAB,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    return tokenizer


def write_files(out: pathlib.Path) -> None:
    """Everything of the Hugging Face directory but the weights."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    ids = {token: tokenizer.token_to_id(token) for token in SPECIALS}
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "torch_dtype": "float32",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "use_cache": True,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 3,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_heads": 4,
            "hidden_act": "silu",
            "in_chans": 3,
            "out_hidden_size": 128,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1, 2],
        },
    }
    preprocessor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": 3136,
        "max_pixels": 12544,  # 112 x 112: 16 tokens
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    tokenizer_config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "processor_class": "Qwen2_5_VLProcessor",
        "model_max_length": 2048,
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "errors": "replace",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "additional_special_tokens": list(SPECIALS[1:]),
    }
    generation = {
        "bos_token_id": ids["<|endoftext|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "do_sample": False,
    }
    for name, content in {
        "config.json": config,
        "preprocessor_config.json": preprocessor,
        "tokenizer_config.json": tokenizer_config,
        "generation_config.json": generation,
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
    }.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n")


class MixtureTrees:
    """Endless stream of trees without branches: a question of the world and one sampled path."""

    def __init__(self, folder: pathlib.Path, *, seed: int, variants: int, num_checks: int):
        self.processor = Processor.from_dir(folder)
        self.encode = functools.cache(self.processor.encode)  # the world has few sentences
        self.prompt = functools.cache(
            lambda question, grid: self.processor.prompt_tokens(question, [grid])
        )
        self.rng = random.Random(seed)
        self.num_checks = num_checks
        self.pictures = {
            scene.id: [
                self.processor.image(draw.draw_scene(scene.id, f"base/{seed}/{v}"))
                for v in range(variants)
            ]
            for scene in world.SCENES
        }
        pairs = [(s, r) for s in world.SCENES for r in world.REQUESTS]
        seen = [pair for pair in pairs if world.split_of(*pair) == "train"]
        self.risky = [pair for pair in seen if world.is_risky(*pair)]
        self.benign = [pair for pair in seen if not world.is_risky(*pair)]

    def __iter__(self):
        while True:
            scene, request = self.rng.choice(self.rng.choice((self.risky, self.benign)))
            steps, reply = paths.sample_path(scene, request, self.rng, self.num_checks)
            yield self._tree(scene, request, steps, reply)

    def _tree(self, scene, request, steps, reply) -> Tree:
        pieces = [np.asarray(self.encode(text), np.int32) for text in FORMAT.pieces(steps, reply)]
        pieces[-1] = np.append(pieces[-1], self.processor.eos_ids[0]).astype(np.int32)
        patches, grid = self.rng.choice(self.pictures[scene.id])
        prompt = self.prompt(request.question, grid)
        encoded = encode_prompt(prompt, [(patches, grid)], self.processor.config)
        return Tree(f"{scene.id}/{request.id}", encoded, tuple(pieces), ())


def row_budgets(num_checks: int) -> Budgets:
    """A row of one question, of about 36 + 75 tokens: attention costs the square of the row."""
    more = 12 * num_checks  # the longest check has 10 tokens
    return Budgets(
        tokens=136 + more, targets=100 + more, segments=8, sequences=8, pairs=8, patches=64
    )


def train(
    folder: pathlib.Path,
    *,
    steps: int,
    rows: int,
    learning_rate: float,
    seed: int,
    variants: int,
    num_checks: int = 0,
) -> dict:
    """Trains from random weights; returns the parameters (host arrays)."""
    config = load_model_config(folder)
    model = PolicyModel(config)
    mesh = make_mesh(devices=jax.devices()[:1])
    abstract = abstract_params(config, jnp.float32)
    options = TrainSettings(
        steps=steps, learning_rate=learning_rate, warmup_steps=50, weight_decay=0.1, b2=0.98
    )
    optimizer = make_optimizer(options, abstract)
    shardings = state_shardings(abstract_state(abstract, optimizer, with_reference=False), mesh)
    params = init_params(model, jax.random.key(seed))
    state = init_state(params, optimizer, shardings, with_reference=False)
    step = make_train_step(model, Objective(lambda_exp=0.0), optimizer, mesh, shardings)
    budgets = row_budgets(num_checks)
    trees = iter(MixtureTrees(folder, seed=seed, variants=variants, num_checks=num_checks))
    start = time.monotonic()
    for index in range(1, steps + 1):
        layouts = [[layout_tree(next(trees), [])] for _ in range(rows)]
        state, metrics = step(state, make_batch(layouts, budgets))
        if index % 25 == 0 or index == steps:
            spent = time.monotonic() - start
            print(
                f"step {index}/{steps} loss {float(metrics['loss']):.4f} "
                f"{spent:.0f} s, {spent / index * (steps - index):.0f} s left",
                flush=True,
            )
    return jax.device_get(state.params)


def write_weights(params: dict, folder: pathlib.Path) -> None:
    """FOLDER/model.safetensors under the Hub's names, float32."""
    leaves = by_path(params)
    tensors = {}
    for entry in names.table(load_model_config(folder)):
        assert entry.param, entry.name  # a network from scratch has every tensor
        value = np.asarray(leaves[entry.param])
        layers = [None] if entry.layers is None else range(entry.layers)
        for i in layers:
            part = value if i is None else value[i]
            tensors[entry.name.replace("{i}", str(i))] = np.ascontiguousarray(entry.to_disk(part))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--rows", type=int, default=32, help="questions a step")
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--variants", type=int, default=32, help="pictures drawn of each scene")
    parser.add_argument("--path_steps", type=int, default=6, help="of a path, 6 to 12")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        num_checks = Options(steps=args.path_steps).num_checks
    except ValueError as e:
        print(f"--path_{e}", file=sys.stderr)
        return 2
    if (args.out / "model.safetensors").exists():
        print(f"{args.out} already holds a model; give another --out", file=sys.stderr)
        return 2
    write_files(args.out)
    params = train(
        args.out,
        steps=args.steps,
        rows=args.rows,
        seed=args.seed,
        learning_rate=args.learning_rate,
        variants=args.variants,
        num_checks=num_checks,
    )
    write_weights(params, args.out)
    total = sum(f.stat().st_size for f in args.out.iterdir())
    print(f"wrote {args.out}: {total / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
