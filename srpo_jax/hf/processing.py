"""Questions and pictures -> token ids and patches, with the files of a checkpoint folder.

The tokenizer and the image arithmetic are transformers' own, so ids and pixels equal those of HF's
processor; that class itself is not used, because it needs torchvision even for still images.
Neither torch nor torchvision is imported. Pictures are resized by PIL always: torchvision's resize
differs by a few grey levels, and the same picture must not depend on what is installed.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from srpo_jax.errors import UserError
from srpo_jax.models.config import ModelConfig, load_model_config
from srpo_jax.models.inputs import EncodedPrompt, encode_prompt

IMAGE_MARKER = "<image>"
Grid = tuple[int, int, int]


class Processor:
    """The text and image side of one checkpoint. Build it with `Processor.from_dir`.

    config: the model's configuration. eos_ids: ids that end a reply, the tokenizer's own first.
    suppress_ids: ids that the policy must never sample, sorted: placeholders for pictures, padding,
    and rows of the vocabulary that no token has. Never one of eos_ids.
    """

    def __init__(self, config: ModelConfig, tokenizer, image_processor, template: str, eos_ids):
        self.config = config
        self.eos_ids: tuple[int, ...] = tuple(eos_ids)
        self._tokenizer = tokenizer
        self._image_processor = image_processor
        self._template = template

        added = tokenizer.added_tokens_decoder
        pads = {config.image_token_id, config.video_token_id}
        pads |= {i for i, token in added.items() if token.content == "<|vision_pad|>"}
        if tokenizer.pad_token_id is not None:
            pads.add(tokenizer.pad_token_id)
        unused = set(range(config.text.vocab_size)) - set(tokenizer.get_vocab().values())
        self.suppress_ids: tuple[int, ...] = tuple(sorted((pads | unused) - set(self.eos_ids)))

        control = {i for i, token in added.items() if token.special} | pads | set(self.eos_ids)
        control |= {config.vision_start_token_id, config.vision_end_token_id}
        self._control_ids = frozenset(control)
        words = filter(None, tokenizer.convert_ids_to_tokens(sorted(control)))
        # One character where a control token begins: occurrences that overlap are all found.
        self._control = re.compile(f"(?={'|'.join(map(re.escape, words))}).", re.DOTALL)

    @classmethod
    def from_dir(cls, folder: str | pathlib.Path) -> Processor:
        """The processor of the checkpoint in `folder`. No network, no code from the folder.

        Raises UserError if a file is missing or damaged, or if the files contradict each other.
        """
        # Imported here: it takes seconds, and most of the package does without it.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found"
        from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

        folder = pathlib.Path(folder)
        config = load_model_config(folder)
        local = {"local_files_only": True}
        tokenizer = _loaded(
            folder, "tokenizer", AutoTokenizer.from_pretrained, trust_remote_code=False, **local
        )
        image_processor = _loaded(
            folder, "image processor", Qwen2VLImageProcessorPil.from_pretrained, **local
        )
        eos_ids = _eos_ids(folder, tokenizer)
        _check(folder, config, tokenizer, image_processor, eos_ids)
        return cls(config, tokenizer, image_processor, chat_template(folder), eos_ids)

    def image(self, picture: Image.Image) -> tuple[np.ndarray, Grid]:
        """An RGB picture -> patches float32 [h*w, patch_dim] in the processor's order, (1, h, w).

        Raises UserError if the picture has a shape that the processor refuses (1:200 and beyond).
        """
        try:
            out = self._image_processor(picture.convert("RGB"), return_tensors="np")
        except ValueError as error:
            size = f"{picture.width}x{picture.height}"
            raise UserError(f"picture of {size} pixels: {_one_line(error)}") from error
        _, h, w = (int(n) for n in out["image_grid_thw"][0])
        return np.ascontiguousarray(out["pixel_values"], np.float32), (1, h, w)

    def prompt_tokens(self, question: str, grids: Sequence[Grid]) -> list[int]:
        """Ids of the user turn with `question`, up to where the assistant's answer begins.

        Pictures stand where the question says `<image>`, or before the text if it never does. Each
        takes one placeholder id per merged patch. Control tokens in the question stay plain text.
        Raises UserError if markers and pictures do not agree in number.
        """
        pieces = question.split(IMAGE_MARKER)
        if len(pieces) == 1:
            pieces = [""] * len(grids) + pieces
        if len(pieces) != len(grids) + 1:
            raise UserError(
                f"the question has {len(pieces) - 1} {IMAGE_MARKER} markers and "
                f"{len(grids)} pictures: {question[:80]!r}"
            )
        mark = _unused_character(self._template + question)
        content = []
        for i, piece in enumerate(pieces):
            if i:
                content.append({"type": "image"})
            if piece:
                content.append({"type": "text", "text": self._cut(piece, mark)})
        rendered = self._render([{"role": "user", "content": content}])
        ids = self._encode_pieces(rendered.split(mark))

        merge = self.config.vision.merge_unit
        counts = [t * h * w // merge for t, h, w in grids]
        if ids.count(self.config.image_token_id) != len(counts):
            raise UserError("the chat template does not place one image placeholder per picture")
        remaining = iter(counts)
        image_id = self.config.image_token_id
        return [j for i in ids for j in ([i] * next(remaining) if i == image_id else [i])]

    def encode(self, text: str) -> list[int]:
        """Ids of plain text. Control tokens spelled out in it become ordinary ids."""
        mark = _unused_character(text)
        ids = self._encode_pieces(self._cut(text, mark).split(mark))
        if not self._control_ids.isdisjoint(ids):
            raise UserError(f"text that cannot be told from a control token: {text[:80]!r}")
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, without special tokens."""
        return self._tokenizer.decode(
            [int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def encode_question(self, question: str, images: Sequence[Image.Image]) -> EncodedPrompt:
        """Everything that the model needs to know about a question and its pictures."""
        encoded = [self.image(picture) for picture in images]
        tokens = self.prompt_tokens(question, [grid for _, grid in encoded])
        return encode_prompt(tokens, encoded, self.config)

    def _cut(self, text: str, mark: str) -> str:
        """`mark` inside every control token that `text` spells out: "<" mark "|im_end|>".

        Text is encoded in the pieces between marks, so a control token that came with the text is
        never whole, while those that the template writes around it are. Text without any is not
        cut, and its ids are exactly those of transformers.
        """
        return self._control.sub(lambda first: first.group() + mark, text)

    def _encode_pieces(self, pieces: Iterable[str]) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            ids += self._tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _render(self, messages: list[dict]) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program: it can fail in any way
            raise UserError(f"the chat template failed: {_one_line(error)}") from error


def chat_template(folder: str | pathlib.Path) -> str:
    """The chat template of a checkpoint folder, by transformers' precedence.

    chat_template.jinja, then chat_template.json, then tokenizer_config.json (which alone may hold
    several; the one named "default" counts). Raises UserError if there is none.
    """
    folder = pathlib.Path(folder)
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = _read_json(folder / name).get("chat_template")
        if isinstance(template, list):
            template = {t.get("name"): t.get("template") for t in template}.get("default")
        if isinstance(template, str):
            return template
    raise UserError(
        f"{folder}: no chat template (chat_template.jinja, chat_template.json or "
        "tokenizer_config.json); is this an instruction-tuned model?"
    )


def _eos_ids(folder: pathlib.Path, tokenizer) -> tuple[int, ...]:
    listed = _read_json(folder / "generation_config.json").get("eos_token_id")
    listed = listed if isinstance(listed, list) else [listed]
    ids = [i for i in [tokenizer.eos_token_id, *listed] if isinstance(i, int)]
    if not ids:
        raise UserError(f"{folder}: neither the tokenizer nor generation_config.json has an eos id")
    return tuple(dict.fromkeys(ids))


def _check(folder, config: ModelConfig, tokenizer, image_processor, eos_ids) -> None:
    """config.json, the tokenizer and the image processor must describe the same model."""
    v = config.vision
    for ours, theirs in (
        (v.patch_size, "patch_size"),
        (v.temporal_patch_size, "temporal_patch_size"),
        (v.spatial_merge_size, "merge_size"),
    ):
        if getattr(image_processor, theirs) != ours:
            raise UserError(
                f"{folder}: preprocessor_config.json has {theirs} "
                f"{getattr(image_processor, theirs)}, config.json {ours}"
            )
    for key in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        if getattr(config, key) not in tokenizer.added_tokens_decoder:
            raise UserError(
                f"{folder}: {key} {getattr(config, key)} of config.json is no control token of the "
                "tokenizer; the files belong to different models"
            )
    largest = max([*tokenizer.get_vocab().values(), *eos_ids])
    if largest >= config.text.vocab_size:
        raise UserError(
            f"{folder}: token id {largest} is outside the model's vocabulary of "
            f"{config.text.vocab_size}; the files belong to different models"
        )


def _loaded(folder: pathlib.Path, what: str, load, **kwargs):
    try:
        return load(str(folder), **kwargs)
    except Exception as error:  # transformers raises many kinds for a missing or damaged file
        raise UserError(f"{folder}: cannot load the {what}: {_one_line(error)[:300]}") from error


def _read_json(file: pathlib.Path) -> dict:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not readable as JSON ({_one_line(error)})") from error
    return content if isinstance(content, dict) else {}


def _unused_character(text: str) -> str:
    """A private-use character that is not in `text`."""
    taken = set(text)
    return next(c for c in map(chr, range(0xE000, 0x110000)) if c not in taken)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
