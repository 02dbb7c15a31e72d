"""Tree records -> trees ready for the loss: prompts encoded, branches labelled, pictures decoded.

How many tokens and patches a picture makes follows from its size, which its header tells. So a tree
is planned, laid out and counted without a pixel (`outline`), and its pictures are decoded when a
row is filled with it (`prompt`): a run over 10 000 photographs starts without decoding any.

Nothing is kept beyond caches of bounded size: what is gone is made again when a tree comes round
again, so memory does not grow with the data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from srpo_jax.data_pipelines.images import load_image
from srpo_jax.data_pipelines.prompt import BARE, Prompt
from srpo_jax.data_pipelines.records import RecordError
from srpo_jax.data_pipelines.tree_store import TreeSource
from srpo_jax.data_pipelines.verdict_store import JudgedTrees, branch_label
from srpo_jax.errors import UserError
from srpo_jax.models.hf.processor import Processor
from srpo_jax.models.hf.prompt_encoder import PromptEncoder
from srpo_jax.models.inputs import EncodedPrompt, PromptOutline, check_length
from srpo_jax.pack.byte_cache import CACHE_BYTES, ByteCache
from srpo_jax.pack.items import Lines, table_of
from srpo_jax.pack.prompts import Prompts, named
from srpo_jax.pack.shard_tables import ShardTables
from srpo_jax.pack.skeleton import Skeleton, skeleton_of
from srpo_jax.pack.tree import Branch, Tree, remove_duplicates


class Examples:
    """[i] -> srpo_jax.pack.tree.Tree with its encoded prompt. Thread-safe.

    source:    tree records, joined with verdicts (JudgedTrees) where branches are compared
    processor: srpo_jax.models.hf.processor.Processor of the policy
    prompt:    what the policy is told besides the question
    scope, require_effective: what makes a branch safe, see verdict_store.branch_label
    tables:    what is kept beside the shards that source's trees come from, so that a start reads
               no record. numbers: which of the tables' trees are in source; default: all

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
        prompts: Prompts | None = None,
        tables: ShardTables | None = None,
        numbers: Sequence[int] | None = None,
    ):
        self.source, self.processor = source, processor
        self._prompts_of = prompts or Prompts(PromptEncoder(processor, prompt))
        self._tables, self._numbers = tables, numbers
        self._label = {"scope": scope, "require_effective": require_effective}
        self._outlines = ByteCache(cache_bytes)
        self._prompts = ByteCache(cache_bytes)
        # By sha256, as many questions share a picture.
        self._pictures = ByteCache(cache_bytes)

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
            with named(tree.id) as what:
                patches = [self._picture(image, what) for image in images]
                encoder = self._prompts_of.encoder
                if encoder.prompt.by_category:
                    encoder = encoder.of_category(self.source[index]["category"])
                return encoder.add_pixels(tree.prompt, patches)

        return self._prompts.get(index, make, lambda prompt: prompt.patches.nbytes + 4096)

    def table(self, about: Any, lines: Lines, *, keep: bool = True) -> np.ndarray:
        """LINE [n]: what packing knows of the trees (items.table_of). about, keep: as of
        ShardTables.table. Errors: those of `outline`, for any tree.
        """

        def checked(skeleton: Skeleton) -> Sequence[tuple]:
            self._check_ids(skeleton.largest, f"tree {skeleton.id!r}")
            longest = skeleton.prompt.next_position + skeleton.longest()
            self._check_length(longest, f"tree {skeleton.id!r}")
            return lines(skeleton)

        if self._tables is None:
            trees = ((i, skeleton_of(self.outline(i))) for i in range(len(self)))
            return table_of(trees, lines)
        table = self._tables.table(about, checked, keep=keep)
        if self._numbers is not None:
            wanted = np.full(len(self._tables), -1)
            wanted[self._numbers] = np.arange(len(self._numbers))
            table["tree"] = wanted[table["tree"]]
            table = table[table["tree"] >= 0]
        return table

    def kept_at(self, index: int) -> str:
        """Where the table's lines about a tree are kept, for messages; "" when they are not."""
        number = index if self._numbers is None else self._numbers[index]
        return "" if self._tables is None else self._tables.place(number)

    def _outline(self, index: int) -> Tree:
        record = self.source[index]
        prompt = self._prompts_of.outline(record)
        with named(record["id"]) as what:
            tree = make_tree(record, prompt, **self._label)
        parts = (*tree.pieces, *(branch.tokens for branch in tree.branches))
        self._check_ids(max(int(part.max()) for part in parts), what)
        ends = np.cumsum([0, *(len(piece) for piece in tree.pieces)])
        longest = max([ends[-1], *(ends[b.at] + len(b.tokens) for b in tree.branches)])
        self._check_length(prompt.next_position + int(longest), what)
        return tree

    def _picture(self, image: dict[str, Any], what: str) -> np.ndarray:
        """Its patches, float32 [p, patch_dim], in the processor's order."""

        def decode():
            shown = load_image(image["data"], what=f"{what}: {image['name']}")
            return self.processor.images(shown)[0]

        return self._pictures.get(image["sha256"], decode, lambda patches: patches.nbytes)

    def _check_ids(self, largest: int, what: str) -> None:
        limit = self.processor.config.text.vocab_size
        if largest >= limit:
            raise RecordError(
                f"{what}: token id {largest}, but the model has {limit} tokens: "
                "the trees were explored with another policy"
            )

    def _check_length(self, positions: int, what: str) -> None:
        try:
            check_length(positions, self.processor.config)
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

    def table(self, about: Any, lines: Lines, *, keep: bool = True) -> np.ndarray:
        trees = ((i, skeleton_of(self.outline(i))) for i in range(len(self)))
        return table_of(trees, lines)

    def kept_at(self, index: int) -> str:
        return ""


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
