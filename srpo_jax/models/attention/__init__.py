"""Attention over trees, segments, tiles and branches; dispatch.py chooses who computes it."""
