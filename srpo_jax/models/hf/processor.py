"""Questions and pictures -> token ids and patches, with the files of a checkpoint folder.

The tokenizer and the image arithmetic are transformers' own, so ids and pixels equal those of HF's
processor; that class itself is not used, because it needs torchvision even for still images.
Neither torch nor torchvision is imported. Pictures are resized by PIL always: torchvision's resize
differs by a few grey levels, and the same picture must not depend on what is installed.
"""

from __future__ import annotations

import bisect
import itertools
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from srpo_jax.data_pipelines.prompt import BARE, Message, Told
from srpo_jax.errors import UserError, one_line
from srpo_jax.models.blocks.config import Family, ModelConfig
from srpo_jax.models.blocks.config_reader import is_integer
from srpo_jax.models.blocks.hf_folder import loaded, read_optional_json
from srpo_jax.models.blocks.image_layout import Grid, Images
from srpo_jax.models.blocks.image_settings import check_shown
from srpo_jax.models.hf.chat import PROBE, Chat, chat_template, unused_characters
from srpo_jax.models.inputs import EncodedPrompt, encode_prompt
from srpo_jax.models.registry import load_model_config

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
    limited: the settings of the image processor that max_pixels changed.
    markers: texts of the path format (think tags). In the policy's own texts and in those of the
    config (prompt.Told) they are tokens, even if the tokenizer calls them special; in what records
    say they are plain text.
    lead: the white space that the template writes in front of an assistant's text and not at the
    end of a prompt: an answer begins with it. opened: whether every prompt ends with the text with
    which turns of the path format open, by the template or, with open="prompt", by us, in the ids
    `opening`.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer,
        images: Images,
        chat: Chat,
        eos_ids,
        markers: Sequence[str] = (),
        opening: str = "",
        open: str = "auto",  # noqa: A002  the name of the config's field
    ):
        self.config = config
        self.images = images
        self.limited: dict[str, Any] = {}
        self.eos_ids: tuple[int, ...] = tuple(eos_ids)
        self.markers = tuple(markers)
        self._tokenizer = tokenizer
        self.chat = chat
        # What the tokenizer puts before every text (Llama's <s>), unless the template wrote it.
        self._prefix: list[int] = list(tokenizer("")["input_ids"])
        self._fast = _fast_tokenizer(
            tokenizer
        )  # set up by the call above: nothing cut, nothing padded
        # Llama's also puts a space there, which a text cut into pieces must not get at every cut.
        self._adds_space = self._tokenizer.tokenize("a")[0].startswith("\u2581")

        added = tokenizer.added_tokens_decoder
        own = {i for i, token in added.items() if token.content in self.markers}
        pads = {config.image_token_id, *images.suppress}
        if tokenizer.pad_token_id is not None:
            pads.add(tokenizer.pad_token_id)
        rows = set(range(config.text.vocab_size))
        never = (pads & rows) | (rows - set(tokenizer.get_vocab().values()))
        self.suppress_ids: tuple[int, ...] = tuple(sorted(never - set(self.eos_ids)))

        control = {i for i, token in added.items() if token.special} | pads | set(self.eos_ids)
        control |= {config.vision_start_token_id, config.vision_end_token_id} - {None}
        self._control_ids = frozenset(control - own)
        self._hidden_ids = frozenset(i for i, t in added.items() if t.special) - own
        # One character where a control token begins: occurrences that overlap are all found.
        words = filter(None, tokenizer.convert_ids_to_tokens(sorted(control | own)))
        words = sorted(words, key=len, reverse=True)
        self._control = re.compile(f"(?=({'|'.join(map(re.escape, words))})).", re.DOTALL)
        self._set_start(opening, open)

    @classmethod
    def from_dir(
        cls,
        folder: str | pathlib.Path,
        family: str | Family = "",
        markers: Sequence[str] = (),
        opening: str = "",
        open: str = "auto",  # noqa: A002
        max_pixels: int = 0,
    ) -> Processor:
        """The processor of the checkpoint in `folder`. No network, no code from the folder.

        family: one from outside, see registry.known_families. markers: of the path format.
        opening: what its turns begin with unless the prompt has it (a tag and a newline). open: who
        writes that, "auto" (the template if it does, else the policy), "prompt" (the template, else
        we do) or "policy". max_pixels: of a picture, to which larger ones are shrunk; 0: as the
        folder says.
        Raises UserError if a file is missing or damaged, if the files contradict each other, if
        the template writes what the policy is to write, or if it cannot write one question with
        one picture, whole and within bounds.
        """
        folder = pathlib.Path(folder)
        config = load_model_config(folder, family)
        try:
            return cls._read(folder, config, max_pixels, markers, opening, open)
        except UserError as error:
            if str(folder) in str(error):
                raise
            raise UserError(f"{folder}: {error}") from error
        except Exception as error:  # files of a stranger, read by transformers' code
            why = one_line(f"{type(error).__name__}: {error}", 300)
            raise UserError(f"{folder}: tokenizer and image files cannot be used: {why}") from error

    @classmethod
    def _read(
        cls, folder: pathlib.Path, config: ModelConfig, max_pixels: int, *start: Any
    ) -> Processor:
        """As from_dir. What was read is tried with one picture and one question."""
        # Imported here: it takes seconds, and most of the package does without it.
        from transformers import AutoTokenizer

        tokenizer = loaded(
            folder, "tokenizer", AutoTokenizer.from_pretrained, trust_remote_code=False
        )
        images = config.family.images(folder, config, tokenizer)
        limited = images.limit(max_pixels) if max_pixels else {}
        grid = check_shown(folder, images, config)
        eos_ids = _eos_ids(folder, tokenizer)
        _check(folder, config, tokenizer, eos_ids, images.suppress)
        chat = Chat(tokenizer, chat_template(folder), images.placeholder)
        chat.check_bounded()
        found = cls(config, tokenizer, images, chat, eos_ids, *start)
        found.limited = limited
        found.chat_tokens([PROBE], [grid])
        return found

    def _set_start(self, opening: str, open: str) -> None:  # noqa: A002
        """Finds how an answer begins: lead, opened, and what we write behind the template's prompt.

        A template that cannot write answers is told at the first prompt that has some.
        """
        try:
            prompt, turn = self.chat.turn()
        except UserError:
            prompt = turn = ""
        self.lead = _lead(prompt, turn)
        self.opening: list[int] = []
        # Whether an answer's ids are those that it has in the middle of a text.
        whole = self._ids(f"{prompt}{self.lead}a")
        inside = self._encode_pieces([f"{self.lead}a"], after_text=True)
        self._start_in_text = self._adds_space and whole == self._ids(prompt) + inside
        self.opened = bool(opening) and prompt.rstrip().endswith(opening.strip())
        if self.opened and open == "policy":
            raise UserError(
                f"the chat template ends prompts with {opening.strip()!r}, so format.open=policy "
                "cannot be had; use format.open=auto"
            )
        if opening and open == "prompt" and not self.opened:
            self.opening = self.encode(opening)
            self.lead, self._start_in_text, self.opened = "", self._adds_space, True
        # Decoders of the Llama kind take the first space away themselves.
        self._shown_lead = self.lead if self._text(self.encode("a")) == f"{self.lead}a" else ""

    def image(self, picture: Image.Image) -> tuple[np.ndarray, Grid]:
        """A picture of any mode -> patches float32 [p, patch_dim] in the processor's order, grid.

        Raises UserError if the picture has a shape that the processor refuses.
        """
        return self.images(picture.convert("RGB"))

    def prompt_tokens(self, question: str, grids: Sequence[Grid]) -> list[int]:
        """chat_tokens of the bare question: one user message without anything around it."""
        return self.chat_tokens(BARE.messages(question, len(grids)), grids)

    def chat_tokens(self, messages: Sequence[Message], grids: Sequence[Grid]) -> list[int]:
        """Ids of a conversation, up to where the assistant's answer begins.

        grids: of all pictures in order of appearance; each is written out as its family does.
        Control tokens in texts stay plain text, but for markers where they are real.
        Raises UserError if the template does not write it whole and in order: see Chat.render.
        """
        rendered, mark = self.chat.render(messages, self._cut)
        # Every whole placeholder is the template's: those of the texts have been cut.
        first, *others = rendered.split(self.images.placeholder)
        if len(others) != len(grids):
            raise UserError(f"the messages show {len(others)} pictures, but {len(grids)} are given")
        expanded = [self.images.expansion(grid) + text for grid, text in zip(grids, others)]
        ids = self._encode_shown("".join([first, *expanded]), mark) + self.opening
        bos = self._tokenizer.bos_token
        return ids if bos and rendered.startswith(bos) else self._prefix + ids

    def _encode_shown(self, text: str, mark: str) -> list[int]:
        """Ids of a whole prompt. A picture's placeholders, often a thousand, take a tokenizer ten
        times as long as the question does. Each is a token of its own, whatever stands beside it:
        of a run two are tokenised, and their id then stands as often as the run is long.
        """
        placeholder, image = self.images.placeholder, self.config.image_token_id
        lengths: list[int] = []

        def two(run: re.Match) -> str:
            lengths.append(len(run.group()) // len(placeholder))
            return placeholder * 2

        short = re.sub(f"(?:{re.escape(placeholder)}){{2,}}", two, text)
        ids = self._encode_pieces(short.split(mark))
        second = [i for i in range(1, len(ids)) if ids[i] == ids[i - 1] == image]
        if len(second) != len(lengths):  # not by this tokenizer
            return self._encode_pieces(text.split(mark))
        for i, length in zip(reversed(second), reversed(lengths)):
            ids[i:i] = [image] * (length - 2)
        return ids

    def encode(self, text: str, after_text: bool = False) -> list[int]:
        """Ids of the policy's own text: markers are tokens, other control tokens spelled out in it
        become ordinary ids.

        after_text: the ids that it has right behind other text of the answer. Else it is the start
        of an answer, and what the template writes in front of one (lead) comes with it.
        """
        return self.encode_all([text], after_text)[0]

    def encode_all(self, texts: Sequence[str], after_text: bool = False) -> list[list[int]]:
        """The ids of each text, as encode gives them, by one call of the tokenizer, during which
        other threads run.
        """
        cut = [self._answer_pieces(text, after_text) if text else [] for text in texts]
        found = self._encode_all(cut, after_text or self._start_in_text)
        for text, ids in zip(texts, found):
            if not self._control_ids.isdisjoint(ids):
                raise UserError(f"text that cannot be told from a control token: {text[:80]!r}")
        return found

    def _answer_pieces(self, text: str, after_text: bool) -> list[str]:
        mark = unused_characters(text, 1)[0]
        pieces = self._cut([text], "assistant", mark).split(mark)
        if not after_text:
            pieces[0] = self.lead + pieces[0]
        return pieces

    def decode(self, ids: Iterable[int], after_text: bool = False) -> str:
        """Text of `ids`, without special tokens but for markers. It undoes `encode`: without
        after_text, the ids are the start of an answer, and its lead is left out.
        """
        return self.decode_all([ids], after_text)[0]

    def decode_all(self, rows: Iterable[Iterable[int]], after_text: bool = False) -> list[str]:
        """The text of each row of ids, as decode gives it, by one call of the tokenizer, during
        which other threads run.
        """
        lead = "" if after_text else self._shown_lead
        return [text.removeprefix(lead) for text in self._texts(rows)]

    def _text(self, ids: Iterable[int]) -> str:
        return self._texts([ids])[0]

    def _texts(self, rows: Iterable[Iterable[int]]) -> list[str]:
        shown = [list(map(int, ids)) for ids in rows]
        hidden = self._hidden_ids
        shown = [
            ids if hidden.isdisjoint(ids) else [i for i in ids if i not in hidden] for ids in shown
        ]
        if self._fast is not None:
            return self._fast.decode_batch(shown, skip_special_tokens=False)
        plain = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return [self._tokenizer.decode(ids, **plain) for ids in shown]

    def encode_question(self, question: str, images: Sequence[Image.Image]) -> EncodedPrompt:
        """Everything that the model needs to know about a question and its pictures."""
        encoded = [self.image(picture) for picture in images]
        tokens = self.prompt_tokens(question, [grid for _, grid in encoded])
        return encode_prompt(tokens, encoded, self.config)

    def _cut(self, pieces: Sequence[str], role: str, mark: str) -> str:
        """The text of the pieces, with `mark` inside every control token that it spells out: "<"
        mark "|im_end|>". Markers in an assistant's text, or whole in a piece of the config, stay.

        Text is encoded in the pieces between marks, so a control token that came with the text is
        never whole, while those that the template writes around it are. Text without any is not
        cut, and its ids are exactly those of transformers.
        """
        ends = list(itertools.accumulate(map(len, pieces)))

        def first(found: re.Match) -> str:
            token, start = found.group(1), found.start()
            if token in self.markers:
                here = bisect.bisect_right(ends, start)
                told = isinstance(pieces[here], Told) and start + len(token) <= ends[here]
                if told or role == "assistant":
                    return found.group()
            return found.group() + mark

        return self._control.sub(first, "".join(pieces))

    def _encode_pieces(self, pieces: Sequence[str], after_text: bool = False) -> list[int]:
        return self._encode_all([pieces], after_text)[0]

    def _encode_all(self, texts: Sequence[Sequence[str]], after_text: bool) -> list[list[int]]:
        """Ids of texts, each of which is given in the pieces that it was cut into."""
        spaced = [
            self._adds_space and (number > 0 or after_text)
            for pieces in texts
            for number in range(len(pieces))
        ]
        flat = [piece for pieces in texts for piece in pieces]
        ids = self._ids_of([ANCHOR + p if s else p for p, s in zip(flat, spaced)])
        anchor = len(self._ids(ANCHOR)) if any(spaced) else 0
        each = (own[anchor:] if s else own for own, s in zip(ids, spaced))
        return [[i for own in itertools.islice(each, len(pieces)) for i in own] for pieces in texts]

    def _ids(self, text: str) -> list[int]:
        return self._ids_of([text])[0]

    def _ids_of(self, texts: Sequence[str]) -> list[list[int]]:
        if self._fast is not None:
            found = self._fast.encode_batch_fast(texts, add_special_tokens=False)
            return [each.ids for each in found]
        call = self._tokenizer
        return [call(t, add_special_tokens=False, verbose=False)["input_ids"] for t in texts]


def _fast_tokenizer(tokenizer) -> Any:
    """What transformers calls for the ids of a text, and for the text of ids, if it does no more
    than that: what it does around each call takes longer than the call. None for tokenizers of
    another kind."""
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    same = all(
        getattr(kind, name) is getattr(PreTrainedTokenizerFast, name)
        for name in ("__call__", "_encode_plus", "decode", "_decode")
    )
    return tokenizer.backend_tokenizer if same else None


def _lead(prompt: str, turn: str) -> str:
    """What `turn`, which ends where an assistant's text begins, has more than the prompt for one,
    if that is white space."""
    same = prompt if turn.startswith(prompt) else prompt.strip()
    _, found, lead = turn.partition(same) if same else ("", "", "")
    return lead if found and not lead.strip() else ""


def _eos_ids(folder: pathlib.Path, tokenizer) -> tuple[int, ...]:
    listed = read_optional_json(folder / "generation_config.json").get("eos_token_id")
    listed = listed if isinstance(listed, list) else [listed]
    ids = [i for i in [tokenizer.eos_token_id, *listed] if is_integer(i) and i >= 0]
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
