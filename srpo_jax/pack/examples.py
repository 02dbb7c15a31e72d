"""Tree records -> trees ready for the loss: prompts encoded, branches labelled, pictures decoded.

How many tokens and patches a picture makes follows from its size, which its header tells. So a tree
is planned, laid out and counted without a pixel (`outline`), and its pictures are decoded when a
row is filled with it (`prompt`): a run over 10 000 photographs starts without decoding any.

Nothing is kept beyond caches of bounded size: what is gone is made again when a tree comes round
again, so memory does not grow with the data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from srpo_jax.data_pipelines.images import image_size, load_image
from srpo_jax.data_pipelines.prompt import BARE, Prompt
from srpo_jax.data_pipelines.records import RecordError
from srpo_jax.data_pipelines.tree_store import TreeSource
from srpo_jax.data_pipelines.verdict_store import JudgedTrees, branch_label
from srpo_jax.errors import UserError
from srpo_jax.models.blocks.image_layout import Grid
from srpo_jax.models.hf.processor import Processor
from srpo_jax.models.hf.prompt_encoder import PromptEncoder
from srpo_jax.models.inputs import EncodedPrompt, PromptOutline, check_length
from srpo_jax.pack.tree import Branch, Tree, remove_duplicates

CACHE_BYTES = 256 * 2**20


class Examples:
    """[i] -> srpo_jax.pack.tree.Tree with its encoded prompt. Thread-safe.

    source:    tree records, joined with verdicts (JudgedTrees) where branches are compared
    processor: srpo_jax.models.hf.processor.Processor of the policy
    prompt:    what the policy is told besides the question
    scope, require_effective: what makes a branch safe, see verdict_store.branch_label

    Branches with an ERROR verdict are left out, copies too (pack.tree.remove_duplicates). Errors
    in a record, its pictures or its prompt name the tree: `outline` raises those of the record,
    the prompt and the pictures' headers, `prompt` those of damaged pixels.
    """

    def __init__(
        self,
        source: Sequence[dict[str, Any]] | TreeSource | JudgedTrees,
        processor: Processor,
        *,
        prompt: Prompt = BARE,
        scope: str = "reply",
        require_effective: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ):
        self.source, self.processor = source, processor
        self._encoder = PromptEncoder(processor, prompt)
        self._label = {"scope": scope, "require_effective": require_effective}
        self._outlines = ByteCache(cache_bytes)
        self._prompts = ByteCache(cache_bytes)
        # By sha256, as many questions share a picture.
        self._pictures = ByteCache(cache_bytes)
        self._grids = ByteCache(cache_bytes)
        # A fast tokenizer may refuse a second thread while one changes its settings.
        self._tokenizer_lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tree:
        return dataclasses.replace(self.outline(index), prompt=self.prompt(index))

    def outline(self, index: int) -> Tree:
        """The tree without its pixels: its prompt is a PromptOutline."""
        return self._outlines.get(index, lambda: self._outline(index), _tree_bytes)

    def prompt(self, index: int) -> EncodedPrompt:
        """The prompt of a tree with its pictures decoded."""

        def make():
            tree = self.outline(index)
            images = self.source[index]["images"] if tree.prompt.grids else ()
            with _named(tree.id) as what:
                patches = [self._picture(image, what) for image in images]
                return self._encoder.add_pixels(tree.prompt, patches)

        return self._prompts.get(index, make, lambda prompt: prompt.patches.nbytes + 4096)

    def _outline(self, index: int) -> Tree:
        record = self.source[index]
        with _named(record["id"]) as what:
            grids = [self._grid(image, what) for image in record["images"]]
            with self._tokenizer_lock:
                prompt = self._encoder.outline(record["question"], grids)
            tree = make_tree(record, prompt, **self._label)
        self._check_ids(tree, what)
        self._check_length(tree, what)
        return tree

    def _grid(self, image: dict[str, Any], what: str) -> Grid:
        def read():
            size = image_size(image["data"], what=f"{what}: {image['name']}")
            return self.processor.images.grid(*size)

        return self._grids.get(image["sha256"], read, lambda _: 256)

    def _picture(self, image: dict[str, Any], what: str) -> np.ndarray:
        """Its patches, float32 [p, patch_dim], in the processor's order."""

        def decode():
            shown = load_image(image["data"], what=f"{what}: {image['name']}")
            return self.processor.images(shown)[0]

        return self._pictures.get(image["sha256"], decode, lambda patches: patches.nbytes)

    def _check_ids(self, tree: Tree, what: str) -> None:
        limit = self.processor.config.text.vocab_size
        largest = max(
            int(part.max()) for part in (*tree.pieces, *(branch.tokens for branch in tree.branches))
        )
        if largest >= limit:
            raise RecordError(
                f"{what}: token id {largest}, but the model has {limit} tokens: "
                "the trees were explored with another policy"
            )

    def _check_length(self, tree: Tree, what: str) -> None:
        ends = np.cumsum([0, *(len(piece) for piece in tree.pieces)])
        longest = max([ends[-1], *(ends[b.at] + len(b.tokens) for b in tree.branches)])
        try:
            check_length(tree.prompt.next_position + int(longest), self.processor.config)
        except UserError as e:
            raise RecordError(f"{what}: {e}") from None


class ReadyTrees:
    """Trees that are encoded already, as Examples: a list of Tree that knows its processor."""

    def __init__(self, trees: Any):
        self._trees, self.processor = trees, trees.processor

    def __len__(self) -> int:
        return len(self._trees)

    def outline(self, index: int) -> Tree:
        return self._trees[index]

    def prompt(self, index: int) -> EncodedPrompt:
        return self._trees[index].prompt


@contextlib.contextmanager
def _named(tree_id: str) -> Iterator[str]:
    """Errors of the processor, which does not know the tree, get its name."""
    what = f"tree {tree_id!r}"
    try:
        yield what
    except RecordError:
        raise
    except UserError as e:
        name = "" if what in str(e) else f"{what}: "
        raise RecordError(f"{name}{e}") from None


def make_tree(
    record: dict[str, Any],
    prompt: EncodedPrompt | PromptOutline,
    *,
    scope: str = "reply",
    require_effective: bool = False,
) -> Tree:
    """The Tree of a checked tree record, with the branches that have a label: none of a record that
    was not joined with verdicts.
    """
    pieces = [np.asarray(piece, np.int32) for piece in (*record["steps"], record["reply"])]
    branches = []
    for branch in record["branches"] if "reference_verdict" in record else ():
        safe = branch_label(branch, scope=scope, require_effective=require_effective)
        if safe is not None:
            branches.append(Branch(branch["at"], np.asarray(branch["tokens"], np.int32), safe))
    return remove_duplicates(Tree(record["id"], prompt, tuple(pieces), tuple(branches)))


def _tree_bytes(tree: Tree) -> int:
    tokens = sum(len(branch.tokens) for branch in tree.branches) + len(tree.prompt.tokens)
    return 64 * tokens + 4096  # near enough


class ByteCache:
    """Least recently used entries up to a number of bytes. Thread-safe.

    Two threads that miss the same key at once both make the value: it is the same value.
    """

    def __init__(self, max_bytes: int):
        self._max, self._used = max_bytes, 0
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any], size: Callable[[Any], int]) -> Any:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key][0]
        value = make()
        with self._lock:
            if key not in self._entries:
                self._entries[key] = (value, size(value))
                self._used += self._entries[key][1]
                while self._used > self._max:
                    self._used -= self._entries.popitem(last=False)[1][1]
        return value
