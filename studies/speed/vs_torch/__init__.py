"""How does our step over a tree compare with pairwise ORPO in transformers and torch, on the same
cores, the same checkpoint and the same pairs?
"""
