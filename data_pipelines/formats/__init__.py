"""Formats of other tools and data sets, one file each, by name in registry.py."""
