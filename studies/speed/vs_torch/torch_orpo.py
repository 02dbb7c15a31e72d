"""The other side of this comparison: Qwen2.5-VL in transformers, trained on pairs as trainers do
it.

The arithmetic is that of RPO's trainer, which is LLaMA-Factory's ORPO (and, but for the common
beginning, TRL's) in a subclass; written here from its formulas. Of n pairs, the rows of the chosen
sides and then those of the rejected ones go through the model in one forward, padded at the right
to the longest; every row carries its picture, and logits are made at all positions:

    labels   = the tokens after the question (prefix and branch); question and padding are masked
    mean_c   = mean over the labels of log p, of the chosen row
    odds(x)  = x - log(1 - exp(x)),  x the mean over the labels after the pair's common beginning
    loss     = mean over pairs of  -mean_c + lambda * -log_sigmoid(odds(chosen) - odds(rejected))

which srpo_jax computes with objective.reference=chosen, odds_from=divergence, pairing=rpo_code.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.pack.tree import Tree
from srpo_jax.pack.tree_layout import Pair
from studies.speed.timing import Call

FROZEN = "visual"  # LLaMA-Factory's default for tower and projector


def write_checkpoint(folder: pathlib.Path, config: ModelConfig, seed: int = 0) -> None:
    """A random Qwen2.5-VL of these sizes, as transformers saves it."""
    text, vision = config.text, config.vision
    hf = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            num_hidden_layers=text.num_layers,
            num_attention_heads=text.num_heads,
            num_key_value_heads=text.num_kv_heads,
            intermediate_size=text.intermediate_size,
            rms_norm_eps=text.rms_norm_eps,
            max_position_embeddings=32768,
            hidden_act="silu",
            use_sliding_window=False,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            rope_parameters=dict(
                rope_type="default",
                rope_theta=text.rope_theta,
                mrope_section=list(text.mrope_section),
            ),
        ),
        vision_config=dict(
            depth=vision.depth,
            hidden_size=vision.hidden_size,
            num_heads=vision.num_heads,
            intermediate_size=vision.intermediate_size,
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            in_channels=vision.in_channels,
            spatial_merge_size=vision.spatial_merge_size,
            window_size=vision.window_size,
            fullatt_block_indexes=list(vision.fullatt_block_indexes),
            hidden_act="silu",
            out_hidden_size=vision.out_hidden_size,
        ),
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        vision_start_token_id=config.vision_start_token_id,
        vision_end_token_id=config.vision_end_token_id,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(hf)
    with torch.no_grad():  # norms and biases too: a zero bias would hide a wrong one
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)


class Pairwise:
    """The step over all `pairs`, `at_once` in a micro-batch; the interface of timing.Program."""

    def __init__(
        self,
        folder: pathlib.Path,
        tree: Tree,
        pixels: np.ndarray,
        grid,
        pairs: list[Pair],
        *,
        at_once: int,
        lam: float,
        attention: str,
        checkpointing: bool,
    ):
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention
        ).train()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(FROZEN not in name)
        if checkpointing:
            self.model.activation_checkpointing_enable()
        self.tree, self.lam, self.count = tree, lam, len(pairs)
        self.pixels, self.grid = torch.from_numpy(pixels), torch.tensor([grid])
        groups = [pairs[i : i + at_once] for i in range(0, len(pairs), at_once)]
        self.pieces = [self._collate(group) for group in groups]
        sizes = [piece["input_ids"].numel() for piece in self.pieces]
        self.shares = [size / sum(sizes) for size in sizes]
        self.calls: list[Call] = []
        self.loss = 0.0
        self.real_tokens = sum(int(piece["attention_mask"].sum()) for piece in self.pieces)
        self.padded_tokens, self.rows = sum(sizes), 2 * len(pairs)

    def _collate(self, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
        tree, prompt = self.tree, torch.from_numpy(self.tree.prompt.tokens).long()
        order = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
        responses = [
            torch.from_numpy(
                np.concatenate([tree.prefix(tree.branches[k].at), tree.branches[k].tokens])
            ).long()
            for k in order
        ]
        ids = [torch.cat([prompt, response]) for response in responses]
        labels = [torch.cat([torch.full_like(prompt, -100), response]) for response in responses]
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad(ids, batch_first=True, padding_value=0)
        labels = pad(labels, batch_first=True, padding_value=-100)
        own = (
            torch.arange(ids.shape[1])
            < torch.tensor([len(prompt) + len(response) for response in responses])[:, None]
        )
        image = self.model.config.image_token_id
        return {
            "input_ids": ids,
            "labels": labels,
            "attention_mask": own.long(),
            "mm_token_type_ids": (ids == image).int(),
        }

    def call(self, _=None) -> None:
        """Forward and backward of the next micro-batch, gradients added up, timed."""
        number = len(self.calls) % len(self.pieces)
        piece = self.pieces[number]
        wall, cpu = time.perf_counter(), time.process_time()
        loss = self._loss(piece)
        loss.backward()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.loss += float(loss.detach())
        self.calls.append(Call(wall, cpu, self.shares[number]))

    def _loss(self, piece: dict[str, torch.Tensor]) -> torch.Tensor:
        labels = piece["labels"]
        rows = len(labels)
        logits = self.model(
            **{name: x for name, x in piece.items() if name != "labels"},
            pixel_values=self.pixels.repeat(rows, 1),
            image_grid_thw=self.grid.repeat(rows, 1),
            use_cache=False,
        ).logits.float()
        chosen, rejected = mean_logps(logits, labels).chunk(2)
        sft = -chosen
        chosen, rejected = mean_logps(logits, without_common_beginning(labels)).chunk(2)
        terms = sft - self.lam * F.logsigmoid(log_odds(chosen) - log_odds(rejected))
        return terms.sum() / self.count

    def result(self) -> tuple[float, float]:
        """(loss, norm of all gradients) of one pass over the pieces."""
        passes = len(self.calls) / len(self.pieces)
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        return self.loss / passes, float(torch.sqrt(sum((g * g).sum() for g in grads))) / passes


def mean_logps(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[rows]: mean of log p over the tokens whose label is not -100."""
    logits, labels = logits[:, :-1], labels[:, 1:]
    mask = labels != -100
    logps = torch.log_softmax(logits, -1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return (logps * mask).sum(-1) / mask.sum(-1)


def without_common_beginning(labels: torch.Tensor) -> torch.Tensor:
    """The labels of both sides of each pair with their longest common beginning masked as well."""
    chosen, rejected = labels.chunk(2)
    same = torch.cumprod((chosen == rejected).long(), dim=-1).bool()
    return labels.masked_fill(torch.cat([same, same]), -100)


def log_odds(x: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of p = exp(x)."""
    return x - torch.log(-torch.expm1(x))
