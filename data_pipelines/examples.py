"""Tree records -> trees ready for the loss: pictures decoded, prompts encoded, branches labelled.

Nothing is kept beyond two caches of bounded size: pictures and prompts are made again when a tree
comes round again, so memory does not grow with the data.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from data_pipelines.images import load_image
from data_pipelines.records import RecordError
from data_pipelines.tree_records import branch_label
from srpo_jax.errors import UserError
from srpo_jax.models.inputs import EncodedPrompt, check_length, encode_prompt
from srpo_jax.tree.structure import Branch, Tree, remove_duplicates

CACHE_BYTES = 256 * 2**20


class Examples:
    """[i] -> srpo_jax.tree.structure.Tree with its encoded prompt. Thread-safe.

    source:    TreeSource or a list of tree records
    processor: srpo_jax.hf.processing.Processor of the policy
    scope, require_effective: what makes a branch safe, see tree_records.branch_label

    Branches with an ERROR verdict are left out, copies too (structure.remove_duplicates). Errors
    in a record, its pictures or its prompt name the tree.
    """

    def __init__(self, source: Sequence[dict[str, Any]], processor: Any, *, scope: str = "reply",
                 require_effective: bool = False, cache_bytes: int = CACHE_BYTES):
        self.source, self.processor = source, processor
        self._label = {"scope": scope, "require_effective": require_effective}
        self._trees = ByteCache(cache_bytes)
        self._pictures = ByteCache(cache_bytes)  # by sha256: many questions share a picture
        # A fast tokenizer may refuse a second thread while one changes its settings.
        self._tokenizer_lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tree:
        return self._trees.get(index, lambda: self._make(index), _tree_bytes)

    def _make(self, index: int) -> Tree:
        record = self.source[index]
        what = f"tree {record['id']!r}"
        try:
            tree = make_tree(record, self._prompt(record, what), **self._label)
        except RecordError:
            raise
        except UserError as e:  # from the processor, which does not know the tree
            name = "" if what in str(e) else f"{what}: "
            raise RecordError(f"{name}{e}") from None
        self._check_ids(tree, what)
        self._check_length(tree, what)
        return tree

    def _prompt(self, record: dict[str, Any], what: str) -> EncodedPrompt:
        pictures = []
        for image in record["images"]:
            def decode(image=image):
                return self.processor.image(
                    load_image(image["data"], what=f"{what}: {image['name']}"))
            pictures.append(self._pictures.get(
                image["sha256"], decode, lambda picture: picture[0].nbytes))
        with self._tokenizer_lock:
            tokens = self.processor.prompt_tokens(
                record["question"], [grid for _, grid in pictures])
        return encode_prompt(tokens, pictures, self.processor.config)

    def _check_ids(self, tree: Tree, what: str) -> None:
        limit = self.processor.config.text.vocab_size
        largest = max(int(part.max()) for part in
                      (*tree.pieces, *(branch.tokens for branch in tree.branches)))
        if largest >= limit:
            raise RecordError(f"{what}: token id {largest}, but the model has {limit} tokens: "
                              "the trees were explored with another policy")


    def _check_length(self, tree: Tree, what: str) -> None:
        ends = np.cumsum([0, *(len(piece) for piece in tree.pieces)])
        longest = max([ends[-1], *(ends[b.at] + len(b.tokens) for b in tree.branches)])
        try:
            check_length(tree.prompt.next_position + int(longest), self.processor.config)
        except UserError as e:
            raise RecordError(f"{what}: {e}") from None


def make_tree(record: dict[str, Any], prompt: EncodedPrompt, *, scope: str = "reply",
              require_effective: bool = False) -> Tree:
    """The Tree of a checked tree record, with the branches that have a label."""
    pieces = [np.asarray(piece, np.int32) for piece in (*record["steps"], record["reply"])]
    branches = []
    for branch in record["branches"]:
        safe = branch_label(branch, scope=scope, require_effective=require_effective)
        if safe is not None:
            branches.append(Branch(branch["at"], np.asarray(branch["tokens"], np.int32), safe))
    return remove_duplicates(Tree(record["id"], prompt, tuple(pieces), tuple(branches)))


def _tree_bytes(tree: Tree) -> int:
    # Near enough: patches outweigh everything else in a tree with a picture.
    tokens = sum(len(branch.tokens) for branch in tree.branches) + len(tree.prompt.tokens)
    return tree.prompt.patches.nbytes + 64 * tokens + 4096


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
