"""A processor and a prompt together: a question, as it is really asked, becomes model inputs.

Exploring, training and evaluating all ask through this class. The demonstrations' pictures are
decoded and cut into patches once, here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from srpo_jax.data_pipelines.prompt import BARE, Message, Prompt
from srpo_jax.errors import UserError
from srpo_jax.files import read_json
from srpo_jax.models.blocks.image_layout import Grid
from srpo_jax.models.hf.chat import chat_template
from srpo_jax.models.hf.processor import Processor
from srpo_jax.models.inputs import (
    EncodedPrompt,
    PromptOutline,
    add_pixels,
    outline_prompt,
    prompt_patches,
)

BAKED = "srpo_prompt.json"  # beside a chat template that has the prompt in it, see export
# What decides ids and pixels besides the chat template, as far as a folder has it.
PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
)


class PromptEncoder:
    """processor: of the policy. prompt: what every question is asked with."""

    def __init__(self, processor: Processor, prompt: Prompt = BARE):
        self.processor, self.prompt = processor, prompt
        self._of: dict[str | None, PromptEncoder] = {}
        pictures = [] if prompt.by_category else prompt.pictures()  # each category has its own
        shown = [processor.image(picture) for picture in pictures]
        self._patches = [patches for patches, _ in shown]
        self._grids = [grid for _, grid in shown]

    def of_category(self, category: str | None) -> PromptEncoder:
        """How questions of this category are asked; UserError as Prompt.of_category."""
        if not self.prompt.by_category:
            return self
        if category not in self._of:
            self._of[category] = self.with_prompt(self.prompt.of_category(category))
        return self._of[category]

    def outline(self, question: str, grids: Sequence[Grid]) -> PromptOutline:
        """The whole prompt without pixels. UserError as Processor.chat_tokens."""
        grids = [*self._grids, *grids]
        messages = self.prompt.messages(question, len(grids) - len(self._grids))
        tokens = self.processor.chat_tokens(messages, grids)
        return outline_prompt(tokens, grids, self.processor.config)

    def sizes(self, question: str, grids: Sequence[Grid]) -> tuple[int, int]:
        """(tokens, patches) of the whole prompt. UserError as `outline`."""
        config = self.processor.config
        if config.text.max_positions:  # a prompt may be too long for the model
            found = self.outline(question, grids)
            return len(found.tokens), found.num_patches
        grids = [*self._grids, *grids]
        messages = self.prompt.messages(question, len(grids) - len(self._grids))
        tokens = self.processor.chat_tokens(messages, grids)
        return len(tokens), prompt_patches(tokens, grids, config)

    def add_pixels(self, outline: PromptOutline, patches: Sequence[np.ndarray]) -> EncodedPrompt:
        """The prompt of an outline with the patches of the question's own pictures, float32
        [p, patch_dim] each in the processor's order."""
        return add_pixels(outline, [*self._patches, *patches], self.processor.config)

    def encode(self, question: str, images: Sequence[Image.Image]) -> EncodedPrompt:
        """Everything that the model needs to know about a question and its pictures."""
        encoded = [self.processor.image(picture) for picture in images]
        outline = self.outline(question, [grid for _, grid in encoded])
        return self.add_pixels(outline, [patches for patches, _ in encoded])

    def encode_messages(
        self, messages: Sequence[Message], images: Sequence[Image.Image]
    ) -> EncodedPrompt:
        """The same of a conversation that begins as prompt.messages has it; images: all pictures
        that are not the demonstrations', in order."""
        encoded = [self.processor.image(picture) for picture in images]
        grids = [*self._grids, *(grid for _, grid in encoded)]
        tokens = self.processor.chat_tokens(messages, grids)
        outline = outline_prompt(tokens, grids, self.processor.config)
        return self.add_pixels(outline, [patches for patches, _ in encoded])

    def with_prompt(self, prompt: Prompt) -> PromptEncoder:
        """The same processor with another prompt."""
        return PromptEncoder(self.processor, prompt)

    def digest(self, folder: str | pathlib.Path, settings: Any) -> str:
        """16 hex digits that name everything that makes prompts: what is told, the settings of the
        path format (a dataclass), and the files of `folder` that decide ids and pixels."""
        form = dataclasses.asdict(settings)
        named = [self.prompt.digest(), json.dumps(form, sort_keys=True), processor_digest(folder)]
        return hashlib.sha256("\n".join(named).encode()).hexdigest()[:16]


def processor_digest(folder: str | pathlib.Path) -> str:
    """Hex sha256[:16] over tokenizer, chat template, image settings and end tokens of a checkpoint
    folder: two policies with the same digest read and write the same ids."""
    folder = pathlib.Path(folder)
    digest = hashlib.sha256(chat_template(folder).encode())
    for name in PROCESSOR_FILES:
        file = folder / name
        if file.is_file():
            digest.update(f"\n{name} {hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
    generation = folder / "generation_config.json"
    ends = read_json(generation).get("eos_token_id") if generation.is_file() else None
    digest.update(f"\nends {json.dumps(ends)}".encode())
    return digest.hexdigest()[:16]


def check_not_baked(folder: str | pathlib.Path, told: bool) -> bool:
    """Whether the chat template in `folder` has a prompt in it.

    told: whether the config says one, too. Raises UserError then: it would be said twice.
    """
    baked = (pathlib.Path(folder) / BAKED).is_file()
    if baked and told:
        raise UserError(
            f"{folder}: its chat template has a prompt in it already ({BAKED}); set prompt.system "
            'and prompt.demos to "" and prompt.instruction to auto or none'
        )
    return baked
