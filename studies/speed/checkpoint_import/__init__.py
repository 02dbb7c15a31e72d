"""How fast, and in how much host memory, does a checkpoint become sharded arrays, ours beside the
obvious ways?
"""
