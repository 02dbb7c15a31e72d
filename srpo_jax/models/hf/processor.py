"""Questions and pictures -> token ids and patches, with the files of a checkpoint folder.

The tokenizer and the image arithmetic are transformers' own, so ids and pixels equal those of HF's
processor; that class itself is not used, because it needs torchvision even for still images.
Neither torch nor torchvision is imported. Pictures are resized by PIL always: torchvision's resize
differs by a few grey levels, and the same picture must not depend on what is installed.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from srpo_jax.errors import UserError, one_line
from srpo_jax.models.blocks.config import Family, ModelConfig
from srpo_jax.models.blocks.hf_folder import loaded, read_optional_json
from srpo_jax.models.blocks.image_layout import Grid, Images
from srpo_jax.models.inputs import EncodedPrompt, encode_prompt
from srpo_jax.models.registry import load_model_config

IMAGE_MARKER = "<image>"
# A private-use character, which SentencePiece writes in bytes that never merge with what follows.
ANCHOR = "\ue000"


class Processor:
    """The text and image side of one checkpoint. Build it with `Processor.from_dir`.

    config: the model's configuration. images: how it shows pictures.
    eos_ids: ids that end a reply, the tokenizer's own first.
    suppress_ids: ids that the policy must never sample, sorted: placeholders for pictures, padding,
    and rows of the vocabulary that no token has. Never one of eos_ids.
    images: the family's own (families/*/images.py): `images(RGB picture)` -> its patches and grid,
    `images.grid(width, height)` -> the grid that a picture of this size has, without pixels.
    """

    def __init__(self, config: ModelConfig, tokenizer, images: Images, template: str, eos_ids):
        self.config = config
        self.images = images
        self.eos_ids: tuple[int, ...] = tuple(eos_ids)
        self._tokenizer = tokenizer
        self._template = template
        # What the tokenizer puts before every text (Llama's <s>), unless the template wrote it.
        self._prefix: list[int] = list(tokenizer("")["input_ids"])
        # Llama's also puts a space there, which a text cut into pieces must not get at every cut.
        self._adds_space = self._tokenizer.tokenize("a")[0].startswith("\u2581")

        added = tokenizer.added_tokens_decoder
        pads = {config.image_token_id, *images.suppress}
        if tokenizer.pad_token_id is not None:
            pads.add(tokenizer.pad_token_id)
        rows = set(range(config.text.vocab_size))
        never = (pads & rows) | (rows - set(tokenizer.get_vocab().values()))
        self.suppress_ids: tuple[int, ...] = tuple(sorted(never - set(self.eos_ids)))

        control = {i for i, token in added.items() if token.special} | pads | set(self.eos_ids)
        control |= {config.vision_start_token_id, config.vision_end_token_id} - {None}
        self._control_ids = frozenset(control)
        words = filter(None, tokenizer.convert_ids_to_tokens(sorted(control)))
        # One character where a control token begins: occurrences that overlap are all found.
        self._control = re.compile(f"(?={'|'.join(map(re.escape, words))}).", re.DOTALL)

    @classmethod
    def from_dir(cls, folder: str | pathlib.Path, family: str | Family = "") -> Processor:
        """The processor of the checkpoint in `folder`. No network, no code from the folder.

        family: one from outside, see registry.known_families.
        Raises UserError if a file is missing or damaged, or if the files contradict each other.
        """
        # Imported here: it takes seconds, and most of the package does without it.
        from transformers import AutoTokenizer

        folder = pathlib.Path(folder)
        config = load_model_config(folder, family)
        tokenizer = loaded(
            folder, "tokenizer", AutoTokenizer.from_pretrained, trust_remote_code=False
        )
        images = config.family.images(folder, config, tokenizer)
        eos_ids = _eos_ids(folder, tokenizer)
        _check(folder, config, tokenizer, eos_ids, images.suppress)
        return cls(config, tokenizer, images, chat_template(folder), eos_ids)

    def image(self, picture: Image.Image) -> tuple[np.ndarray, Grid]:
        """A picture of any mode -> patches float32 [p, patch_dim] in the processor's order, grid.

        Raises UserError if the picture has a shape that the processor refuses.
        """
        return self.images(picture.convert("RGB"))

    def prompt_tokens(self, question: str, grids: Sequence[Grid]) -> list[int]:
        """Ids of the user turn with `question`, up to where the assistant's answer begins.

        Pictures stand where the question says `<image>`, or before the text if it never does; each
        is written out as its family does. Control tokens in the question stay plain text.
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

        # Every whole placeholder is the template's: those of the question have been cut.
        first, *others = rendered.split(self.images.placeholder)
        if len(others) != len(grids):
            raise UserError("the chat template does not place one image placeholder per picture")
        expanded = [self.images.expansion(grid) + text for grid, text in zip(grids, others)]
        ids = self._encode_pieces("".join([first, *expanded]).split(mark))
        bos = self._tokenizer.bos_token
        return ids if bos and rendered.startswith(bos) else self._prefix + ids

    def encode(self, text: str, after_text: bool = False) -> list[int]:
        """Ids of plain text. Control tokens spelled out in it become ordinary ids.

        after_text: the ids that it has right behind other text, not at the start of an answer.
        """
        mark = _unused_character(text)
        ids = self._encode_pieces(self._cut(text, mark).split(mark), after_text)
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

    def _encode_pieces(self, pieces: Iterable[str], after_text: bool = False) -> list[int]:
        ids: list[int] = []
        for number, piece in enumerate(pieces):
            if self._adds_space and (number or after_text):
                ids += self._ids(ANCHOR + piece)[len(self._ids(ANCHOR)) :]
            else:
                ids += self._ids(piece)
        return ids

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _render(self, messages: list[dict]) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program: it can fail in any way
            raise UserError(f"the chat template failed: {one_line(error)}") from error


def chat_template(folder: str | pathlib.Path) -> str:
    """The chat template of a checkpoint folder, by transformers' precedence.

    chat_template.jinja, then chat_template.json, then tokenizer_config.json (which alone may hold
    several; the one named "default" counts). Raises UserError if there is none.
    """
    folder = pathlib.Path(folder)
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = read_optional_json(folder / name).get("chat_template")
        if isinstance(template, list):
            template = {t.get("name"): t.get("template") for t in template}.get("default")
        if isinstance(template, str):
            return template
    raise UserError(
        f"{folder}: no chat template (chat_template.jinja, chat_template.json or "
        "tokenizer_config.json); is this an instruction-tuned model?"
    )


def _eos_ids(folder: pathlib.Path, tokenizer) -> tuple[int, ...]:
    listed = read_optional_json(folder / "generation_config.json").get("eos_token_id")
    listed = listed if isinstance(listed, list) else [listed]
    ids = [i for i in [tokenizer.eos_token_id, *listed] if isinstance(i, int)]
    if not ids:
        raise UserError(f"{folder}: neither the tokenizer nor generation_config.json has an eos id")
    return tuple(dict.fromkeys(ids))


def _check(folder, config: ModelConfig, tokenizer, eos_ids, unreachable) -> None:
    """config.json and the tokenizer must describe the same model."""
    for key in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        value = getattr(config, key)
        if value is not None and value not in tokenizer.added_tokens_decoder:
            raise UserError(
                f"{folder}: {key} {value} of config.json is no control token of the "
                "tokenizer; the files belong to different models"
            )
    largest = max({*tokenizer.get_vocab().values()} - unreachable | {*eos_ids})
    if largest >= config.text.vocab_size:
        raise UserError(
            f"{folder}: token id {largest} is outside the model's vocabulary of "
            f"{config.text.vocab_size}; the files belong to different models"
        )


def _unused_character(text: str) -> str:
    """A private-use character that is not in `text`."""
    taken = set(text)
    return next(c for c in map(chr, range(0xE000, 0x110000)) if c not in taken)
