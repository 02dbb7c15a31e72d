"""SSUI-mini: a small deterministic world with the structure of SSUI.

facts (words) -> world -> reasoning_paths (texts), draw (pictures) -> dataset (records); options are
the switches of the last.
"""
