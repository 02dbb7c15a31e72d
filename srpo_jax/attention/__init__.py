"""Attention over reasoning trees, image segments and decoding branches, and the chooser.

Callers import the three functions from here and never name a backend, so a kernel can take over
one of them without touching a model. Today every one is plain XLA.
"""

from srpo_jax.attention.xla import branch_attention, segment_attention, tree_attention

__all__ = ["branch_attention", "segment_attention", "tree_attention"]
