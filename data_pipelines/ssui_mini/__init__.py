"""SSUI-mini: a small deterministic world with the structure of SSUI.

world (facts) -> paths (texts), draw (pictures) -> dataset (records).
"""
