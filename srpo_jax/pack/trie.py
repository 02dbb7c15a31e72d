"""Paths of tokens that share their beginnings, each shared run of tokens once."""

from __future__ import annotations

import numpy as np


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """The number of tokens with which both int arrays begin."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


class Trie:
    """A token trie compressed to runs. Node 0 is the (empty) root: the end of the prompt.

    Inserting "a b c" makes one node; inserting "a d" splits it into "a" and, below it, "b c", and
    adds "d" below "a". A node that is split keeps its number for the lower part, so "the end of
    node k" means the same token for ever.
    """

    def __init__(self):
        self.tokens = [np.zeros(0, np.int32)]
        self.parent = [-1]
        self.start = [0]  # tokens below the prompt before this node
        self.children: list[dict[int, int]] = [{}]

    def depth_after(self, node: int) -> int:
        return self.start[node] + len(self.tokens[node])

    def insert(self, node: int, tokens: np.ndarray) -> int:
        """Add a path below the end of `node`; returns the node at whose end the path ends."""
        while len(tokens):
            child = self.children[node].get(int(tokens[0]))
            if child is None:
                return self._add(node, tokens)
            shared = common_prefix(self.tokens[child], tokens)
            if shared < len(self.tokens[child]):
                child = self._split(child, shared)
            node, tokens = child, tokens[shared:]
        return node

    def _add(self, parent: int, tokens: np.ndarray) -> int:
        self.tokens.append(tokens)
        self.parent.append(parent)
        self.start.append(self.depth_after(parent))
        self.children.append({})
        self.children[parent][int(tokens[0])] = len(self.tokens) - 1
        return len(self.tokens) - 1

    def _split(self, node: int, length: int) -> int:
        """Moves the node's first `length` tokens into a new node above it; returns that one."""
        tokens = self.tokens[node]
        upper = self._add(self.parent[node], tokens[:length])
        self.children[upper][int(tokens[length])] = node
        self.tokens[node] = tokens[length:]
        self.parent[node] = upper
        self.start[node] += length
        return upper

    def order(self) -> tuple[list[int], list[int]]:
        """(nodes below the root in depth-first order, largest subtree first; subtree sizes)."""
        size = [len(tokens) for tokens in self.tokens]
        found = [0]
        for node in found:  # parents before children
            found.extend(self.children[node].values())
        for node in reversed(found[1:]):
            size[self.parent[node]] += size[node]
        ordered, stack = [], [0]
        while stack:
            node = stack.pop()
            ordered.append(node)
            # The stack reverses: smallest pushed first. Ties: in order of the first token.
            stack.extend(
                sorted(
                    self.children[node].values(), key=lambda k: (size[k], -int(self.tokens[k][0]))
                )
            )
        return ordered[1:], size
