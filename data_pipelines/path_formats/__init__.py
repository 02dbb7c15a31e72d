"""Path formats: how a reasoning path and its reply are written as text, and read back.

base.py says what a format is, registry.py which there are; docs/prompts.md shows each.
"""
