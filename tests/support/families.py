"""Every model family as the tests see it: tiny checkpoints, and how transformers answers them.

A case is a module tests/tiny_*.py and the options of its `make`. Tests that hold for all families
are written once, over `CASES`; what is particular to a family is tested beside its module.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import pathlib
from types import ModuleType
from typing import Any

import jax
import numpy as np

from srpo_jax.models.hf.load import load_params
from srpo_jax.models.hf.processor import Processor
from srpo_jax.models.inputs import causal_row, pad_rows
from srpo_jax.models.policy_model import PolicyModel, head_matrix
from tests.support import (
    tiny,
    tiny_internvl,
    tiny_llava,
    tiny_llava_next,
    tiny_qwen3_vl,
    tiny_smolvlm,
)

# Compiling is most of the time of these tests; this halves it and changes no promise.
compile_fast = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@dataclasses.dataclass(frozen=True)
class Case:
    """module: has MODEL_TYPE, TIED, SIZES, LAYOUTS, make and oracle_inputs (as tiny.py).
    in_front: its template writes all pictures of a message in front of the texts."""

    name: str
    module: ModuleType
    options: tuple[tuple[str, Any], ...] = ()
    in_front: bool = False

    def make(self, folder: pathlib.Path, **more: Any) -> pathlib.Path:
        return self.module.make(folder, **dict(self.options), **more)

    @property
    def questions(self) -> tuple[tuple[str, int], ...]:
        """(question, number of its pictures)."""
        return (QUESTIONS_IN_FRONT if self.in_front else QUESTIONS[:1]) + QUESTIONS[1:]

    def pictures(self, count: int, seed: int = 0) -> list:
        """Pictures of different sizes, from the module's list."""
        sizes = self.module.SIZES
        return [tiny.picture(*sizes[(seed + i) % len(sizes)], seed=seed + i) for i in range(count)]


CASES = {
    case.name: case
    for case in (
        Case("qwen2_5_vl", tiny),
        Case("qwen3_vl", tiny_qwen3_vl),
        Case("internvl3", tiny_internvl),
        Case("internvl3_5", tiny_internvl, (("text", "qwen3"),)),
        Case("llava", tiny_llava, in_front=True),
        Case("llava_next", tiny_llava_next, in_front=True),
        Case("smolvlm", tiny_smolvlm),
        Case("idefics3", tiny_smolvlm, (("model_type", "idefics3"),)),
    )
}
QUESTIONS = (
    ("Compare <image> with <image>, please.", 2),
    ("What is in this image?", 1),
    ("No picture here.", 0),
)
QUESTIONS_IN_FRONT = (("Compare these two, please.", 2),)


class Loaded:
    """A checkpoint as we load it, three prompts (two pictures, one, none), and transformers'."""

    def __init__(self, case: Case, folder: pathlib.Path):
        self.case, self.folder = case, folder
        self.processor = Processor.from_dir(self.folder)
        self.config = self.processor.config
        self.params = load_params(self.folder, self.config, dtype=np.float32)
        self.model = PolicyModel(self.config)
        self.pictures = [
            case.pictures(count, seed=i) for i, (_, count) in enumerate(case.questions)
        ]
        self.prompts = [
            self.processor.encode_question(question, pictures)
            for (question, _), pictures in zip(case.questions, self.pictures)
        ]

    def asking(self, prompts: list, pictures: list[list]) -> Loaded:
        """The same checkpoint with other prompts, and the pictures that each of them shows."""
        other = copy.copy(self)
        other.prompts, other.pictures = prompts, pictures
        return other

    def room(self, extra: int) -> dict[str, int]:
        """Budgets of a row that hold every prompt and `extra` tokens, and a unit of padding."""
        unit = self.config.vision.patch_unit
        tokens = max(len(prompt.tokens) for prompt in self.prompts) + extra + 3
        patches = max(len(prompt.patches) for prompt in self.prompts)
        return {"tokens": tokens, "patches": (-(-patches // unit) + 1) * unit}

    def logits(self, continuations, params=None) -> list[np.ndarray]:
        """Per prompt float32 [n + m, V] of the prompt and its continuation, one padded batch."""
        rows = [causal_row(p, c) for p, c in zip(self.prompts, continuations, strict=True)]
        batch = pad_rows(rows, **self.room(max(map(len, continuations))))

        @compile_fast
        def run(params, batch):
            return self.model.apply({"params": params}, batch) @ head_matrix(params, self.config)

        found = np.asarray(run(self.params if params is None else params, batch))
        vocab = self.config.text.vocab_size
        return [rows[: len(r["tokens"]), :vocab] for rows, r in zip(found, rows)]

    def oracle_logits(self, continuations, folder=None) -> list[np.ndarray]:
        """The same by transformers, one prompt at a time."""
        import torch

        model = oracle(folder or self.folder)
        found = []
        for prompt, pictures, more in zip(self.prompts, self.pictures, continuations, strict=True):
            inputs = self._oracle_inputs([*prompt.tokens, *more], pictures, folder)
            reset(model)
            with torch.no_grad():
                found.append(model(**inputs).logits[0].float().numpy())
        return found

    def oracle_greedy(self, new_tokens: int) -> list[list[int]]:
        """transformers' greedy answers, under the ids that our policy may sample."""
        import torch

        model = oracle(self.folder)
        blocked = list(self.processor.suppress_ids) or None
        found = []
        for prompt, pictures in zip(self.prompts, self.pictures):
            inputs = self._oracle_inputs(prompt.tokens, pictures)
            reset(model)
            with torch.no_grad():
                out = model.generate(
                    **inputs,
                    max_new_tokens=new_tokens,
                    do_sample=False,
                    suppress_tokens=blocked,
                    eos_token_id=list(self.processor.eos_ids),
                    attention_mask=torch.ones_like(inputs["input_ids"]),
                )
            found.append(out[0, len(prompt.tokens) :].tolist())
        return found

    def _oracle_inputs(self, tokens, pictures, folder=None) -> dict:
        return self.case.module.oracle_inputs(folder or self.folder, tokens, pictures)


@functools.lru_cache(maxsize=1)
def oracle(folder: pathlib.Path):
    """transformers' model of a folder in float32; every key must have been found."""
    import torch
    from transformers import AutoModelForImageTextToText

    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], (kind, info[kind])
    return model.eval()


def reset(model) -> None:
    """Forgets what a Qwen model keeps of the prompt before."""
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None
